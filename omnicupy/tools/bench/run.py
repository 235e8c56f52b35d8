"""Running suites: the workloads and systems of the catalogue, and the host measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnicupy.choose import pick
from omnicupy.jit import nvrtc
from omnicupy.tools import environment
from omnicupy.tools.bench import (
    accuracy,
    accuracy_cases,
    atoms,
    captured,
    decode_steps,
    gathered_flex,
    generate,
    growing,
    host,
    mask_build,
    memory,
    padded,
    pages,
    preset_build,
    process_group,
    ranks,
    scaling,
    scores,
    sharing,
    step,
    tiles,
    timing,
)
from omnicupy.tools.bench.gradients import PASSES, WORDS
from omnicupy.tools.bench.measure import Session, check_memory, measure
from omnicupy.tools.bench.peers import SYSTEMS, missing
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.suite import Part, Suite, with_seeds
from omnicupy.tools.bench.suites import GPU_SUITES, OTHER_SUITES, PORTABLE_TILES
from omnicupy.tools.bench.turns import NOBODY_ELSE, Turns
from omnicupy.tools.bench.whole_calls import latency, of_seeds
from omnicupy.tools.workloads.workload import Workload, by_name

Kind = Callable[[Session, Workload, Sequence[str]], None]

ACCURACY = "accuracy"
NO_SUITE = Suite("", (Part((), (OURS,)),))  # of workloads that are named
GPU_HOST: dict[str, Callable[..., None]] = {
    "host": host.warm_calls,
    "cold": host.first_calls,
    atoms.SUITE: atoms.atoms,
}
GPU_HOST |= {gathered_flex.SUITE: gathered_flex.flex}
GPU_HOST |= {"step": step.suite("llama"), "step-short": step.suite("llama-short")}
GPU_HOST |= {"step-gemma": step.suite("gemma")}
GPU_HOST |= {generate.SUITE: generate.generate, captured.SUITE: captured.captured}
GPU_HOST |= {growing.SUITE: growing.growing}
CPU_HOST: dict[str, Callable[..., None]] = {
    "build": host.mask_building,
    "presets": preset_build.building,
    "scaling": scaling.scaling,
    "sharing": sharing.sharing,
    "parallel": ranks.parallel,
    padded.SUITE: padded.padded,
    "cpu": host.cpu_engine,
}
SHARED = ("parallel", gathered_flex.SUITE)  # by processes that torchrun has started
GRADIENT_KINDS = (
    "measure",
    "latency",
    "calls",
    "memory",
    "choices",
    "forms",
)  # of suites that are measured for backward passes, too


@dataclass(frozen=True)
class Options:
    """What to run. workloads, by name or as they are, and systems: instead of the suites' own.  seeds: of masks.
    limit: seconds to compile, of a rival.  timed: a key of PASSES.  flush: of timing.FLUSHES.  out: the record.
    accuracy_dtypes, part: of that suite; the share K of N of its cases.  turns: with processes that share workloads.
    """

    suites: tuple[str, ...] = ()
    workloads: tuple[str | Workload, ...] = ()
    systems: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    samples: int = timing.SAMPLES
    seeds: int = 8
    limit: float = 120.0
    timed: str = "fwd"
    flush: str = timing.FLUSHES[0]
    out: Path | None = None
    accuracy_dtypes: tuple[str, ...] = accuracy_cases.DTYPE_NAMES
    part: tuple[int, int] = (1, 1)
    turns: Turns = NOBODY_ELSE


def catalogue() -> dict[str, Any]:
    """What can be measured: suites that need a GPU and those that do not, each with what it is for, and systems."""
    return {
        "gpu": {
            **{name: suite.note for name, suite in GPU_SUITES.items()},
            **{name: OTHER_SUITES[name] for name in (ACCURACY, *GPU_HOST)},
        },
        "anywhere": {
            "build": "mask building (on a GPU beside its rivals', too)",
            **{name: OTHER_SUITES[name] for name in CPU_HOST if name != "build"},
        },
        "systems": [OURS, *SYSTEMS],
    }


def listing() -> str:
    """The catalogue, a line each."""
    of = catalogue()
    width = max(map(len, (*of["gpu"], *of["anywhere"])))
    lines = ["suites on a GPU:", *(f"  {name:{width}} {note}" for name, note in of["gpu"].items())]
    lines += ["suites anywhere:", *(f"  {name:{width}} {note}" for name, note in of["anywhere"].items())]
    ours = f"{OURS}, {OURS}:sm80-128x64-s2-w4 (any tile)"
    lines += [f"systems: {ours}, {', '.join(SYSTEMS)}"]
    lines += [f"  for gradients also {', '.join(f'{OURS}:{word}' for word in WORDS)}"]
    return "\n".join(lines)


def measures(suites: Sequence[str]) -> bool:
    """True when one of the suites, here, measures workloads on systems; others look at the host alone."""
    gpu = environment.has_gpu()
    return any(name in GPU_SUITES and (name not in CPU_HOST or gpu) for name in suites)


@pick.serve_every_kernel()
def run(options: Options, say: host.Say) -> dict[str, Any]:
    """Run the suites; returns the record. A suite that needs a GPU raises ValueError where there is none. A system that
    fails is a row with its reason; the others go on.
    """
    with options.turns.beside():
        check(options)
    gpu = environment.has_gpu()
    described = environment.device() if gpu else {}
    record = Record(
        options.out if process_group.is_first() else None,
        {
            "device": described.get("name"),
            "driver": described.get("driver"),
            "nvrtc": nvrtc.version_text() or None,
            "commit": environment.commit() or None,
            "packages": environment.package_versions(),
            "suites": list(options.suites),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    with ExitStack() as stack:
        stack.callback(options.turns.end)
        if set(SHARED) <= set(options.suites):  # beside each other, with the same processes
            stack.enter_context(process_group.process_group(" ".join(SHARED)))
        _run_suites(options, record, say, gpu=gpu)
    return record.content


def _run_suites(options: Options, record: Record, say: host.Say, *, gpu: bool) -> None:
    for name in options.suites:
        # Its masks alone go with calls of its own workloads and of the forward pass.
        alone = not options.workloads and options.timed == "fwd"
        if name in CPU_HOST and (alone or name not in GPU_SUITES):
            record.suite = name
            CPU_HOST[name](record, say, **_asked(name, options))
    names = [name for name in options.suites if name in GPU_SUITES] if gpu else []
    if names or (options.workloads and not set(SHARED) & set(options.suites)):
        settings = {"samples": options.samples, "limit_s": options.limit, "dtype": options.dtype, "say": say}
        settings |= {"timed": PASSES[options.timed], "flush": options.flush}
        with options.turns.alone():
            session = Session.start(record, turns=options.turns, **settings)
        for name in names or [""]:
            record.suite = name
            _run_suite(session, GPU_SUITES.get(name, NO_SUITE), options)
        record.set(clocks_after=timing.clocks())
    for name in options.suites:
        if name in GPU_HOST:
            record.suite = name
            GPU_HOST[name](record, say, **_asked(name, options))
    if ACCURACY in options.suites:
        record.suite = ACCURACY
        given: dict[str, Any] = {"systems": options.systems, "dtypes": options.accuracy_dtypes}
        accuracy.measure(record, say, limit_s=options.limit, part=options.part, **given)


def _asked(name: str, options: Options) -> dict[str, Any]:
    """Workloads for a suite of several processes, where they are given instead of its own."""
    if name not in SHARED or not options.workloads:
        return {}
    return {"workloads": [by_name(one) if isinstance(one, str) else one for one in options.workloads]}


def _check_pass(options: Options) -> None:
    """Raises ValueError for a pass that the suites are not measured with."""
    if options.timed not in PASSES:
        raise ValueError(f"bench: --pass must be one of {', '.join(PASSES)}, got {options.timed!r}")
    of_gradients = [
        name for name, suite in GPU_SUITES.items() if all(part.kind == "forms" for part in suite.parts)
    ]
    if options.timed == "fwd":
        for name in options.suites:
            if name in of_gradients:
                raise ValueError(f"bench: {name} measures forms of the backward pass; add --pass bwd")
        return
    # A new mask is timed with both passes: a backward pass alone has one that the forward pass has seen.
    kinds = GRADIENT_KINDS + ("build",) * (PASSES[options.timed].has_forward and environment.has_gpu())
    serve = [
        name
        for name, suite in GPU_SUITES.items()
        if all(part.kind in kinds and not _of_kernels(part) for part in suite.parts)
    ]
    for name in options.suites:
        if name not in serve:
            raise ValueError(
                f"bench: --pass {options.timed} is for {', '.join(serve)}, got {name}, which measures the forward pass "
                "alone; leave one of the two out"
            )


def _of_kernels(part: Part) -> bool:
    """True where a part compares tiles of the forward kernels with each other."""
    return bool(part.systems) and all(system.startswith(f"{OURS}:") for system in part.systems)


def check(options: Options) -> None:
    """Raises ValueError for what cannot be run, or not here."""
    _check_pass(options)
    known = list(dict.fromkeys((*GPU_SUITES, ACCURACY, *GPU_HOST, *CPU_HOST)))
    for name in options.suites:
        if name not in known:
            raise ValueError(f"bench: SUITES must be some of {', '.join(known)}, got {name!r}")
    if ACCURACY in options.suites and options.workloads:
        raise ValueError(f"bench: {ACCURACY} has inputs and masks of its own; leave --mask out")
    for given in options.workloads:
        if isinstance(given, str):
            by_name(given)
    for system in options.systems:
        if system.partition(":")[0] not in (OURS, *SYSTEMS):
            raise ValueError(f"bench: --system must be one of {OURS}, {', '.join(SYSTEMS)}, got {system!r}")
    if (options.workloads or set(options.suites) - set(CPU_HOST)) and not environment.has_gpu():
        raise ValueError(
            f"bench: {'workloads' if options.workloads else 'these suites'} need a GPU, and there is none here; run "
            f"{' or '.join(CPU_HOST)}"
        )
    # Of several processes one has looked, before the others took memory.
    for given in () if options.turns.is_shared else options.workloads:
        workload = by_name(given) if isinstance(given, str) else given
        check_memory(workload, workload.mask())


def _run_suite(session: Session, suite: Suite, options: Options) -> None:
    """Each part's workloads; systems whose library cannot be imported are named once, in the record's header."""
    absent = missing([name for name in options.systems or suite.systems if name in SYSTEMS])
    if absent:
        session.record.set(missing={**session.record.content.get("missing", {}), **absent})
    for number, (given, systems, kind) in enumerate(planned(suite, options)):
        if not options.turns.claim(f"{session.record.suite}-{number}"):
            continue
        workload = by_name(given) if isinstance(given, str) else given
        KINDS[kind](session, workload, [system for system in systems if system not in absent])


def planned(suite: Suite, options: Options) -> Iterator[tuple[str | Workload, tuple[str, ...], str]]:
    """(workload, systems, kind): the parts' own, or the options' workloads, each as in the part that has it."""
    parts = {name: part for part in suite.parts for name in part.workloads}
    for given in options.workloads or with_seeds(suite.workloads, options.seeds):
        part = parts.get(given if isinstance(given, str) else given.name, suite.parts[0])
        yield given, options.systems or _for_pass(part.systems, options.timed), part.kind


def _for_pass(systems: Sequence[str], timed: str) -> tuple[str, ...]:
    """A part's systems: the mma.sync kernel has tiles of its own for gradients."""
    portable = f"{OURS}:sm80"
    if timed == "fwd":
        return tuple(systems)
    return tuple(dict.fromkeys(portable if one in PORTABLE_TILES else one for one in systems))


KINDS: dict[str, Kind] = {
    "measure": measure,
    "latency": latency,
    "calls": of_seeds,
    "tiles": tiles.measure_tiles("sm80"),
    "tiles90": tiles.measure_tiles("sm90"),
    "choices": tiles.measure_choice,
    "forms": measure,
    "build": mask_build.measure,
    "memory": memory.measure,
    "paged": pages.measure,
    "scores": scores.measure,
    "steps": decode_steps.measure,
}
