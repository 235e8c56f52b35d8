"""The masks of the verification cases: for every kind one of any shape, drawn from a random generator."""

from __future__ import annotations

import numpy as np

from omnicupy.masks.constructors import (
    causal,
    from_dense,
    full,
    intervals,
    prefix,
    ranges,
    sink,
    sliding_window,
)
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import random
from omnicupy.masks.tile_masks import from_tiles

MASK_KINDS = (
    *("full", "causal", "segments", "documents", "window", "sink", "prefix", "ranges", "streams", "bits"),
    *("holes", "empty", "tiles", "tree", "lengths"),
)


def build(kind: str, q_len: int, k_len: int, rng: np.random.Generator) -> Mask:
    """A mask (q_len, k_len) of a kind; square layouts are cut to it, as a KV cache does where q_len <
    k_len.
    """
    if kind in ("full", "causal"):
        return full(q_len, k_len) if kind == "full" else causal(q_len, k_len)
    if kind == "window":
        return sliding_window(q_len, k_len, left=_upto(rng, k_len), right=_upto(rng, k_len // 4))
    if kind == "sink":
        window = sliding_window(q_len, k_len, left=_upto(rng, k_len // 2))
        return (window | sink(q_len, min(4, k_len), k_len)) & causal(q_len, k_len)
    if kind == "ranges":
        return ranges([_rectangle(q_len, k_len, rng) for _ in range(6)], q_len, k_len)
    if kind == "holes":
        # Rows that see nothing, in the middle of tiles and as whole tiles.
        first = _upto(rng, q_len - 1)
        stop = min(q_len, first + 1 + _upto(rng, q_len // 2))
        return full(q_len, k_len) & ~ranges([(first, stop, 0, k_len)], q_len, k_len)
    if kind == "bits":
        return from_dense(rng.random((q_len, k_len)) < rng.uniform(0.05, 0.95))
    if kind == "empty":
        return ranges([], q_len, k_len)
    if kind == "tiles":
        return _tiles(q_len, k_len, rng)
    if kind == "tree":
        return _tree(q_len, k_len, rng)
    if kind == "lengths":  # the last keys are those of a cache that are not used yet
        return ranges([(0, q_len, 0, k_len - _upto(rng, k_len // 2))], q_len, k_len)
    return _cut(_square(kind, max(q_len, k_len), rng), q_len, k_len)


def alive(q_len: int, k_len: int, rng: np.random.Generator) -> Mask:
    """All rows see all keys but some: single keys everywhere, and a run of them. At least one key stays,
    one goes.
    """
    dead = rng.random(k_len) < 0.1
    first = _upto(rng, k_len - 1)
    dead[first : first + 1 + _upto(rng, min(40, k_len // 4))] = True
    if k_len > 1:
        dead[(first + k_len // 2) % k_len] = False
    stop = np.where(dead, 0, q_len)
    return intervals(np.zeros(k_len, np.int64), stop, q_len)


def live_rows(q_len: int, k_len: int, rng: np.random.Generator) -> Mask:
    """All rows see all keys but some rows, which see none: single ones everywhere, and a run of them. At least one
    row stays, one goes where there are two.
    """
    dead = rng.random(q_len) < 0.05
    first = _upto(rng, q_len - 1)
    dead[first : first + 1 + _upto(rng, min(100, q_len // 4))] = True
    dead[(first + q_len // 2) % q_len] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dead, [0]]).astype(np.int8)))
    gone = [(int(start), int(stop), 0, k_len) for start, stop in edges.reshape(-1, 2)]
    return full(q_len, k_len) & ~ranges(gone, q_len, k_len)


def _tiles(q_len: int, k_len: int, rng: np.random.Generator) -> Mask:
    """Lists of key blocks, kept as lists; every second mask is cut by the diagonal, too."""
    br, bc = (int(rng.choice([16, 48, 64, 100, 128])) for _ in range(2))
    grid = -(-q_len // br), -(-k_len // bc)
    chosen = rng.random(grid) < rng.uniform(0.1, 0.7)
    chosen[rng.integers(grid[0]), rng.integers(grid[1])] = True
    made = from_tiles(chosen, q_len, k_len, br, bc)
    assert isinstance(made, Mask)
    return made & causal(q_len, k_len) if rng.random() < 0.5 else made


def _tree(q_len: int, k_len: int, rng: np.random.Generator) -> Mask:
    """A tree of drafts: all rows see the keys before the last q_len ones, of which each sees itself and some."""
    tail = rng.random((q_len, q_len)) < rng.uniform(0.1, 0.6)
    np.fill_diagonal(tail, True)
    seen = np.ones((q_len, max(q_len, k_len)), bool)
    seen[:, -q_len:] = tail
    return from_dense(np.ascontiguousarray(seen[:, -k_len:]))


def _square(kind: str, length: int, rng: np.random.Generator) -> Mask:
    seed = int(rng.integers(2**31))
    if kind == "prefix":
        return prefix(length, _upto(rng, length))
    if kind == "streams":
        return _streams(length, rng)
    text, image = (max(1, length // 40), max(2, length // 12)), (max(1, length // 16), max(2, length // 5))
    documents = min(length, 4) if kind == "documents" else None
    return random(length, seed, text=text, image=image, documents=documents)


def _streams(length: int, rng: np.random.Generator) -> Mask:
    """Noisy and clean copies of one sequence, in blocks: two row ranges for each clean key."""
    half = -(-length // 2)
    block = 1 + _upto(rng, max(1, half // 3))
    rectangles = []
    for first in range(0, half, block):
        stop = min(half, first + block)
        rectangles += [(first, stop, first, stop), (half + first, half + stop, half, half + stop)]
        if first:
            rectangles.append((first, stop, half, half + first))
    return ranges(rectangles, 2 * half)[:length, :length]


def _cut(mask: Mask, q_len: int, k_len: int) -> Mask:
    if mask.shape == (q_len, k_len):
        return mask
    return mask.rows(k_len - q_len, k_len) if q_len < k_len else mask[:, :k_len]


def _rectangle(q_len: int, k_len: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    q0, k0 = _upto(rng, q_len - 1), _upto(rng, k_len - 1)
    return q0, min(q_len, q0 + 1 + _upto(rng, q_len // 3)), k0, min(k_len, k0 + 1 + _upto(rng, k_len // 2))


def _upto(rng: np.random.Generator, most: int) -> int:
    return int(rng.integers(0, max(0, most), endpoint=True))
