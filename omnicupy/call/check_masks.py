"""Argument checks of the masks of a call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

from omnicupy.call.problem import Problem, type_name
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.constructors import full
from omnicupy.masks.mask import Mask


def check_reads_masks(config: AttnSpec | None, found: Problem) -> None:
    """Raises UnsupportedError for a variant that takes no keys under masks, or fewer rows than the call has."""
    if isinstance(config, FewRowsSpec):
        config.check_masks(found.group, found.q_len, found.head_dim)


def masks_of(mask: Mask | Sequence[Mask] | None, found: Problem) -> tuple[Mask, ...]:
    """The masks of a call: one for all batch elements, or one for each.

    None is the full mask. Raises TypeError when something is not a Mask, ValueError when a list has not one
    mask a batch element or a mask has another shape than (q_len, k_len).
    """
    shape = (found.q_len, found.k_len)
    if mask is None:
        return (_full(shape),)
    if isinstance(mask, Mask):
        if mask.shape != shape:
            _refuse_mask_shape("mask", mask, found)
        return (mask,)
    if not isinstance(mask, (list, tuple)):
        hint = "make one with a constructor, such as omnicupy.causal(q_len, k_len)"
        if hasattr(mask, "dtype"):
            hint = "a boolean array becomes one with from_dense"
        if hasattr(mask, "mask_mod"):  # FlexAttention's block mask
            hint = "make one with omnicupy.torch.from_mask_mod(mask.mask_mod, q_len, k_len)"
        raise TypeError(
            "mask must be a Mask, a list of one Mask per batch element, or None (full), "
            f"got {type_name(mask)}; {hint}"
        )
    for i, one in enumerate(mask):
        if not isinstance(one, Mask):
            raise TypeError(
                f"mask[{i}] must be a Mask, got {type_name(one)}; use full(...) where all is visible"
            )
        if one.shape != shape:
            _refuse_mask_shape(f"mask[{i}]", one, found)
    if len(mask) != found.batch:
        raise ValueError(
            f"mask: a list must hold one Mask per batch element ({found.batch}), got {len(mask)}; "
            "pass a single Mask to share it"
        )
    return tuple(mask)


@lru_cache(maxsize=64)
def _full(shape: tuple[int, int]) -> Mask:
    # Kept, so that calls without a mask share block masks and device copies like calls with one.
    return full(*shape)


def _refuse_mask_shape(name: str, mask: Mask, found: Problem) -> NoReturn:
    hint = "build it for these lengths or cut it with mask.rows or mask[a:b, c:d]"
    if mask.shape == (found.q_heads, found.kv_heads):
        hint = "transpose q, k and v to (batch, heads, tokens, head_dim)"
    raise ValueError(
        f"{name} must have the shape (q tokens, k tokens) = {(found.q_len, found.k_len)}, got {mask.shape}; {hint}"
    )
