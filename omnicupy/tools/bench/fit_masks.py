"""The workloads that the cost model of the backward pass is fitted on and judged by, and the forms of a pass."""

from __future__ import annotations

from omnicupy.tools.bench.records import OURS
from omnicupy.tools.workloads.workload import NAMED


def dense(head_dims: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[str, ...]:
    """The names of full and causal masks of these widths and lengths."""
    return tuple(
        f"{kind}-d{head_dim}-s{length}"
        for head_dim in head_dims
        for length in lengths
        for kind in ("full", "causal")
    )


# The forms of our backward pass, each of which the cost model describes.
FORMS = tuple(f"{OURS}{word}" for word in ("", ":any-order", ":split", ":dkdv-alone", ":dq-alone"))
# Masks of several densities, lengths, groups and batches; none of them is one that the model is judged by.
FIT_D128 = (
    *dense((128,), (1024, 4096, 16384)),
    *("full-d128-s512-h16-k16-b2", "causal-d128-s2048-h28-k4-b1", "causal-d128-s8192-h32-k8-b2"),
    *("causal-d128-s32768-h28-k4-b1", "full-d128-s6144-h12-k12-b1", "decode-d128-s8192-q2048-h32-k8-b1"),
    *(f"sparse-d128-s16384-p{share}-seed0-h28-k4-b1" for share in (500, 250, 100, 50, 20)),
    *("sparse-d128-s32768-p100-seed1-h32-k8-b1", "sparse-d128-s4096-p600-seed1-h32-k32-b4"),
    *("sparse-d128-s8192-p150-seed2-h32-k32-b1", "random-d128-s16384-seed40-h16-k16-b1"),
    *("random-d128-s2048-seed41-h28-k4-b8", "random-d128-s4096-seed42-h32-k8-b2"),
    "sparse-d128-s32768-p2-seed0-h16-k16-b1",
)
FIT_D256 = (
    *dense((256,), (1024, 4096, 16384)),
    *("causal-d256-s8192-h8-k4-b1", "full-d256-s2048-h8-k1-b1", "random-d256-s8192-seed40-h8-k4-b1"),
    *(f"sparse-d256-s16384-p{share}-seed0-h8-k4-b1" for share in (500, 200, 60, 20)),
    "random-d256-s2048-seed41-h8-k8-b4",
)
FIT_D64 = (
    *dense((64,), (1024, 4096, 16384)),
    *("causal-d64-s8192-h32-k8-b1", "random-d64-s8192-seed40", "random-d64-s2048-seed41-h16-k16-b2"),
    *(f"sparse-d64-s16384-p{share}-seed0" for share in (500, 200, 60, 20)),
    "sparse-d64-s32768-p2-seed0-h16-k16-b1",
    *("full-d64-s8192", "full-d64-s32768"),  # a tile of their own in one order
)
FIT_D80 = (
    *("full-d80-s4096-h16-k16-b4", "causal-d80-s16384-h16-k16-b1", "sparse-d80-s16384-p200-seed0-h16-k16-b1"),
    *("sparse-d80-s32768-p20-seed0-h16-k16-b1", "random-d80-s4096-seed40-h16-k16-b2"),
    "sparse-d80-s32768-p2-seed0-h16-k16-b1",
)
FIT_D192 = (
    *("full-d192-s4096-h8-k8-b4", "causal-d192-s16384-h8-k8-b1", "random-d192-s4096-seed40-h8-k4-b2"),
    "sparse-d192-s16384-p200-seed0-h8-k4-b1",
)
# What the model is judged by: W1 to W13, and random masks of other seeds than any other suite's.
UNSEEN = (
    *(name for name in NAMED if name not in ("W14", "W15")),
    *(f"random-d64-s{rest}" for rest in ("8192-seed100", "16384-seed101", "1024-seed102")),
    *(
        "random-d128-s16384-seed103",
        "random-d128-s8192-seed104-h28-k4-b1",
        "random-d128-s2048-seed105-h28-k4-b8",
    ),
    *(
        "random-d128-s32768-seed106-h32-k8-b1",
        "random-d256-s8192-seed107",
        "random-d256-s4096-seed108-h8-k4-b2",
    ),
    "random-d80-s8192-seed109-h16-k16-b1",
)
