"""Random verification cases, the same for the same number."""

from __future__ import annotations

import numpy as np

from omnicupy.tools.verify.cases import BSHD, PER_BATCH, POISON, Case

DEFAULT = 1200  # cases of a GPU run
RATIOS = (1, 2, 3, 4, 7, 8)
# head_dims above 256; few, each costs compilations
WIDE = (264, 288, 320, 384, 448, 512, 640, 768, 1000, 1024)
MASKS = (
    "segments",
    "documents",
    "causal",
    "window",
    "streams",
    "ranges",
    "full",
    "sink",
    "prefix",
    "bits",
    "holes",
)
MOST_SCORES = 2**27  # float64 scores of one reference: 1 GiB


def sweep(count: int) -> tuple[Case, ...]:
    """`count` random cases: lengths up to 4,096, a third of them with q_len != k_len, all head ratios in
    turn, head_dim any multiple of 8 up to 256 and one in eight above, one in four with poisoned dead
    keys.
    """
    return tuple(_draw(index) for index in range(count))


def _draw(index: int) -> Case:
    rng = np.random.default_rng([20260101, index])
    q_len = _length(rng)
    k_len = _length(rng) if index % 3 == 0 else q_len
    if index % 3 == 0 and k_len == q_len:
        k_len = q_len % 4096 + 1
    poisoned = index % 4 == 1 and k_len >= 16
    wide = index % 16 in (5, 12)
    head_dim = int(rng.choice(WIDE)) if wide else 8 * int(rng.integers(1, 33))
    ratio = RATIOS[index % len(RATIOS)]
    batch = int(rng.integers(1, 4))
    kv_heads = int(rng.integers(1, 4))
    while batch * kv_heads * ratio * q_len * k_len > MOST_SCORES and batch * kv_heads > 1:
        batch, kv_heads = (batch - 1, kv_heads) if batch > 1 else (batch, kv_heads - 1)
    options = [POISON] if poisoned else []
    if index % 5 == 2:
        options.append(BSHD)
    if batch > 1 and index % 2:
        options.append(PER_BATCH)
    # Poisoned cases need keys that rows see beside the dead ones, so no mask that may be all but empty.
    masks = MASKS[:9] if poisoned else MASKS
    return Case(
        group="random",
        mask=masks[int(rng.integers(len(masks)))],
        dtype=("bfloat16", "float16")[int(rng.integers(2))],
        head_dim=head_dim,
        q_len=q_len,
        k_len=k_len,
        q_heads=kv_heads * ratio,
        kv_heads=kv_heads,
        batch=batch,
        options=tuple(options),
        tag=f"r{index:03d}",
    )


def _length(rng: np.random.Generator) -> int:
    """Short lengths as often as long ones; few are multiples of a tile."""
    return int(rng.integers(1, 701)) if rng.random() < 0.6 else int(rng.integers(701, 4097))
