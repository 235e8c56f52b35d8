"""Which bytes arrays take, counted from their addresses: whether two may meet is then a comparison in a warm call."""

from __future__ import annotations

from typing import TypeAlias

Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides in bytes
Range: TypeAlias = tuple[int, int]  # from, to


def byte_range(layout: Layout, item_bytes: int) -> Range:
    """The first byte of an array and the one past its last, counted from its address."""
    steps = [stride * (length - 1) for length, stride in zip(*layout, strict=True)]
    last = sum(step for step in steps if step > 0) + item_bytes
    return sum(step for step in steps if step < 0), last


def meeting(one: Range, other: Range) -> Range:
    """Between which distances of the address of `one` from that of `other` their bytes meet; exclusive both."""
    return other[0] - one[1], other[1] - one[0]
