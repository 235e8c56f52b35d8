"""Masks of FlexAttention's mask_mod, written with torch operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from omnicupy.errors import UnsupportedError
from omnicupy.masks.arguments import at_least_one, shape
from omnicupy.masks.constructors import from_predicate
from omnicupy.masks.mask import Mask
from omnicupy.torch import tensors

MaskMod = Callable[[Any, Any, Any, Any], Any]


# What may be asked of an index without its value; or_masks and and_masks make their first result so.
_OF_ANY = {
    torch.Tensor.new_zeros,
    torch.Tensor.new_ones,
    torch.Tensor.new_full,
    torch.Tensor.new_empty,
    torch.Tensor.device.__get__,
    torch.Tensor.dtype.__get__,
    torch.Tensor.shape.__get__,
}


class _Unread(torch.Tensor):  # type: ignore[misc]  # no types where torch is missing
    """An index that a mask_mod may take but not read. `reason` says what its reading would mean."""

    reason: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OF_ANY:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        parts = [part for one in args if isinstance(one, tuple | list) for part in one]
        found = [one for one in (*args, *parts, *(kwargs or {}).values()) if isinstance(one, _Unread)]
        raise UnsupportedError(f"from_mask_mod: {found[0].reason if found else 'mask_mod reads an index'}")


@overload
def from_mask_mod(
    mask_mod: MaskMod,
    q_len: int,
    k_len: int | None = None,
    *,
    batch: None = None,
    heads: int | None = None,
    device: Any = "cpu",
) -> Mask: ...
@overload
def from_mask_mod(
    mask_mod: MaskMod,
    q_len: int,
    k_len: int | None = None,
    *,
    batch: int,
    heads: int | None = None,
    device: Any = "cpu",
) -> Mask | list[Mask]: ...
def from_mask_mod(
    mask_mod: MaskMod,
    q_len: int,
    k_len: int | None = None,
    *,
    batch: int | None = None,
    heads: int | None = None,
    device: Any = "cpu",
) -> Mask | list[Mask]:
    """The mask of a FlexAttention mask_mod: mask_mod(b, h, q_idx, kv_idx) -> boolean, True where the row sees the key.

    q_len, k_len: rows and keys; k_len None means q_len.  batch: the number of batch elements, for a mask_mod that reads
    b; None for one that does not.  heads: as batch, for h.  device: where the tensors are that mask_mod closes over.
    As in FlexAttention, mask_mod is written for one pair (indices are integer tensors without axes) and runs under
    torch.vmap; some rows are asked for at a time, so that memory stays bounded, and the answers must be the same each
    time.

    Returns one mask, or, where batch elements differ, a list with one for each, as `attention` takes both.
    Raises TypeError when mask_mod is not callable or gives no booleans, and for what is no device, ValueError for
    lengths and numbers that are not positive and for results with axes of their own, UnsupportedError for a mask_mod
    that reads b or h though `batch` or `heads` is None, or by which heads see different keys.
    """
    rows, keys = shape("from_mask_mod", q_len, k_len)
    if not callable(mask_mod):
        raise TypeError(
            f"from_mask_mod: mask_mod must be a function of (b, h, q_idx, kv_idx), got {type(mask_mod).__name__}; "
            f"pass {'its mask_mod' if callable(getattr(mask_mod, 'mask_mod', None)) else 'a function'}"
        )
    tensors.check_device("from_mask_mod", device, "that of the tensors that mask_mod reads")
    batches = 1 if batch is None else at_least_one("from_mask_mod", "batch", batch)
    count = 1 if heads is None else at_least_one("from_mask_mod", "heads", heads)
    masks = []
    for element in range(batches):
        b = _index(element, "mask_mod reads b; pass batch=, the number of batch elements", batch, device)
        for head in range(count):
            h = _index(head, "mask_mod reads h; pass heads=, the number of query heads", heads, device)
            mask = from_predicate(_rows(mask_mod, b, h, device), rows, keys)
            if head == 0:
                masks.append(mask)
            elif mask != masks[-1]:
                raise UnsupportedError(
                    f"from_mask_mod: head {head} sees other keys than head 0, but a mask holds for all heads; call "
                    "attention once for each group of heads that see the same"
                )
    return masks[0] if all(mask == masks[0] for mask in masks) else masks


def _index(value: int, reason: str, given: int | None, device: Any) -> Any:
    index = torch.tensor(value, device=device)
    if given is not None:
        return index
    unread = index.as_subclass(_Unread)
    unread.reason = reason
    return unread


class _IndexedByTensors(TorchFunctionMode):  # type: ignore[misc]
    """Gathers from tables that tensors index, as in document[q_idx]. PyTorch before 2.11 takes such an index for a
    number, which vmap does not allow; FlexAttention has a mode of its own for that.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            table, index = args
            index = [
                torch.tensor(one, device=table.device) if type(one) is int else one
                for one in (index if isinstance(index, tuple) else (index,))
            ]
            if all(isinstance(one, torch.Tensor) and one.dtype != torch.bool for one in index):
                return torch.ops.aten.index(table, index)
        return func(*args, **(kwargs or {}))


def _rows(mask_mod: MaskMod, b: Any, h: Any, device: Any) -> Callable[[Any, Any], NDArray[np.bool_]]:
    """mask_mod for rows (r, 1) and keys (1, k_len) of one batch element and head."""
    over_keys = torch.vmap(lambda q, k: _pair(mask_mod(b, h, q, k)), in_dims=(None, 0))
    over_both = torch.vmap(over_keys, in_dims=(0, None))

    def pairs(q: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.bool_]:
        with torch.no_grad(), _IndexedByTensors():
            found = over_both(torch.from_numpy(q[:, 0]).to(device), torch.from_numpy(k[0]).to(device))
        answer: NDArray[np.bool_] = found.cpu().numpy()
        return answer

    return pairs


def _pair(found: Any) -> Any:
    """What a mask_mod returned for one pair, checked."""
    if not isinstance(found, torch.Tensor) or found.dtype != torch.bool:
        kind = found.dtype if isinstance(found, torch.Tensor) else type(found).__name__
        raise TypeError(
            f"from_mask_mod: mask_mod must return a boolean tensor, got {kind}; compare inside it"
        )
    if found.ndim:
        raise ValueError(
            f"from_mask_mod: mask_mod must return one boolean for a pair, got shape {tuple(found.shape)}; index with "
            "q_idx and kv_idx"
        )
    return found
