"""What sinks and soft caps cost: the forward pass with one of them, beside the same call without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omnicupy.api import attention
from omnicupy.call.arrays import module_of, narrow, widen
from omnicupy.reference import checked_rows
from omnicupy.tools.bench.measure import Session, add_row, make_inputs, reason, rounded
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.random_arrays import normals
from omnicupy.tools.workloads.workload import Workload

SUITE = "scores"
WORKLOADS = ("full-d128-s16384", "causal-d128-s16384")
SOFTCAP = 50.0  # Gemma 2's
LARGE = 8  # times random normal queries: scores that reach the cap
NONE, SINK, CAP = f"{OURS}:none", f"{OURS}:sink", f"{OURS}:softcap"
NONE_LARGE, CAP_LARGE = f"{NONE}-q8", f"{CAP}-q8"
SYSTEMS = (NONE, SINK, CAP, NONE_LARGE, CAP_LARGE)
OVER = "time over none"  # of figures


def measure(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """Add a row per system to the record. systems: of SYSTEMS. What cannot run or is wrong gets a row that says why."""
    import cupy

    mask = workload.mask()
    q, k, v = make_inputs(workload, mask, session.dtype)
    queries = {NONE: q, NONE_LARGE: times(q, LARGE)}
    calls: dict[str, Callable[[], Any]] = {}
    known: dict[str, dict[str, Any]] = {}
    for name in systems:
        session.say(f"{workload.name}: {name}")
        try:
            arrays, how = (queries[base_of(name)], k, v), options(name, workload.q_heads, module_of(q))
            calls[name] = _call(arrays, mask, how)
            error = checked_rows.CheckedRows(arrays, mask, **how).error(calls[name]())
            known[name] = {"error": error, "correct": error <= checked_rows.TOLERANCE}
        except Exception as error:  # what cannot run is its row's result
            calls.pop(name, None)
            add_row(session, workload, mask, name, {"problem": reason(error)})
    times_of = session.clock.interleaved(calls, session.samples)
    for name, took in times_of.items():
        figures = {
            "ms": took.median_ms,
            "p10_ms": took.p10_ms,
            "p90_ms": took.p90_ms,
            "samples": took.samples,
        }
        figures |= {"tflops": workload.flops(mask.pairs) / took.median_ms / 1e9, **known[name]}
        if base_of(name) in times_of:
            figures["figures"] = rounded({OVER: took.median_ms / times_of[base_of(name)].median_ms})
        add_row(session, workload, mask, name, figures, f"{figures['tflops']:.0f} TFLOP/s")
    del calls
    cupy.get_default_memory_pool().free_all_blocks()


def base_of(name: str) -> str:
    """The system on the same inputs whose scores nothing changes. Raises ValueError for a system of no such suite."""
    if name not in SYSTEMS:
        raise ValueError(f"{name}: the suite has {', '.join(SYSTEMS)}")
    return NONE_LARGE if name in (NONE_LARGE, CAP_LARGE) else NONE


def options(name: str, heads: int, xp: Any) -> dict[str, Any]:
    """What a system changes of scores, as `attention` takes it."""
    if name == SINK:
        return {"sink_logits": xp.asarray(normals(heads, 9, np))}
    return {"softcap": SOFTCAP} if name in (CAP, CAP_LARGE) else {}


def times(array: Any, factor: int) -> Any:
    """The numbers of an array of 16 bits times a power of two, which rounds none."""
    return narrow(widen(array, np.float32, module_of(array)) * np.float32(factor), array.dtype)


def _call(arrays: tuple[Any, Any, Any], mask: Any, how: dict[str, Any]) -> Callable[[], Any]:
    return lambda: attention(*arrays, mask, **how)
