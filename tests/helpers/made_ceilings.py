"""Ceilings of the backward pass that are made up, near those of an H100."""

from __future__ import annotations

from omnicupy.choose.backward_ceilings import BackwardCeilings, KernelCeiling

PAIR_PS = {
    ("dkdv", 64, 128): 110.0,
    ("dkdv", 80, 128): 150.0,
    ("dkdv", 128, 128): 190.0,
    ("dkdv", 256, 64): 450.0,
    ("dq", 64, 192): 85.0,
    ("dq", 80, 128): 100.0,
    ("dq", 128, 128): 131.0,
    ("dq", 256, 128): 260.0,
    ("fused", 64, 128): 164.0,
    ("fused", 80, 128): 220.0,
    ("fused", 128, 128): 275.0,
    ("ordered", 64, 192): 170.0,
    ("ordered", 80, 128): 230.0,
    ("ordered", 128, 128): 285.0,
}
SHARED = {
    "dkdv": (20.0, 8.0, 0.0),
    "dq": (30.0, 10.0, 25.0),
    "fused": (40.0, 9.0, 0.0),
    "ordered": (40.0, 9.0, 0.0),
}
ITEM_US, MERGE_US = 3.0, 2.0  # of 128 x 128 elements
BACKWARD = BackwardCeilings(
    tuple(
        KernelCeiling(
            "sm90",
            part,
            head_dim,
            owned,
            pair,
            *SHARED[part],
            *(us * head_dim * owned / 128**2 for us in (ITEM_US, MERGE_US)),
        )
        for (part, head_dim, owned), pair in PAIR_PS.items()
    ),
    launch_us=12.0,
    megabyte_us=0.4,
    beside_us=0.2,
    memory_us=0.35,
    sources=("made.json",),
)
