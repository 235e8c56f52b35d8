"""How columns of Q, K and V lie in the shared memory of kernel "sm90": panels of 64 of them, a tile's rows in each.

Variants of several thread blocks a multiprocessor, which lack shared memory, keep a last panel of 16 or 32 columns as
narrow as it is (kernels/omni/sm90/forward/tail.cuh).
"""

from __future__ import annotations

PANEL = 64  # columns of a whole panel: rows of 128 bytes, the span of the 128-byte swizzle
TAILS = (16, 32)  # columns of a narrow one: spans of the others


def tail_columns(columns: int) -> int:
    """Columns that may lie in a narrow panel behind whole ones, of so many; 0 for none."""
    left = columns % PANEL
    return left if columns > PANEL and left in TAILS else 0


def row_bytes(columns: int, *, narrow: bool) -> int:
    """Bytes of a row of all panels. narrow: a last one may be narrow."""
    if narrow and tail_columns(columns):
        return 2 * columns
    return 2 * PANEL * -(-columns // PANEL)
