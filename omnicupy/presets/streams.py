"""Two copies of a sequence, clean and noisy, in blocks: the layouts of teacher forcing and block diffusion."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from omnicupy.masks import intervals
from omnicupy.masks.intervals import Intervals
from omnicupy.masks.mask import Mask
from omnicupy.presets import arguments

Blocks = tuple[Intervals, arguments.Whole]  # the intervals of each block of keys, and its tokens


def noisy_then_clean(edges: arguments.Whole, base: int) -> Blocks:
    """One sequence with blocks [edges[i], edges[i + 1]) as [noisy | clean], whose rows begin at `base`."""
    first, stop, half = edges[:-1], edges[1:], int(edges[-1])
    nothing = np.zeros_like(first)
    # clean block 0 is seen by all rows but those of noisy block 0: one range
    begins, ends = np.where(first == 0, 2 * half, half + first), np.where(first == 0, 2 * half, half)
    clean = [(base + stop, base + ends), (base + begins, nothing + base + 2 * half)]
    noisy = [(base + first, base + stop), (nothing, nothing)]
    start, end = (
        np.array([np.concatenate([copy[slot][side] for copy in (noisy, clean)]) for slot in (0, 1)], np.int32)
        for side in (0, 1)
    )
    return (start, end), np.tile(stop - first, 2)


def packed(samples: list[arguments.Whole]) -> Mask:
    """The edges of each sample's blocks as [noisy | clean], one sample after the other, none of which sees another."""
    total, parts = 0, []
    for edges in samples:
        parts.append(noisy_then_clean(edges, total))
        total += 2 * int(edges[-1])
    start, stop = (np.concatenate([pairs[side] for pairs, _ in parts], axis=1) for side in (0, 1))
    sizes = np.concatenate([sizes for _, sizes in parts])
    lo, hi = (np.repeat(side, sizes, axis=1) for side in intervals.tidy(start, stop))
    return Mask((total, total), intervals=(lo, hi))


def ranked(edges: arguments.Whole, ranks: int) -> Mask:
    """Blocks of a clean and a noisy copy, each cut into `ranks` equal parts: [clean 0, noisy 0, clean 1, ...]."""
    half = int(edges[-1])
    part = half // ranks
    found = []
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        own = _pieces(first, stop, part)
        for k0, k1 in own:  # places in the copies; rows of the clean one, rows of the noisy one
            clean, noisy = _place(k0, part, 0), _place(k0, part, 1)
            found += [(q0, q1, clean, clean + k1 - k0) for q0, q1 in _placed(first, half, part, 0)]
            found += [(q0, q1, clean, clean + k1 - k0) for q0, q1 in _placed(stop, half, part, 1)]
            found += [(q0, q1, noisy, noisy + k1 - k0) for q0, q1 in _placed(first, stop, part, 1)]
    bounds = np.array(found, np.int64).reshape(-1, 4)
    return Mask((2 * half, 2 * half), intervals=intervals.rectangles(bounds, 2 * half, 2 * half))


def _pieces(first: int, stop: int, part: int) -> list[tuple[int, int]]:
    """[first, stop) cut at the multiples of `part`."""
    cuts = [first, *range((first // part + 1) * part, stop, part), stop]
    return [(a, b) for a, b in pairwise(cuts) if a < b]


def _place(token: int, part: int, copy: int) -> int:
    """Where a token of the clean (0) or noisy (1) copy lies."""
    return (2 * (token // part) + copy) * part + token % part


def _placed(first: int, stop: int, part: int, copy: int) -> list[tuple[int, int]]:
    """Where tokens [first, stop) of a copy lie."""
    if first >= stop:
        return []
    pieces = _pieces(first, stop, part)
    return [(_place(a, part, copy), _place(a, part, copy) + b - a) for a, b in pieces]
