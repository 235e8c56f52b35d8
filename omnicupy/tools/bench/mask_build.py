"""What a new mask costs before the first result: building, cutting, uploading, beside what rivals make of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from omnicupy.api import attention, attention_backward
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_prediction, backward_table, pick
from omnicupy.jit.backward_kernel import MAKES_ALL
from omnicupy.masks.mask import Mask
from omnicupy.schedule.backward_grid import BackwardGrid, lists_of
from omnicupy.tools.bench import peer_masks
from omnicupy.tools.bench.measure import Session, make_inputs, reason, rounded
from omnicupy.tools.bench.peers import MissingError, prepare
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.torch_inputs import Shared
from omnicupy.tools.random_arrays import DTYPES, random_bits
from omnicupy.tools.workloads.workload import Workload

TURNS = 31  # so many that a host that is busy for a while hardly moves the median


def measure(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """Add each system's time of making its mask or plan, and of the first call with it, to the record.

    Ours: mask_ms builds the mask, cut_ms cuts it at the tile of the call, new_mask_call_ms is a whole call with a
    mask that was never used (cut, upload and launch), same_mask_call_ms one with the mask of the call before; all
    but the first with a loaded kernel. Calls are those of the session's pass: a mask of both passes is cut for both.
    Of passes with gradients gradient_lists_ms cuts the mask for their default kernels, and orders and packs the lists.
    Rivals: build_ms makes the block mask or plan a second time, and build_compiled_ms does so under torch.compile;
    first_call_s compiles.
    """
    mask = workload.mask()
    arrays = make_inputs(workload, mask, session.dtype)
    shared: Shared | None = None
    for name in systems:
        try:
            if name.partition(":")[0] == OURS:
                figures = _ours(session, workload, arrays)
            else:
                shared = shared or Shared(workload, mask, arrays)
                figures = _theirs(name, shared, session.limit_s)
        except Exception as error:  # whatever a library raises is its result here
            figures = {"problem": reason(error)}
        row = {"workload": workload.name, "system": name, "pass": session.timed.name}
        session.record.add(**row, figures=rounded(figures))
        session.say(f"{workload.name}: {name}: {', '.join(f'{k} {v}' for k, v in rounded(figures).items())}")


def _ours(session: Session, workload: Workload, arrays: tuple[Any, Any, Any]) -> dict[str, Any]:
    import cupy

    synchronize = cupy.cuda.Device().synchronize
    q, _, v = arrays
    dout = random_bits((*q.shape[:3], v.shape[3]), 4, session.dtype, 1.0, cupy).view(DTYPES[session.dtype])

    def call(mask: Mask) -> None:
        if session.timed.has_gradients:
            out, lse = attention(*arrays, mask, return_lse=True)
            attention_backward(dout, *arrays, out, lse, mask)
        else:
            attention(*arrays, mask)
        synchronize()

    first = workload.mask()
    call(first)  # loads the kernel
    problem = workload.problem(first, session.dtype)
    spec = pick.pick(session.arch, problem, (first,), session.sm_count)
    of_gradients = _of_gradients(session, problem, first) if session.timed.has_gradients else {}
    steps: dict[str, list[float]] = {}
    for _ in range(TURNS):
        mask, took = timed(workload.mask)
        fresh = workload.mask()  # cut for no tile yet
        for name, ms in (
            ("mask_ms", took),
            ("cut_ms", timed(partial(fresh.blocks, spec.tokens(problem.group), spec.bc))[1]),
            *((name, timed(partial(make, fresh))[1]) for name, make in of_gradients.items()),
            ("new_mask_call_ms", timed(partial(call, mask))[1]),
            ("same_mask_call_ms", timed(partial(call, mask))[1]),
        ):
            steps.setdefault(name, []).append(ms)
    return {name: statistics.median(values) for name, values in steps.items()}


def _of_gradients(session: Session, problem: Problem, mask: Mask) -> dict[str, Callable[[Mask], None]]:
    """What makes the lists of the default kernels of gradients, by its name in the record. mask: one like those."""
    spec = backward_table.select(session.arch, problem, (mask,), session.sm_count)
    keys = backward_prediction.keys_part(spec, problem, (mask,), deterministic=True)
    parts = [spec.part(part) for part in (keys, *(() if spec.part(keys).part in MAKES_ALL else ("dq",)))]
    grids = [BackwardGrid(one, problem, 1, session.sm_count, session.l2_bytes) for one in parts]

    def make(fresh: Mask) -> None:
        for part, grid in zip(parts, grids, strict=True):
            lists_of(part, (fresh,), grid.workers)

    return {"gradient_lists_ms": make}


def _theirs(name: str, shared: Shared, limit_s: float) -> dict[str, Any]:
    peer = prepare(name, shared, limit_s)
    if peer.build_ms is None:
        raise MissingError("makes no object of a mask")
    figures = {"build_ms": peer.build_ms, "first_call_s": peer.first_call_s}
    if name == "flex":
        figures["build_compiled_ms"] = peer_masks.compiled_build_ms(shared)
    return figures


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its milliseconds on the host."""
    begin = time.perf_counter()
    found = call()
    return found, 1e3 * (time.perf_counter() - begin)
