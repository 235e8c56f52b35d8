"""One workload on several systems in one run: correctness first, then interleaved times, then host time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnicupy.api import attention
from omnicupy.choose import pick, variants
from omnicupy.choose.ceilings import Device
from omnicupy.jit import archs
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.constructors import from_dense
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import segments
from omnicupy.reference import checked_rows
from omnicupy.tools.bench import timing
from omnicupy.tools.bench.decoding import copy_share
from omnicupy.tools.bench.gradients import PASSES, Gradients, Pass, asked
from omnicupy.tools.bench.peers import COMPILE_LIMIT_S, SYSTEMS, Peer, prepare
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.speeds import GEMM, copy_tbps, gemm_tflops
from omnicupy.tools.bench.torch_inputs import Shared, as_cupy, free_memory
from omnicupy.tools.bench.turns import NOBODY_ELSE, Turns
from omnicupy.tools.random_arrays import DTYPES, random_bits
from omnicupy.tools.workloads.workload import Workload

# Masks that allow everything, made in the ways in which users come to one: they are compared with no mask at all.
FULL_OBJECTS: dict[str, Callable[[int, int], Mask | None]] = {
    "nomask": lambda q_len, k_len: None,
    "image": lambda q_len, k_len: segments([("image", q_len)]),
    "ones": lambda q_len, k_len: from_dense(np.ones((q_len, k_len), np.bool_)),
}


@dataclass
class Session:
    """A run on a device. timed: what of attention.  host: its time, too.  flush: a key of Clock.  turns: with other
    processes.  say: shows a line.
    """

    record: Record
    arch: str
    sm_count: int
    l2_bytes: int
    dtype: str = "bfloat16"
    timed: Pass = PASSES["fwd"]
    samples: int = timing.SAMPLES
    limit_s: float = COMPILE_LIMIT_S
    host: bool = True
    flush: str = timing.FLUSHES[0]
    turns: Turns = NOBODY_ELSE
    say: Callable[[str], None] = field(default=lambda line: None)
    clock: Any = None

    @classmethod
    def start(cls, record: Record, **options: Any) -> Session:
        """A session on the current device, with the speed of a large matrix product and of a copy in the header."""
        import cupy

        from omnicupy.gpu.device import device_info

        info = device_info(cupy.cuda.Device().id)
        session = cls(record, archs.arch_of(info.major, info.minor), info.sm_count, info.l2_bytes, **options)
        session.clock = timing.Clock(cupy, flush=session.flush)
        record.set(arch=session.arch, dtype=session.dtype, clocks_before=timing.clocks())
        record.set(multiprocessors=info.sm_count, l2_bytes=info.l2_bytes, flush=session.flush)
        name, tflops = gemm_tflops(session.clock)
        copy = copy_tbps(session.clock)
        record.set(gemm_tflops=round(tflops, 1), gemm=name, copy_tbps=round(copy, 3))
        session.say(f"{GEMM}^3 product, {name}: {tflops:.0f} TFLOP/s; copies: {copy:.2f} TB/s")
        free_memory()  # other processes may want it
        return session


@dataclass
class System:
    """A system of one workload: what to time, and the figures that are known before."""

    call: Callable[[], Any]
    known: dict[str, Any]
    executed: int | None = None


def check_memory(workload: Workload, mask: Mask) -> None:
    """Raises ValueError when the device has less free memory than a workload's 16-bit inputs and output take."""
    import cupy

    q_len, k_len = mask.shape
    rows = workload.q_heads * q_len * 2 + workload.kv_heads * k_len * 2
    needed, free = 2 * workload.batch * rows * workload.head_dim, int(cupy.cuda.Device().mem_info[0])
    if needed > free:
        raise ValueError(
            f"{workload.name}: q, k, v and the output take {needed / 2**30:.1f} GiB of device memory, "
            f"{free / 2**30:.1f} are free; take a shorter mask, fewer heads or a smaller batch"
        )


def make_inputs(workload: Workload, mask: Mask, dtype: str) -> tuple[Any, Any, Any]:
    """Random normal q, k, v of a workload as CuPy arrays."""
    import cupy

    q_len, k_len = mask.shape
    shapes = [(workload.batch, workload.q_heads, q_len, workload.head_dim)]
    shapes += [(workload.batch, workload.kv_heads, k_len, workload.head_dim)] * 2
    q, k, v = (
        random_bits(shape, seed, dtype, 1.0, cupy).view(DTYPES[dtype]) for seed, shape in enumerate(shapes, 1)
    )
    return q, k, v


def measure(session: Session, workload: Workload, systems: Sequence[str], batch: int | None = None) -> None:
    """Add a row per system to the record. What cannot run or is wrong gets a row that says why.

    systems: names of peers.SYSTEMS, "omnicupy", or "omnicupy:" and a word of configs.parse.  batch: as of prepared.
    """
    mask = workload.mask()
    with session.turns.beside():
        ready = prepared(session, workload, mask, systems, batch)
    with session.turns.alone():
        _timed(session, workload, mask, ready)
    with session.turns.beside():
        del ready
        free_memory()


def prepared(
    session: Session, workload: Workload, mask: Mask, systems: Sequence[str], batch: int | None = None
) -> dict[str, System]:
    """The systems that run and have been held against the reference; the others get their row at once.

    batch: how many elements gradients are held against it in, None for all.
    """
    arrays = make_inputs(workload, mask, session.dtype)
    gradients = Gradients(workload, mask, arrays, session.dtype) if session.timed.has_gradients else None
    judge = gradients.judge(batch) if gradients else checked_rows.CheckedRows(arrays, mask)
    shared = None
    ready: dict[str, System] = {}
    for name in systems:
        session.say(f"{workload.name}: {name}")
        try:
            session.turns.give_way()
            if name.partition(":")[0] == OURS and name not in SYSTEMS:
                system, output = _ours(session, workload, gradients or arrays, mask, name)
            else:
                shared = shared or Shared(workload, mask, arrays, gradients.dout if gradients else None)
                system, output = _theirs(session, prepare(name, shared, session.limit_s, session.timed))
            system.known["error"] = error = judge.error(output())
            system.known["correct"] = bool(error <= checked_rows.TOLERANCE)
            ready[name] = system
        except Exception as error:  # whatever a library raises is its result here
            add_row(session, workload, mask, name, {"problem": reason(error)})
    return ready


def _ours(
    session: Session, workload: Workload, given: tuple[Any, Any, Any] | Gradients, mask: Mask, name: str
) -> tuple[System, Callable[[], Any]]:
    """given: q, k, v, or what the backward pass takes."""
    words = name.partition(":")[2]
    config: AttnSpec | None = None
    passed: Mask | None = mask
    q_len, k_len = mask.shape
    if words in FULL_OBJECTS:
        if mask.pairs != q_len * k_len or q_len != k_len:
            raise ValueError(f"{name}: for square full masks alone, got {workload.name}")
        passed = FULL_OBJECTS[words](q_len, k_len)
        words = ""
    if isinstance(given, Gradients):
        wanted = asked(words)
        chosen = given.spec(session.arch, wanted)
        gradients = given.call(session.timed, passed, chosen if wanted.needs_config else None, wanted)
        part = given.part(chosen, wanted, Device(session.arch, session.sm_count, session.l2_bytes))
        return System(gradients, {"spec": str(chosen), "part": part}), gradients
    if words:
        config = variants.parse(words, session.arch, session.dtype, workload.head_dim)
    problem = workload.problem(mask, session.dtype)
    spec = config or pick.pick(session.arch, problem, (mask,), session.sm_count)

    def call() -> Any:
        return attention(*given, passed, config=config)

    executed = mask.stats(spec.tokens(problem.group), spec.bc).executed
    known = {"spec": variants.word(spec), "useful": mask.pairs / max(1, executed)}
    return System(call, known, executed), call


def _theirs(session: Session, peer: Peer) -> tuple[System, Callable[[], Any]]:
    alone = not session.turns.is_shared  # else others kept the host busy meanwhile
    known: dict[str, Any] = {"first_call_s": round(peer.first_call_s, 3)} if alone else {}
    if alone and peer.build_ms is not None:
        known["build_ms"] = round(peer.build_ms, 3)

    def output() -> Any:
        found = peer.output()
        return tuple(map(as_cupy, found)) if isinstance(found, tuple) else as_cupy(found)

    return System(peer.call, known), output


def _timed(session: Session, workload: Workload, mask: Mask, ready: dict[str, System]) -> None:
    import cupy

    try:
        times = session.clock.interleaved({name: of.call for name, of in ready.items()}, session.samples)
    except Exception as error:  # one broke the device or its own state: nothing after it can be trusted
        for name in ready:
            add_row(session, workload, mask, name, {"problem": reason(error)})
        return
    flops = session.timed.flops * workload.flops(mask.pairs)
    content = session.record.content
    for name, system in ready.items():
        took = times[name]
        figures: dict[str, Any] = {
            "ms": took.median_ms,
            "p10_ms": took.p10_ms,
            "p90_ms": took.p90_ms,
            "samples": took.samples,
            "tflops": flops / took.median_ms / 1e9,
        }
        if gemm := content.get("gemm_tflops"):
            figures["gemm_share"] = figures["tflops"] / gemm
        if not session.timed.has_gradients:
            figures |= copy_share(workload, mask.shape, took.median_ms, content.get("copy_tbps", 0.0))
        if system.executed is not None:
            figures["executed_tflops"] = workload.flops(system.executed) / took.median_ms / 1e9
        if session.host and not session.turns.is_shared:
            synchronize = cupy.cuda.Device().synchronize
            figures["host_us"] = timing.host_us(system.call, synchronize, 20 if took.median_ms > 5 else 60)
        add_row(session, workload, mask, name, figures | system.known, f"{figures['tflops']:.0f} TFLOP/s")


def add_row(
    session: Session, workload: Workload, mask: Mask, name: str, figures: dict[str, Any], rate: str = ""
) -> None:
    """Add a row to the record, and show its problem, or its time and rate. name: of the system."""
    shape = [workload.batch, workload.q_heads, workload.kv_heads, *mask.shape, workload.head_dim]
    known = {"workload": workload.name, "system": name, "pass": session.timed.name, "shape": shape}
    session.record.add(**known, density=float(mask.pairs / np.prod(mask.shape)), **rounded(figures))
    shown = figures.get("problem") or f"{figures['ms']:.3f} ms, {rate}"
    session.say(f"{workload.name}: {name}: {shown}")


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Five significant digits; a figure that is no number (an error that is infinite) becomes its text."""
    kept = {}
    for name, value in figures.items():
        if isinstance(value, float):
            kept[name] = float(f"{value:.5g}") if np.isfinite(value) else str(value)
        else:
            kept[name] = value
    return kept


def reason(error: BaseException) -> str:
    """The first line of what a library raised, for a row or a list; at most 300 characters."""
    text = str(error).strip().splitlines()
    name = type(error).__name__
    return (text[0] if name == "MissingError" else f"{name}: {text[0]}" if text else name)[:300]
