"""Calls of check_backward.call, good but for what a test changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from check_calls import host, ndarray

from omnicupy.call import check_backward
from omnicupy.jit.backward_spec import BackwardSpec, TileShape

KV = (2, 2, 8, 16)
ROWS = (2, 4, 8)


def call(**changed: Any) -> check_backward.BackwardCall:
    """A good call on the CPU with some arguments changed."""
    arguments: dict[str, Any] = {name: host() for name in ("dout", "q", "out")}
    arguments |= {"k": host(KV), "v": host(KV), "lse": host(ROWS, np.float32)} | changed
    return check_backward.call(**arguments)


def gpu(**changed: Any) -> check_backward.BackwardCall:
    """A good call on the GPU with some arguments changed."""
    arrays: dict[str, Any] = {
        name: ndarray(shape, dtype, ptr=(i + 1) << 20)
        for i, (name, shape, dtype) in enumerate(
            (
                ("dout", (2, 4, 8, 16), np.float16),
                ("q", (2, 4, 8, 16), np.float16),
                ("out", (2, 4, 8, 16), np.float16),
                ("k", KV, np.float16),
                ("v", KV, np.float16),
                ("lse", ROWS, np.float32),
            )
        )
    }
    return check_backward.call(**(arrays | changed))


def backward_spec(**changed: Any) -> BackwardSpec:
    fields: dict[str, Any] = {"arch": "sm_80", "kernel": "sm80", "dtype": "float16", "head_dim": 16}
    tile = TileShape(64, 64, 1, 4)
    return BackwardSpec(**(fields | {"dkdv": tile, "dq": tile} | changed))
