"""What the host costs: warm calls, first calls in fresh processes, mask building, the CPU engine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from omnicupy.api import attention
from omnicupy.cpu.blas import BLAS
from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.segment_masks import segments
from omnicupy.tools import environment
from omnicupy.tools.bench import host_torch
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.random_arrays import normals
from omnicupy.tools.workloads import model_masks

FIRST_CALL_LIMIT_S = 120
HOST_CALLS, HOST_ROUNDS = 100, 15  # the ways of calling in turn, so that a busy host reaches all alike
LONG_PACKS = 28  # the W1 pack repeated to 1,032,192 tokens
MIB = 2**20

Say = Callable[[str], None]


def warm_calls(record: Record, say: Say) -> None:
    """Host time of a warm call on the GPU, for the ways of calling that users have."""
    import cupy

    from omnicupy.masks.constructors import causal
    from omnicupy.tools.random_arrays import DTYPES, random_bits

    q, k, v = (
        random_bits((1, 8, 256, 64), seed, "bfloat16", 1.0, cupy).view(DTYPES["bfloat16"])
        for seed in (1, 2, 3)
    )
    mask, out = causal(256), cupy.empty_like(q)
    calls: dict[str, Callable[[], Any]] = {
        "mask": lambda: attention(q, k, v, mask),
        "no mask": lambda: attention(q, k, v),
        "mask, lse": lambda: attention(q, k, v, mask, return_lse=True),
        "mask, out": lambda: attention(q, k, v, mask, out=out),
    }
    ways = {(OURS, name): host_torch.Way(call) for name, call in calls.items()}
    ways |= host_torch.ways(q.shape, mask, say)
    synchronize = cupy.cuda.Device().synchronize
    rounds = [
        {name: way.host_us(synchronize, HOST_CALLS) for name, way in ways.items()} for _ in range(HOST_ROUNDS)
    ]
    of: dict[str, dict[str, float]] = {}
    for system, timed in ways:
        took = statistics.median(found[system, timed] for found in rounds)
        of.setdefault(system, {})[f"host_us, {timed}"] = round(took, 2)
    for system, figures in of.items():
        add(record, say, "warm call", figures, system)


def first_calls(record: Record, say: Say) -> None:
    """A first call in fresh processes: with an empty kernel cache, then with the cache that it left."""
    for head_dim in (64, 128):
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold", "warm"):
                found = [
                    first_call(head_dim, Path(folder) / str(turn if state == "cold" else 0))
                    for turn in range(3)
                ]
                figures = {name: statistics.median(one[name] for one in found) for name in found[0]}
                add(record, say, f"first call, {state} disk cache, D {head_dim}", figures)


def first_call(head_dim: int, cache: Path) -> dict[str, float]:
    """Milliseconds of a first call in a new process. Raises RuntimeError with what it printed when it
    fails.
    """
    command = [sys.executable, "-m", "omnicupy.tools.bench.first_call", str(head_dim)]
    surroundings = {**environment.of_child(), "OMNICUPY_CACHE_DIR": str(cache)}
    done = subprocess.run(
        command, env=surroundings, capture_output=True, text=True, timeout=FIRST_CALL_LIMIT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a fresh process failed: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def mask_building(record: Record, say: Say) -> None:
    """Building and tiling masks on one core: the W1 pack, and that pack repeated to a million tokens."""
    pack = model_masks.bagel_pack()
    packs = {"W1, 36,864 tokens": pack, "W1 repeated, 1,032,192 tokens": pack * LONG_PACKS}
    for name, documents in packs.items():
        turns = 50 if len(documents) < 100 else 7

        def build(documents: Any = documents) -> BlockMask:
            return segments(documents).blocks(128, 128)

        build()
        took = []
        for _ in range(turns):
            begin = time.perf_counter()
            build()
            took.append(1e3 * (time.perf_counter() - begin))
        tracemalloc.start()
        kept = build()
        peak = tracemalloc.get_traced_memory()[1] / MIB
        tracemalloc.stop()
        figures = {
            "ms": round(statistics.median(took), 4),
            "peak_mib": round(peak, 1),
            "tiles": int(kept.tiles.sum()),
        }
        add(record, say, f"mask build and cut at 128 x 128, {name}", figures)


def cpu_engine(record: Record, say: Say) -> None:
    """The CPU engine beside the same products alone: S 4096, D 64, 8 heads, causal text and images,
    float32.
    """
    mask = segments([part for _ in range(6) for part in (("text", 170), ("image", 512))] + [("text", 4)])
    q, k, v = (normals(8 * 4096 * 64, seed, np).reshape(1, 8, 4096, 64) for seed in (1, 2, 3))
    engine = _best(lambda: attention(q, k, v, mask))
    tiles = _runs(mask.blocks(128, 128))
    serial = _best(lambda: _products(q[0], k[0], v[0], tiles, 1))
    threaded = _best(lambda: _products(q[0], k[0], v[0], tiles, os.cpu_count() or 1))
    products = min(serial, threaded)
    figures = {"engine_ms": engine, "products_ms": products, "ratio": engine / products}
    add(record, say, "CPU engine, S 4096, D 64, 8 heads", {name: round(x, 3) for name, x in figures.items()})


def _runs(blocks: BlockMask) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """(first row, stop row, visited key ranges, neighbours joined) of each block row."""
    found = []
    for row in range(blocks.q_blocks):
        entries = blocks.entries[blocks.row_offsets[row] : blocks.row_offsets[row + 1]]
        spans: list[tuple[int, int]] = []
        for first, keys in sorted(entries[:, 2:].tolist()):
            stop = first + keys
            if spans and spans[-1][1] == first:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((first, stop))
        found.append((row * blocks.br, min((row + 1) * blocks.br, blocks.q_len), spans))
    return found


def _products(
    q: Any, k: Any, v: Any, tiles: Sequence[tuple[int, int, list[tuple[int, int]]]], workers: int
) -> None:
    """Q K^T and P V over the visited tiles of every head, nothing else."""

    def one(head: int) -> None:
        for q0, q1, spans in tiles:
            for k0, k1 in spans:
                (q[head, q0:q1] @ k[head, k0:k1].T) @ v[head, k0:k1]

    if workers == 1:
        for head in range(len(q)):
            one(head)
        return
    with BLAS.single(), ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(len(q))))


def _best(call: Callable[[], Any], turns: int = 7) -> float:
    """Median milliseconds after one warm-up call."""
    call()
    took = []
    for _ in range(turns):
        begin = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(took)


def add(record: Record, say: Say, workload: str, figures: dict[str, Any], system: str = OURS) -> None:
    """A row of figures."""
    record.add(workload=workload, system=system, figures=figures, **{"pass": "forward"})
    beside = "" if system == OURS else f", {system}"
    say(f"{workload}{beside}: {', '.join(f'{name} {value}' for name, value in figures.items())}")
