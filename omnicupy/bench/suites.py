"""The suites: which workloads run on which systems, and which host measurements there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnicupy import environment, tune
from omnicupy.bench import configs, host, timing
from omnicupy.bench.measure import Session, latency, measure
from omnicupy.bench.peers import SYSTEMS
from omnicupy.bench.records import OURS, Record
from omnicupy.verify.compiling import compile_all
from omnicupy.workloads import NAMED, by_name

Say = Callable[[str], None]

LADDER = (
    *("sm80-64x64-s1-w4-shared", "sm80-64x64-s1-w4", "sm80-64x64-s2-w4", "sm80-64x64-s3-w4"),
    *("sm80-128x64-s1-w4-shared", "sm80-128x64-s1-w4", "sm80-128x64-s2-w4"),
    *("sm80-128x64-s1-w8", "sm80-128x64-s2-w8", "sm80-64x64-s2-w4-plain", "sm80-128x64-s1-w4-plain"),
)
DENSE = tuple(
    f"{kind}-d{head_dim}-s{length}"
    for head_dim in (64, 128)
    for length in (4096, 16384)
    for kind in ("full", "causal")
)


@dataclass(frozen=True)
class Suite:
    """Workloads by systems. run: what it does with a workload.  note: what it is for."""

    note: str
    workloads: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    kind: str = "measure"


LATENCY = (
    "s1024-seed0-h28-k4-b4",
    "s2048-seed0-h28-k4-b8",
    "s1024-seed0-h16-k16-b4",
    "s2048-seed0-h16-k16-b8",
)
GPU_SUITES = {
    "dense": Suite(
        "full and causal, D 64 and 128",
        DENSE,
        (OURS, "sdpa-flash", "sdpa-cudnn", "flex", "fa4", "cudnn-flex"),
    ),
    "masks": Suite(
        "the masks of real models, and dense S 4096 for the executed rate",
        ("full-d128-s4096", "W1", "W4", "W5", "W11", "W12"),
        (OURS, "flex", "flex-flash", "cudnn-flex"),
    ),
    "models": Suite("every named workload", tuple(NAMED), (OURS, "cudnn-flex", "flex")),
    "random": Suite(
        "random interleaved masks, D 64",
        tuple(f"random-d64-s{length}-seed{seed}" for length in (1024, 16384) for seed in range(8)),
        (OURS, "flex"),
    ),
    "latency": Suite(
        "whole calls from Python, nothing flushed",
        ("W15", *(f"random-d128-{rest}" for rest in LATENCY)),
        (OURS, "flex", "flex-flash", "cudnn-flex"),
        "latency",
    ),
    "variants": Suite(
        "stages, shared K/V buffer, swizzle",
        ("full-d64-s4096", "full-d128-s4096", "causal-d128-s16384", "W4"),
        tuple(f"{OURS}:{word}" for word in LADDER),
    ),
    "tiles": Suite(
        "every legal tile of the mma.sync kernel",
        ("full-d64-s4096", "causal-d64-s4096", "full-d128-s4096", "causal-d128-s4096"),
        (),
        "tiles",
    ),
    "tiles90": Suite(
        "every legal tile of the wgmma kernel", ("full-d64-s4096", "full-d128-s4096"), (), "tiles90"
    ),
}
GPU_HOST = {"host": host.warm_calls, "cold": host.first_calls}
CPU_HOST = {"build": host.mask_building, "cpu": host.cpu_engine}


@dataclass(frozen=True)
class Options:
    """What to run. workloads, systems: instead of the suites' own.  seeds: of random masks.  limit: seconds
    that a rival may take to compile.  out: file of the record.
    """

    suites: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    samples: int = timing.SAMPLES
    seeds: int = 8
    limit: float = 120.0
    out: Path | None = None


def listing() -> str:
    """The suites and the systems, one a line."""
    lines = ["suites on a GPU:"]
    lines += [f"  {name:10} {suite.note}" for name, suite in GPU_SUITES.items()]
    lines += ["  host       host time of warm calls", "  cold       first calls in fresh processes"]
    lines += ["suites anywhere:", "  build      mask building", "  cpu        the CPU engine"]
    lines += [f"systems: {OURS}, {OURS}:sm80-128x64-s2-w4 (any tile), {', '.join(SYSTEMS)}"]
    return "\n".join(lines)


@tune.every_kernel()
def run(options: Options, say: Say) -> dict[str, Any]:
    """Run the suites; returns the record. A suite that needs a GPU raises ValueError where there is none.

    A system that fails is a row with its reason; the others go on.
    """
    _check(options)
    gpu = environment.has_gpu()
    described = environment.device() if gpu else {}
    record = Record(
        options.out,
        {
            "device": described.get("name"),
            "driver": described.get("driver"),
            "nvrtc": environment.nvrtc_version() or None,
            "commit": environment.commit() or None,
            "packages": environment.package_versions(),
            "suites": list(options.suites),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    for name in options.suites:
        if name in CPU_HOST:
            CPU_HOST[name](record, say)
    names = [name for name in options.suites if name in GPU_SUITES]
    if names or options.workloads:
        settings = {"samples": options.samples, "limit_s": options.limit, "dtype": options.dtype, "say": say}
        session = Session.start(record, **settings)
        for name in names or [""]:
            _run_suite(session, GPU_SUITES.get(name, Suite("", systems=(OURS,))), options)
        record.set(clocks_after=timing.clocks())
    for name in options.suites:
        if name in GPU_HOST:
            GPU_HOST[name](record, say)
    return record.content


def _check(options: Options) -> None:
    known = [*GPU_SUITES, *GPU_HOST, *CPU_HOST]
    for name in options.suites:
        if name not in known:
            raise ValueError(f"bench: SUITES must be some of {', '.join(known)}, got {name!r}")
    for workload in options.workloads:
        by_name(workload)
    for system in options.systems:
        if system.partition(":")[0] not in (OURS, *SYSTEMS):
            raise ValueError(f"bench: --system must be one of {OURS}, {', '.join(SYSTEMS)}, got {system!r}")
    needs_gpu = set(options.suites) - set(CPU_HOST) or (options.workloads and not options.suites)
    if needs_gpu and not environment.has_gpu():
        raise ValueError(
            f"bench: these suites need a GPU, and there is none here; run {' or '.join(CPU_HOST)}"
        )


def _run_suite(session: Session, suite: Suite, options: Options) -> None:
    systems = options.systems or suite.systems
    for name in options.workloads or _with_seeds(suite.workloads, options.seeds):
        workload = by_name(name)
        if suite.kind.startswith("tiles"):
            found = _tiles(session, workload.head_dim, "sm90" if suite.kind == "tiles90" else "sm80")
            measure(replace(session, samples=min(session.samples, 10)), workload, options.systems or found)
        elif suite.kind == "latency":
            latency(session, workload, systems)
        else:
            measure(session, workload, systems)


def _with_seeds(names: Sequence[str], seeds: int) -> list[str]:
    return [
        name for name in names if "-seed" not in name or int(name.split("-seed")[1].split("-")[0]) < seeds
    ]


def _tiles(session: Session, head_dim: int, kernel: str) -> list[str]:
    """Every tile of a kernel that compiles without spills, as system names."""
    specs = list(configs.every(session.arch, session.dtype, head_dim, kernel))
    compiled = compile_all(specs)
    for one in compiled:
        if one.problem:
            session.say(f"left out: {configs.word(one.spec)}: {one.problem.splitlines()[0]}")
    good = {one.spec for one in compiled if not one.problem}
    return [f"{OURS}:{configs.word(spec)}" for spec in specs if spec in good]
