"""Argument checks of the widths of heads: head_dim columns of q and k, value_dim columns of v, of the output and of
their gradients.
"""

from __future__ import annotations

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import MAX_HEAD_DIM

MOST_APART = 256  # columns of q, k and v that kernels take where v has another width than q and k


def out_shape(found: Problem) -> tuple[int, int, int, int]:
    """The shape of the output of a call, and of its gradient."""
    return found.batch, found.q_heads, found.q_len, found.value_dim


def fits_gpu(head_dim: int, value_dim: int) -> bool:
    """Whether some kernel takes this pair of widths, each of which it would take for both."""
    return head_dim == value_dim or max(head_dim, value_dim) <= MOST_APART


def check_gpu_widths(found: Problem) -> None:
    """Raises ValueError for widths that no kernel takes, UnsupportedError for a pair of widths that none takes."""
    head_dim, value_dim = found.head_dim, found.value_dim
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"q must have a head_dim that is a multiple of 8, at most {MAX_HEAD_DIM}, on the GPU, "
            f"got {head_dim}; pad q, k and v with zero columns (and pass scale)"
        )
    if value_dim == head_dim:
        return
    if value_dim % 8 or value_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"v must have a width that is a multiple of 8, at most {MAX_HEAD_DIM}, on the GPU, got {value_dim}; pad v "
            "with zero columns, which out then has as well"
        )
    if not fits_gpu(head_dim, value_dim):
        raise UnsupportedError(
            f"v may have another width than q and k on the GPU where both are at most {MOST_APART}, got {value_dim} "
            f"beside {head_dim} (multi-head latent attention in its absorbed form has 512 beside 576); pad the "
            "narrower with zero columns to the width of the other, and pass scale"
        )
