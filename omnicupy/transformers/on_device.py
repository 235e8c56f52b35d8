"""Which keys the row of a step of decoding sees, worked out on the device of its padding: the host reads nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers.masking_utils import sdpa_mask

from omnicupy.torch import state
from omnicupy.torch.key_tables import SeenKeys
from omnicupy.transformers.closures import cells_of, code_of, known

_has_compiled = False


def serves(device: Any) -> bool:
    """Whether masks of one row stay on this device: where nothing traces what is done with them, or captures it, and
    nobody asks for gradients; and where the kernel that reads keys by a table runs.
    """
    where = torch.device(device)
    return (
        where.type == "cuda"
        and not torch.is_grad_enabled()
        and _is_hopper(torch.cuda.current_device() if where.index is None else where.index)
        and not (state.modes() or state.jit_traces() or state.transform() is not None or state.has_tangents())
        and not compiles()
        and not state.captures(where)
    )


@cache
def _is_hopper(index: int) -> bool:
    return bool(torch.cuda.get_device_capability(index)[0] == 9)


def compiles() -> bool:
    """Whether anything in this process has called torch.compile, whose graphs take masks as they are on the host."""
    global _has_compiled
    if not _has_compiled:
        module = sys.modules.get("torch._dynamo.eval_frame")
        # Nothing public says so. Functions that torch.compile is to leave alone have None for a compiler.
        backends = getattr(module, "cached_backends", None)
        _has_compiled = module is not None and (
            backends is None or any(one is not None for one in backends.values())
        )
    return _has_compiled


def keys_of(
    batch: int,
    sizes: tuple[int, int],
    offsets: tuple[Any, Any],
    mask_function: Callable[..., Any],
    attention_mask: Any,
    **how: Any,
) -> SeenKeys | None:
    """The keys that the row at offsets[0] sees of sizes[1] ones from offsets[1] on. sizes: rows, 1, and keys.

    attention_mask: (batch, positions), or None.  how: device and use_vmap, as of `sdpa_mask`.
    None for functions that may look for elements that there are not, which the host has to find out, and for an
    attention_mask of another shape.
    """
    if not _is_served(mask_function, batch):
        return None
    if attention_mask is not None:
        if attention_mask.ndim != 2 or len(attention_mask) != batch:
            return None
        attention_mask = attention_mask.to(device=how["device"], dtype=torch.bool)
    seen = _of_padding(sizes[1], offsets, mask_function, attention_mask)
    if seen is None:
        found = sdpa_mask(
            batch,
            *sizes,
            q_offset=offsets[0],
            kv_offset=offsets[1],
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            **how,
        )
        seen = found[:, 0, 0]
        seen = seen[:1] if seen.stride(0) == 0 else seen
    return SeenKeys(seen, int(sizes[1])) if seen.shape[1] else None


def _is_served(function: Any, batch: int) -> bool:
    """Whether a mask function is known to look at positions alone, and at a number for each batch element."""
    rule = known().get(code_of(function))
    if rule is None:
        return False
    if rule.name in ("and", "or"):
        return all(_is_served(one, batch) for one in cells_of(function)["mask_functions"])
    if rule.name == "chunks":
        return len(cells_of(function)["left_padding"]) == batch
    return rule.name in ("causal", "all", "window", "both sides")


def _of_padding(keys: int, offsets: tuple[Any, Any], mask_function: Any, padding: Any) -> Any:
    """`seen` of SeenKeys for a causal mask function or one that hides nothing, beside padding; None elsewhere."""
    name, (row, first) = known()[code_of(mask_function)].name, offsets
    if name not in ("causal", "all") or padding is None or not isinstance(first, int):
        return None
    seen = padding[:, first : first + keys]  # those past the padding are hidden
    stop = first + seen.shape[1]
    if name == "all" or (isinstance(row, int) and row >= stop - 1):
        return seen
    return seen & (torch.arange(first, stop, device=seen.device) <= row)
