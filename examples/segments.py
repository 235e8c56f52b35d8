"""A chat with images that grows: one mask for the prompt, its rows for the steps, and what attention costs.

Run: python examples/segments.py [--head-dim 64]. NumPy alone, so it runs anywhere; with CuPy arrays it is the
same code on their GPU.
"""

from __future__ import annotations

import argparse

import numpy as np

import omnicupy as oc


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--head-dim", type=int, default=64)
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    def project(heads: int, tokens: int) -> np.ndarray:
        """Stands for a model's projections: (batch, heads, tokens, head_dim)."""
        return rng.standard_normal((1, heads, tokens, options.head_dim), dtype=np.float32)

    mask = oc.segments([("text", 40), ("image", 256), ("text", 20)])
    tokens = mask.shape[0]
    q, k, v = project(8, tokens), project(2, tokens), project(2, tokens)  # 4 query heads a key head
    out, lse = oc.attention(q, k, v, mask, return_lse=True)
    print(mask)
    print(mask.stats(64, 64))
    print(f"prompt: {tokens} tokens, out {out.shape}, lse {lse.shape}")

    # A picture is drawn: its tokens see each other and the prompt, and later tokens do not see its noise.
    mask = mask.extend([("noise", 64)])
    step = mask.rows(tokens, tokens + 64)  # these rows against all keys, the cached ones included
    k = np.concatenate([k, project(2, 64)], axis=2)
    v = np.concatenate([v, project(2, 64)], axis=2)
    out = oc.attention(project(8, 64), k, v, step)
    print(f"denoising step: {step.shape[0]} rows against {step.shape[1]} keys, out {out.shape}")

    for _ in range(3):  # text follows, token by token
        mask = mask.extend([("text", 1)])
        last = mask.rows(mask.shape[0] - 1, mask.shape[0])
        k, v = (np.concatenate([cache, project(2, 1)], axis=2) for cache in (k, v))
        oc.attention(project(8, 1), k, v, last)
        print(f"token {mask.shape[0] - 1} sees {last.pairs} of {last.shape[1]} keys")


if __name__ == "__main__":
    main()
