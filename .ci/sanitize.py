"""Small calls of every kernel, for compute-sanitizer: `compute-sanitizer --tool racecheck python .ci/sanitize.py sm90`.

Arguments: kernels (naive, sm80, sm90), and head_dims that they are limited to. Each row of the table runs documents,
windows, keys that no row sees, grouped heads, ragged lengths, rows that are split, and calls that read what the one
before wrote.
"""

from __future__ import annotations

from collections.abc import Iterator

import cupy
import numpy as np

import omnicupy as oc
from omnicupy.choose import table, variants
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.mask import Mask
from omnicupy.tools.random_arrays import DTYPES, random_bits

Q_LEN, K_LEN = 300, 420


def masks() -> Iterator[tuple[str, Mask]]:
    """Named masks of Q_LEN rows and K_LEN keys, and one long row block."""
    rng = np.random.default_rng(0)
    packed = [[("text", 40), ("image", 90), ("noise", 60), ("text", 30)], [("text", 20), ("noise", 60)]]
    yield "documents", oc.segments(packed)
    yield "causal", oc.causal(Q_LEN, K_LEN)
    yield "window", oc.sliding_window(Q_LEN, K_LEN, left=70) | oc.sink(Q_LEN, 5, K_LEN)
    yield "dead keys", oc.ranges([(0, Q_LEN, 0, 30), (10, 90, 250, 390), (200, 290, 100, 200)], Q_LEN, K_LEN)
    yield "bits", oc.from_dense(rng.random((Q_LEN, K_LEN)) < 0.3)
    yield "long", oc.full(64, 4096)


def specs(kernel: str, head_dims: set[int]) -> Iterator[AttnSpec]:
    """The rows of a kernel that an H100 runs, in bfloat16; the naive kernel has none and takes one of its own."""
    found = [spec for spec in table.rows() if spec.kernel == kernel and spec.arch in ("sm_90", "sm_90a")]
    if kernel == "naive":
        found = [AttnSpec(arch="sm_90", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)]
    for spec in found:
        if spec.dtype == "bfloat16" and (not head_dims or spec.head_dim in head_dims):
            yield spec


def call(spec: AttnSpec, mask: Mask) -> None:
    """Three calls; the second one reads what the first one wrote."""
    heads, kv_heads = (2, 1) if spec.head_dim <= 256 else (1, 1)
    (q_len, k_len), d = mask.shape, spec.head_dim
    shapes = [(1, heads, q_len, d), (1, kv_heads, k_len, d), (1, kv_heads, k_len, d)]
    q, k, v = (
        random_bits(shape, seed, spec.dtype, 1.0, cupy).view(DTYPES[spec.dtype])
        for seed, shape in enumerate(shapes)
    )
    dead = cupy.asarray(np.flatnonzero(mask.dead_keys()))
    k[:, :, dead], v[:, :, dead] = np.nan, np.nan
    out, _ = oc.attention(q, k, v, mask, config=spec, return_lse=True)
    out = oc.attention(out, k, v, mask, config=spec)
    oc.attention(out, k, v, mask, config=spec)
    cupy.cuda.Device().synchronize()
    assert bool(cupy.isfinite(out.astype(np.float32)).all()), (spec, "NaN from dead keys")


def main(words: list[str]) -> None:
    kernels = [word for word in words if not word.isdigit()] or ["naive", "sm80", "sm90"]
    count = 0
    for kernel in kernels:
        for spec in specs(kernel, {int(word) for word in words if word.isdigit()}):
            for name, mask in masks():
                print(f"{variants.word(spec)} d{spec.head_dim} {name}", flush=True)
                call(spec, mask)
                count += 3
    if not count:
        raise SystemExit(f"no row of the table is asked for by {words}: kernels are naive, sm80 and sm90")
    print(f"{count} calls")


if __name__ == "__main__":
    from usage import words

    main(words(__doc__, known=("naive", "sm80", "sm90")))
