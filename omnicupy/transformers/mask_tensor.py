"""MaskTensor: masks in the place of a mask tensor, which becomes one where a model computes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from omnicupy.errors import UnsupportedError
from omnicupy.masks.mask import Mask
from omnicupy.torch.key_tables import SeenKeys
from omnicupy.transformers import one_row
from omnicupy.transformers.dense import INSTEAD, from_tensor
from omnicupy.transformers.kept import check_readable

_aten = torch.ops.aten
_ALIASES = {_aten.detach.default, _aten.alias.default}
_SUMS = {_aten.add, _aten.add_, _aten.sub, _aten.sub_, _aten.rsub}
_COPIES = {_aten.clone.default, _aten._to_copy.default}


@dataclass
class Held:
    """What a MaskTensor and its aliases hold: masks, or the keys of one row, of which masks are made once something has
    asked for them. dense: its elements, likewise: from then on they count, since they may be written.  source: what
    this is a copy of, whose masks are the same.
    """

    made: tuple[Mask, ...] | None
    dense: Any = None
    keys: SeenKeys | None = None
    source: Held | None = None

    @property
    def masks(self) -> tuple[Mask, ...]:
        """One mask for all batch elements, or one for each. Raises UnsupportedError where they are not made and a CUDA
        graph is captured.
        """
        if self.made is None:
            self.made = self._of_keys() if self.source is None else self.source.masks
        return self.made

    def _of_keys(self) -> tuple[Mask, ...]:
        assert self.keys is not None
        check_readable(self.keys.device, INSTEAD)
        return one_row.of_seen(self.keys.on_host(), self.keys.keys - 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and keys."""
        return self.masks[0].shape if self.keys is None else (1, self.keys.keys)


class MaskTensor(torch.Tensor):  # type: ignore[misc]  # no types where torch is missing
    """A boolean tensor (batch, 1, rows, keys), True where a row sees a key, that holds masks instead of elements.

    masks: one for all batch elements, or one for each. Moving and copying it costs nothing, but that the keys of one
    row are copied once to each further device. Whatever else is done to it (slices, repetitions, reading, writing)
    makes its elements first, batch * rows * keys bytes, and is done to them. Adding it to numbers raises
    UnsupportedError.
    """

    held: Held

    @staticmethod
    def __new__(cls, masks: Sequence[Mask], batch: int, device: Any) -> MaskTensor:
        return cls._with(Held(tuple(masks)), batch, device)

    @classmethod
    def of_keys(cls, keys: SeenKeys, batch: int) -> MaskTensor:
        """That of one row, on the device of its keys."""
        return cls._with(Held(None, keys=keys), batch, keys.device)

    @classmethod
    def _with(cls, held: Held, batch: int, device: Any) -> MaskTensor:
        shape = (batch, 1, *held.shape)
        made: MaskTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        made.held = held
        return made

    @property
    def masks(self) -> tuple[Mask, ...]:
        """The masks, those of the elements where there are any."""
        held = self.held
        return held.masks if held.dense is None else from_tensor(held.dense, tuple(self.shape))

    def dense(self) -> Any:
        """The elements, a boolean tensor (batch, 1, rows, keys) that is made once; writing it writes this tensor."""
        if self.held.dense is None:
            found = np.stack([mask.to_dense() for mask in self.held.masks])[:, None]
            self.held.dense = torch.from_numpy(found).expand(self.shape).to(self.device).contiguous()
        return self.held.dense

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, MaskTensor) and first.held.dense is None:
            if func in _ALIASES:
                return cls._with(first.held, first.shape[0], first.device)
            if func in _COPIES and options.get("dtype") in (None, torch.bool):
                return _copied(first, options.get("device") or first.device)
        return _on_elements(func, args, options)

    def numpy(self, *, force: bool = False) -> Any:
        """The elements as an array."""
        return self.dense().numpy(force=force)

    def tolist(self) -> Any:
        """The elements as nested lists."""
        return self.dense().tolist()

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., MaskTensor], tuple[Any, ...]]:
        """Pickled as its masks: a data loader's workers send no elements."""
        return MaskTensor, (self.masks, self.shape[0], self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskTensor:
        copied = memo.setdefault(id(self), MaskTensor(self.masks, self.shape[0], self.device))
        assert isinstance(copied, MaskTensor)
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        masks = ", ".join(map(repr, self.held.masks)) if self.held.dense is None else "elements"
        return f"MaskTensor({masks}, batch={self.shape[0]}, device={str(self.device)!r})"


def _copied(mask: MaskTensor, device: Any) -> MaskTensor:
    held = mask.held
    if held.keys is None or torch.device(device).type != held.keys.device.type:
        return MaskTensor(held.masks, mask.shape[0], device)
    keys = held.keys.on(device)
    return MaskTensor._with(Held(held.made, keys=keys, source=held), mask.shape[0], keys.device)


def _on_elements(func: Any, args: Any, options: Any) -> Any:
    """An operation on the elements of the MaskTensors among its arguments."""
    if getattr(func, "overloadpacket", None) in _SUMS:
        raise UnsupportedError(
            f"attention_mask: {func} adds a mask to numbers, but this mask is boolean, as that of 'sdpa' is; load the "
            "model with attn_implementation='eager'"
        )
    of_dense: dict[int, MaskTensor] = {}

    def elements(value: Any) -> Any:
        if not isinstance(value, MaskTensor):
            return value
        of_dense[id(dense := value.dense())] = value
        return dense

    found = func(*_pytree.tree_map(elements, args), **_pytree.tree_map(elements, options))
    # An operation in place returns its argument.
    return _pytree.tree_map(lambda value: of_dense.get(id(value), value), found)
