"""A packed training row of BAGEL: its mask from the data pipeline's lists, and what it saves.

Run: python examples/bagel_pack.py [--scale 0.05]. A scale of 1 is a row of 36,864 tokens, for a GPU: with CuPy
arrays in place of NumPy's it is the same code.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import omnicupy as oc

# One sample a line: (mode, tokens) of its splits, as the data pipeline packs them.
SAMPLES = [
    [
        *[("full", 1940), ("full", 752), ("causal", 33), ("noise", 2042), ("full", 2042), ("full", 622)],
        *[("causal", 16), ("noise", 3138)],  # an image, edited twice
    ],
    [("causal", 125), ("noise", 3137)],  # text to image
    [("full", 1570), ("full", 2900), ("causal", 332)],  # image to text
    [("causal", 972)],  # padding
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=0.05)
    options = parser.parse_args()
    splits = [
        [(mode, max(1, round(tokens * options.scale))) for mode, tokens in sample] for sample in SAMPLES
    ]
    start = time.perf_counter()
    mask = oc.presets.bagel(
        sample_lens=[sum(tokens for _, tokens in sample) for sample in splits],
        split_lens=[tokens for sample in splits for _, tokens in sample],
        attn_modes=[mode for sample in splits for mode, _ in sample],
    )
    blocks = mask.blocks(64, 64)
    took = time.perf_counter() - start
    tokens = mask.shape[0]
    print(f"{tokens} tokens, mask and {blocks.tiles.sum()} tiles in {took * 1e3:.1f} ms")
    print(mask.stats(64, 64))

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, heads, tokens, 32), dtype=np.float32) for heads in (4, 2, 2))
    out = oc.attention(q, k, v, mask)
    dense = oc.attention(q, k, v)
    changed = np.abs(out - dense).max(axis=(0, 1, 3)) > 1e-3
    print(f"without the mask {changed.mean():.0%} of the rows would be wrong")


if __name__ == "__main__":
    main()
