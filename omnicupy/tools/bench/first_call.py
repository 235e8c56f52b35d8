"""`python -m omnicupy.tools.bench.first_call HEAD_DIM`: time the first calls of this process, print them as JSON.

CuPy is imported and the context made before the clock starts, as in any program that already has its arrays.
"""

from __future__ import annotations

import json
import sys
import time

import cupy

import omnicupy
from omnicupy.choose import pick
from omnicupy.tools.random_arrays import DTYPES


@pick.serve_every_kernel()
def main(head_dim: int) -> None:
    """Print the milliseconds of the first and the second call, and of another shape's first call."""
    q = cupy.zeros((1, 8, 1024, head_dim), "uint16").view(DTYPES["bfloat16"])
    mask = omnicupy.random(1024, 0)
    cupy.cuda.Device().synchronize()
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        omnicupy.attention(q, q, q, mask)
        cupy.cuda.Device().synchronize()
        took.append(1e3 * (time.perf_counter() - begin))
    print(json.dumps({"first_ms": round(took[0], 2), "second_ms": round(took[1], 3)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
