"""The widths of kernels for tensors of two widths: that of queries and keys, and that of values."""

from __future__ import annotations

from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import MAX_ONE_PIECE, round_up


def kernel_widths(head_dim: int, value_dim: int) -> tuple[int, int]:
    """AttnSpec's head_dim and value_dim for tensors: each rounded up to 16.

    Kernels whose two widths are equal take tensors of one width alone: they read one number for both. So where other
    widths of tensors round up to the same number, there are 16 more columns for the values.
    Raises UnsupportedError where no kernel serves both: other widths of which one is above 256, 248 beside 256.
    """
    columns, of_values = round_up(head_dim, 16), round_up(value_dim, 16)
    if head_dim == value_dim:
        return columns, of_values
    if columns == of_values:
        of_values += 16
    if max(columns, of_values) > MAX_ONE_PIECE:
        raise UnsupportedError(
            f"v has {value_dim} columns where q and k have {head_dim}: kernels of a GPU take another width of v where "
            f"both are at most {MAX_ONE_PIECE} (such as 128 beside 192; not 248 beside 256), and none takes the 512 "
            "beside 576 of absorbed multi-head latent attention; pad the narrower one with zero columns and pass scale"
        )
    return columns, of_values
