"""The verification cases whose values have another width than keys, as what sets them apart from cases.BASE."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeAlias

Changes: TypeAlias = dict[str, Any]

# Of keys and of values: multi-head latent attention's, and widths that are rounded up. Each pair is compiled for each
# tile, dtype and soft cap.
WIDTHS = ((192, 128), (72, 40))
# Values wider and narrower, widths that are rounded up, alone and to the same number. Each pair is compiled for one
# tile of each kind of kernel, one dtype, and with a soft cap or without: its cases are tagged so.
MORE_WIDTHS = ((64, 128), (128, 64), (96, 64), (32, 256), (256, 40), (40, 48), (24, 8))
ONE_TILE = "one-tile"
MASKS = ("full", "causal", "segments", "bits", "holes", "window")
DTYPES = ("bfloat16", "float16")


def changes(split: int) -> Iterator[Changes]:
    """Fields of each Case. split: keys of a part, where rows are cut by length."""
    for i, (head_dim, value_dim) in enumerate(WIDTHS):
        for j, dtype in enumerate(DTYPES):
            both = {"head_dim": head_dim, "value_dim": value_dim, "dtype": dtype}
            yield from ({**both, **one} for one in chain(_tiles(i, j), _split(j, split)))
    for dtype in DTYPES:
        for mask in ("causal", "segments"):
            both = {"head_dim": 192, "value_dim": 128, "dtype": dtype}
            yield {**both, "mask": mask, "q_heads": 4, "q_len": 2048, "k_len": 2048}
    for i, (head_dim, value_dim) in enumerate(MORE_WIDTHS):
        both = {"head_dim": head_dim, "value_dim": value_dim, "dtype": DTYPES[i % 2]}
        capped = {"softcap": 20.0, "factor": 8, "sinks": True} if i % 4 > 1 else {}
        yield from ({**both, **capped, **one} for one in _with_one_tile(i, split))


def _tiles(i: int, j: int) -> Iterator[Changes]:
    """Every kind of tile, dead keys, layouts, soft caps and sinks, on the i-th pair of widths and the j-th dtype."""
    base = {"batch": 2, "q_heads": 4, "q_len": 130, "k_len": 330}
    yield {**base, "mask": MASKS[(i + j) % 6], "q_len": 260 + i}
    yield {**base, "mask": MASKS[(i + 3 * j + 2) % 6], "options": ("poison", "masks")}
    yield {**base, "mask": "segments", "options": (("bshd", "reversed")[j],), "q_len": 200, "k_len": 200}
    yield {**base, "mask": "segments", "softcap": 20.0, "factor": 8, "sinks": True}


def _with_one_tile(i: int, split: int) -> Iterator[Changes]:
    """Kinds of tiles, dead keys, few rows, split rows. Groups have four heads, so that tiles are those of the pair."""
    group = {"tag": ONE_TILE, "q_heads": 4, "kv_heads": 1}
    yield {**group, "mask": MASKS[i % 6], "batch": 2, "q_len": 260 + i, "k_len": 330}
    yield {
        **group,
        "mask": MASKS[(i + 2) % 6],
        "batch": 2,
        "q_len": 130,
        "k_len": 330,
        "options": ("poison", "masks"),
    }
    yield {**group, "mask": "segments", "batch": 2, "q_len": 200, "k_len": 200, "options": ("bshd",)}
    yield {**group, "mask": "full", "q_len": 1 + i, "k_len": 5000}
    yield {**group, "mask": "holes", "q_len": 5, "k_len": 1500, "split": split, "options": ("poison",)}


def _split(j: int, split: int) -> Iterator[Changes]:
    """Few rows with the heads of a group packed, and rows cut into parts."""
    group = {"q_heads": (8, 14)[j], "kv_heads": 1}
    yield from ({**group, "mask": "full", "q_len": q_len, "k_len": 5000} for q_len in (1, 9))
    yield {**group, "mask": "holes", "q_len": 5, "k_len": 1500, "split": split, "options": ("poison",)}
    yield {"batch": 2, "q_heads": 4, "mask": "causal", "q_len": 150, "k_len": 1200, "split": split}
