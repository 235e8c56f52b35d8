"""Argument checks of the widths of heads: head_dim columns of q and k, value_dim columns of v, of the output and of
their gradients.
"""

from __future__ import annotations

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import MAX_HEAD_DIM
from omnicupy.jit.widths import kernel_widths


def out_shape(found: Problem) -> tuple[int, int, int, int]:
    """The shape of the output of a call, and of its gradient."""
    return found.batch, found.q_heads, found.q_len, found.value_dim


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
    kernel_widths(head_dim, value_dim)


def fits_gpu(head_dim: int, value_dim: int) -> bool:
    """Whether some kernel takes this pair of widths, each of which it would take for both."""
    try:
        kernel_widths(head_dim, value_dim)
    except UnsupportedError:
        return False
    return True
