"""The workloads W1 to W15 built from presets: the masks that the benchmarks have, with their densities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest

import omnicupy as oc
from omnicupy import presets
from omnicupy.masks.mask import Mask
from omnicupy.tools.bench.preset_build import LAYOUTS, TOKENS
from omnicupy.tools.workloads.workload import NAMED

Document = list[tuple[str, int]]
MODES = {"c": "causal", "f": "full", "n": "noise"}


def edit(*sizes: int) -> Document:
    return list(zip("ffcnffcn", sizes, strict=True))


def generate(text: int, noise: int) -> Document:
    return [("c", text), ("n", noise)]


def understand(first: int, second: int, text: int) -> Document:
    return [("f", first), ("f", second), ("c", text)]


def bagel(*samples: Document) -> Mask:
    splits = [split for sample in samples for split in sample]
    sizes = np.array([size for _, size in splits])
    lengths = [sum(size for _, size in sample) for sample in samples]
    return presets.bagel(lengths, sizes, [MODES[mode] for mode, _ in splits])


W1 = (
    edit(1940, 752, 33, 2042, 2042, 622, 16, 3138),
    generate(125, 3137),
    understand(1570, 2900, 332),
    edit(1674, 1190, 44, 2657, 2657, 677, 34, 1367),
    generate(99, 2076),
    understand(2459, 1838, 471),
    [("c", 972)],
)
W3: Document = [
    *[("f", 1602), ("f", 786)],
    *[("c", 48), ("n", 1602), ("f", 1602), ("f", 786)] * 3,
    *[("c", 48), ("n", 1602)],
]


def text_skips_vae() -> Mask:
    """W3, and text rows do not see clean VAE tokens."""
    kinds = np.repeat([0 if kind == "c" else 1 for kind, _ in W3], [size for _, size in W3])
    clean = np.repeat([kind == "f" and size == 1602 for kind, size in W3], [size for _, size in W3])
    return bagel(W3) & oc.from_predicate(lambda q, k: (kinds[q] == 1) | ~clean[k], len(kinds))


def spread(texts: list[int], size: int) -> list[tuple[int, int]]:
    """Images of `size` tokens, each after so many tokens of text."""
    return [(stop - size, size) for stop in accumulate(text + size for text in texts)]


def every(first: int, step: int, count: int, size: int) -> list[tuple[int, int]]:
    return [(first + step * j, size) for j in range(count)]


GRIDS = ((36, 36), (28, 42), (22, 30), (45, 33), (18, 26), (40, 24), (30, 30), (26, 38))


def windows() -> np.ndarray:
    """cu_seqlens of windows of 4 x 4 cells, 4 patches a cell."""
    sizes = [
        4 * min(4, height - top) * min(4, width - left)
        for height, width in GRIDS
        for top in range(0, height, 4)
        for left in range(0, width, 4)
    ]
    assert len(sizes) == 543
    return np.cumsum([0, *sizes]).astype(np.int32)


HUNYUAN = [(400, 5120), (5780, 4096)]
W12 = (
    *(4096, 300, 1500, 700, 6000, 250, 900, 2100, 512, 3300),
    *(128, 1800, 420, 2600, 1000, 90, 3900, 640, 1532, 1000),
)
# Densities in per cent, to the digits of the table; W7 stands there rounded twice, from 6.2494.
BUILD: dict[str, tuple[str, Callable[[], Mask]]] = {
    "W1": ("11.4", lambda: bagel(*W1)),
    "W2": (
        "34.9",
        lambda: bagel(edit(2546, 386, 40, 1314, 1314, 886, 41, 2459), generate(58, 1847), [("c", 629)]),
    ),
    "W3": ("39.5", lambda: bagel(W3)),
    "W3m": ("", text_skips_vae),
    "W4": ("56.1", lambda: presets.show_o2(5120, spread([120, *[90] * 5], 729))),
    "W5": (
        "51.8",
        lambda: presets.transfusion(4096, spread([150, 180, 40, 120, 60, 190, 30, 160, 110], 256)),
    ),
    "W6": ("72", lambda: presets.hunyuan_image3(9877, HUNYUAN)),
    "W6b": ("99.98", lambda: presets.hunyuan_image3(9877, HUNYUAN).rows(5779, 9876)),
    "W7": ("6.25", lambda: presets.gemma3(16384, every(100, 1000, 16, 256), 1024)),
    "W7g": ("50.2", lambda: presets.gemma3(16384, every(100, 1000, 16, 256))),
    "W7c": ("7.9", lambda: presets.gemma3(16384, every(100, 2000, 8, 1120), 1024)),
    "W8": ("0.19", lambda: presets.varlen(windows())),
    "W8f": ("13.7", lambda: presets.packed([4 * h * w for h, w in GRIDS], causal=False)),
    "W9": ("20.8", lambda: presets.mllama(4096, [(20, 4), (700, 2), (701, 4), (2200, 1)])),
    "W10": ("57.1", lambda: presets.self_forcing(21, 1560, 3)),
    "W10t": ("28.6", lambda: presets.self_forcing(21, 1560, 3, True, layout="split")),
    "W10i": ("28.6", lambda: presets.self_forcing(21, 1560, 3, True, layout="interleaved")),
    "W11": ("25.2", lambda: presets.bd3lm(4096, 32)),
    "W12": ("4.8", lambda: presets.packed(W12)),
    "W13": ("5.9", lambda: presets.streaming(32768, 4, 2000)),
    "W14": ("99.3", lambda: presets.tree(8192, [-1, *[max(0, i - 1 - (7 * i) % 8) for i in range(1, 64)]])),
    "W15": ("94.6", lambda: presets.paligemma(1088, 1152)),
}


@pytest.mark.parametrize("name", NAMED)
def test_workload(name: str) -> None:
    percent, build = BUILD[name]
    mask = build()
    assert mask == NAMED[name].mask()
    if percent:
        decimals = len(percent.partition(".")[2])
        assert f"{100 * mask.pairs / (mask.shape[0] * mask.shape[1]):.{decimals}f}" == percent


@pytest.mark.parametrize("name", LAYOUTS)
def test_masks_of_36864_tokens_are_short_intervals(name: str) -> None:
    mask = LAYOUTS[name]()
    assert mask.shape[1] == TOKENS
    assert mask.intervals is not None  # memory and time follow the tokens, not their pairs
    assert len(mask.intervals[0]) <= 2
    assert mask.blocks(128, 128).bit_tiles.size == 0


def test_every_preset_of_intervals_is_timed() -> None:
    trees = {"tree"}  # bits
    assert {name.partition(",")[0] for name in LAYOUTS} == set(presets.__all__) - trees
