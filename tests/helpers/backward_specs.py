"""Kernels of backward passes, as what BackwardSpec is made of."""

from __future__ import annotations

from typing import Any

from omnicupy.jit.backward_kernel import TileShape

SM80: dict[str, Any] = {
    "arch": "sm_90",
    "kernel": "sm80",
    "dtype": "bfloat16",
    "head_dim": 64,
    "dkdv": TileShape(64, 128, 2, 4),
    "dq": TileShape(128, 64, 2, 4),
}
SM90: dict[str, Any] = SM80 | {
    "arch": "sm_90a",
    "kernel": "sm90",
    "head_dim": 128,
    "dkdv": TileShape(64, 128, 2, 12),
    "dq": TileShape(128, 128, 4, 12),
}
NAIVE: dict[str, Any] = SM80 | {"kernel": "naive"}
WIDE: dict[str, Any] = SM90 | {
    "head_dim": 256,
    "dkdv": TileShape(64, 64, 2, 12),
    "dq": TileShape(128, 64, 3, 12),
}
