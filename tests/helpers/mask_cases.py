"""Seeded random masks of every constructor and combination, each with its brute-force pairs.

`random_case(rng)` draws a shape and a mask; `random_case(rng, q_len, k_len)` a mask of that shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mask_oracle as oracle
import numpy as np
from mask_oracle import Dense

from omnicupy.masks import constructors, segment_masks
from omnicupy.masks.mask import Mask

Rng = np.random.Generator
MOST = 700  # rows and keys


class Case(NamedTuple):
    """A mask, the pairs it must hold (q_len, k_len), and how it was made."""

    mask: Mask
    dense: Dense
    label: str


def upto(rng: Rng, high: int, low: int = 0) -> int:
    """A random integer from low to high, both included."""
    return int(rng.integers(low, high, endpoint=True))


def cut(rng: Rng, length: int, parts: int) -> list[int]:
    """Random positive lengths that add up to `length`, `parts` of them where there is room."""
    inner = rng.choice(length - 1, min(parts, length) - 1, replace=False) + 1 if length > 1 else []
    return np.diff([0, *sorted(int(i) for i in inner), length]).tolist()


def full(rng: Rng, q_len: int, k_len: int) -> Case:
    return Case(constructors.full(q_len, k_len), np.ones((q_len, k_len), np.bool_), "full")


def causal(rng: Rng, q_len: int, k_len: int) -> Case:
    return Case(constructors.causal(q_len, k_len), oracle.causal(q_len, k_len), "causal")


def sliding_window(rng: Rng, q_len: int, k_len: int) -> Case:
    left, right = upto(rng, 200), upto(rng, 60) if rng.random() < 0.5 else 0
    mask = constructors.sliding_window(q_len, k_len, left=left, right=right)
    return Case(mask, oracle.window(q_len, k_len, left, right), f"window({left}, {right})")


def sink(rng: Rng, q_len: int, k_len: int) -> Case:
    first = upto(rng, min(k_len, 40))
    return Case(constructors.sink(q_len, first, k_len), oracle.sink(q_len, first, k_len), f"sink({first})")


def ranges(rng: Rng, q_len: int, k_len: int) -> Case:
    bounds = [_rectangle(rng, q_len, k_len) for _ in range(upto(rng, 8))]
    return Case(
        constructors.ranges(bounds, q_len, k_len),
        oracle.rectangles(bounds, q_len, k_len),
        f"ranges({bounds})",
    )


def _rectangle(rng: Rng, q_len: int, k_len: int) -> tuple[int, int, int, int]:
    q0, k0 = upto(rng, q_len - 1), upto(rng, k_len - 1)
    return q0, upto(rng, q_len, q0 + 1), k0, upto(rng, k_len, k0 + 1)


def intervals(rng: Rng, q_len: int, k_len: int) -> Case:
    """Sorted bounds: disjoint intervals that may touch or be empty, equal for some keys, slots mixed."""
    n = upto(rng, 3, 1)
    hold = upto(rng, 80, 1)
    bounds = np.sort(rng.integers(0, q_len, (2 * n, -(-k_len // hold)), endpoint=True), axis=0)
    bounds = np.repeat(bounds, hold, axis=1)[:, :k_len]
    slots = rng.permutation(n)
    start, stop = bounds[0::2][slots], bounds[1::2][slots]
    return Case(
        constructors.intervals(start, stop, q_len), oracle.intervals(start, stop, q_len), f"intervals({n})"
    )


def from_dense(rng: Rng, q_len: int, k_len: int) -> Case:
    """Noise of some density, coarse or fine."""
    coarse = int(rng.choice([1, 1, 16, 64]))
    cells = rng.random((-(-q_len // coarse), -(-k_len // coarse))) < rng.choice([0.002, 0.3, 0.998])
    dense = np.repeat(np.repeat(cells, coarse, axis=0), coarse, axis=1)[:q_len, :k_len]
    return Case(constructors.from_dense(dense), dense, f"dense({coarse})")


def from_predicate(rng: Rng, q_len: int, k_len: int) -> Case:
    a, b, m = upto(rng, 5, 1), upto(rng, 5), upto(rng, 90, 2)
    rules: list[Callable[..., Dense]] = [
        lambda q, k: (a * q + b * k) % m < m // 2,
        lambda q, k: (q // m >= k // m) & (k % (a + 1) != 0),
        lambda q, k: (k + b <= q) | (k < m),
    ]
    rule = rules[upto(rng, 2)]
    dense = np.broadcast_to(rule(*oracle.axes(q_len, k_len)), (q_len, k_len))
    return Case(constructors.from_predicate(rule, q_len, k_len), dense, f"predicate({a}, {b}, {m})")


def _cropped(rng: Rng, q_len: int, k_len: int, make: Callable[[Rng, int], Case]) -> Case:
    """A square case, cut to the shape at a random place unless it already has it."""
    if q_len == k_len:
        return make(rng, q_len)
    square = make(rng, max(q_len, k_len))
    side = len(square.dense)
    q0, k0 = upto(rng, side - q_len), upto(rng, side - k_len)
    window = (slice(q0, q0 + q_len), slice(k0, k0 + k_len))
    mask = square.mask.rows(q0, q0 + q_len, k_len) if k0 == 0 else square.mask[window]
    return Case(mask, square.dense[window], f"{square.label}[{q0}:, {k0}:]")


def segments(rng: Rng, q_len: int, k_len: int) -> Case:
    def make(rng: Rng, length: int) -> Case:
        layout = [
            [
                (str(rng.choice(["text", "image", "noise"])), tokens)
                for tokens in cut(rng, sample, upto(rng, 7, 1))
            ]
            for sample in cut(rng, length, upto(rng, 4, 1))
        ]
        given = layout[0] if len(layout) == 1 else layout
        return Case(segment_masks.segments(given), oracle.segments(layout), f"segments({layout})")

    return _cropped(rng, q_len, k_len, make)


def documents(rng: Rng, q_len: int, k_len: int) -> Case:
    def make(rng: Rng, length: int) -> Case:
        lengths, is_causal = cut(rng, length, upto(rng, 6, 1)), bool(rng.random() < 0.5)
        kind = "text" if is_causal else "image"
        dense = oracle.segments([[(kind, tokens)] for tokens in lengths])
        return Case(segment_masks.documents(lengths, is_causal), dense, f"documents({lengths}, {is_causal})")

    return _cropped(rng, q_len, k_len, make)


def prefix(rng: Rng, q_len: int, k_len: int) -> Case:
    def make(rng: Rng, length: int) -> Case:
        first = upto(rng, length)
        return Case(constructors.prefix(length, first), oracle.prefix(length, first), f"prefix({first})")

    return _cropped(rng, q_len, k_len, make)


def random(rng: Rng, q_len: int, k_len: int) -> Case:
    def make(rng: Rng, length: int) -> Case:
        seed, parts = upto(rng, 10**6), upto(rng, min(length, 3), 1)
        mask = segment_masks.random(length, seed, text=(1, 60), image=(5, 150), documents=parts)
        return Case(mask, oracle.described(mask.segments), f"random({length}, {seed})")

    return _cropped(rng, q_len, k_len, make)


_SQUARE = (segments, documents, prefix, random)
_ANY = (full, causal, sliding_window, sink, ranges, intervals, from_dense, from_predicate)
LEAVES = {make.__name__: make for make in (*_ANY, *_SQUARE)}


def combined(rng: Rng, q_len: int, k_len: int, depth: int) -> Case:
    """Two cases joined by & or |, or one inverted; `depth` more levels below."""
    make = [LEAVES[name] for name in LEAVES]
    sign = str(rng.choice(["&", "|", "~"]))

    def part() -> Case:
        if depth > 1 and rng.random() < 0.5:
            return combined(rng, q_len, k_len, depth - 1)
        return make[upto(rng, len(make) - 1)](rng, q_len, k_len)

    a = part()
    if sign == "~":
        return Case(~a.mask, ~a.dense, f"~({a.label})")
    b = part()
    if sign == "&":
        return Case(a.mask & b.mask, a.dense & b.dense, f"({a.label}) & ({b.label})")
    return Case(a.mask | b.mask, a.dense | b.dense, f"({a.label}) | ({b.label})")


def random_shape(rng: Rng) -> tuple[int, int]:
    """Rows and keys from 1 to MOST, four times in ten the same; small ones are as frequent as large ones."""
    q_len, k_len = (upto(rng, MOST if rng.random() < 0.4 else 150, 1) for _ in range(2))
    return (q_len, q_len) if rng.random() < 0.4 else (q_len, k_len)


def random_case(
    rng: Rng, q_len: int | None = None, k_len: int | None = None, kind: str | None = None
) -> Case:
    """A case of that shape (drawn when q_len is None) and constructor or "combined" (drawn when None)."""
    if q_len is None or k_len is None:
        q_len, k_len = random_shape(rng)
    if kind is None:
        kind = str(rng.choice([*LEAVES, *["combined"] * 8]))
    if kind == "combined":
        return combined(rng, q_len, k_len, upto(rng, 3, 1))
    return LEAVES[kind](rng, q_len, k_len)
