"""One verification run: what is verified where, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnicupy.choose import pick
from omnicupy.jit import cache, nvrtc
from omnicupy.jit.build import Compiled, Track, compile_all, silent
from omnicupy.jit.spec import KernelSpec
from omnicupy.tools import environment
from omnicupy.tools.verify import attesting, on_cpu, on_gpu, source_digest, speed
from omnicupy.tools.verify import report as verify_report
from omnicupy.tools.verify.attestation import Run
from omnicupy.tools.verify.case_kernels import table_kernels
from omnicupy.tools.verify.cases import Case
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.plan import WHOLE, Part, every_case
from omnicupy.tools.verify.random_cases import DEFAULT
from omnicupy.tools.verify.special_cases import BIG
from omnicupy.tools.workloads.workload import Workload


@dataclass(frozen=True)
class Settings:
    """What to verify. sweep: random cases (None: the default number).  kernels: parts of kernel names, () for all.

    sources: files in `kernels/`, () for all.  part: of the planned cases, None for all cases.  cases: parts of case
    ids or of the table's names of groups, () for all.  cubins: a folder of kernels compiled elsewhere.  also_cubins:
    another one, attested in the same run on the same inputs.  attest: file to add to.  resume: leave out what that file
    holds already.  beside: leave out the cases that need most of the GPU's memory, as others use it.  commit: what is
    verified, where no git tells.  all_specs: compile the full product of the table.  timing: measure speed too.
    repeats: calls of each case, which must agree bit for bit.
    """

    sweep: int | None = None
    kernels: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    cubins: Path | None = None
    also_cubins: Path | None = None
    attest: Path | None = None
    sources: tuple[str, ...] = ()
    part: Part | None = None
    resume: bool = False
    beside: bool = False
    commit: str | None = None
    all_specs: bool = False
    timing: bool = True
    repeats: int = on_gpu.REPEATS


@dataclass
class Report:
    """What a run found. where: what was verified, in words.  nothing_left: it resumed a run that was complete."""

    where: str
    header: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    timings: list[speed.Timed] = field(default_factory=list)
    compiled: list[Compiled[Any]] = field(default_factory=list)
    seconds: float = 0.0
    nothing_left: bool = False

    @property
    def failures(self) -> list[str]:
        """A line for everything that failed."""
        return verify_report.failures(self.outcomes, self.timings, self.compiled)

    @property
    def passed(self) -> bool:
        """True when something ran, or all had run before, and nothing failed."""
        ran = self.outcomes or self.timings or self.compiled or self.nothing_left
        return bool(ran) and not self.failures

    def lines(self) -> list[dict[str, Any]]:
        """The table, a dictionary a line."""
        return verify_report.lines(self.outcomes, self.timings)

    def as_json(self) -> dict[str, Any]:
        """Everything but the single cases that passed."""
        return {
            **self.header,
            "verified": self.where,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "lines": self.lines(),
            "kernels_compiled": len(self.compiled),
            "skipped": [str(one) for one in self.outcomes if one.skipped],
            "failures": self.failures,
            "notes": self.notes,
        }

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the versions that were verified."""
        return environment.notes(
            self.header["nvrtc"] or "", self.header["driver_cuda"] or "", environment.package_versions()
        )


def header(nvrtc_version: str, commit: str = "") -> dict[str, Any]:
    """Device, driver, commit (git's unless one is given) and the version of the NVRTC whose kernels run."""
    described = environment.device() if environment.has_gpu() else {}
    return {
        "device": described.get("name"),
        "compute_capability": described.get("compute_capability"),
        "driver": described.get("driver"),
        "driver_cuda": described.get("driver_cuda"),
        "commit": commit or environment.commit() or None,
        "nvrtc": nvrtc_version or None,
        "nvrtc_attested": nvrtc_version in nvrtc.ATTESTED,
    }


@pick.serve_every_kernel()
def verify(settings: Settings, track: Track = silent) -> Report:
    """Verify the current GPU's kernels, or the CPU engine and the compilation of all kernels without a GPU.

    Raises ValueError for settings that this machine cannot serve, and what cache.use_cubins raises.
    """
    begin = time.perf_counter()
    if environment.has_gpu():
        found = _on_gpu(settings, track)
    else:
        if settings.attest or settings.cubins or settings.kernels or settings.sources or settings.part:
            raise ValueError(
                "verify: --attest, --cubins, --kernel, --source and --part need a GPU, and there is none here; "
                "run without them"
            )
        found = _on_cpu(settings, track)
    found.seconds = time.perf_counter() - begin
    return found


def chosen_cases(settings: Settings, listed: Sequence[Case], timed: Sequence[Workload] = ()) -> list[Case]:
    """The listed cases whose id or group holds one of the settings' parts, in any case; all without parts.

    Raises ValueError when none is left, unless a `timed` problem is.
    """
    parts = [part.lower() for part in settings.cases]
    found = [
        case for case in listed if not parts or any(part in case.id or part in case.group for part in parts)
    ]
    if not found and not timed:
        raise ValueError(
            f"verify: no case's id or group holds {' or '.join(settings.cases)}; widen --case, `verify --list` has all"
        )
    return found


def timed(settings: Settings) -> list[Workload]:
    """The problems of the speed part on this machine, which only a GPU run has."""
    return _timed_on_gpu(settings) if environment.has_gpu() else []


def _timed_on_gpu(settings: Settings) -> list[Workload]:
    """The problems whose name holds one of the settings' parts."""
    return speed.chosen(settings.cases) if settings.timing else []


def listed(settings: Settings) -> list[Case]:
    """The cases that a run with these settings takes on this machine. Raises ValueError when there is none."""
    return gpu_cases(settings) if environment.has_gpu() else chosen_cases(settings, on_cpu.cases())


def _on_cpu(settings: Settings, track: Track) -> Report:
    version = nvrtc.version_text()
    if settings.all_specs and not version:
        nvrtc.version()  # says what is missing
    compiles = bool(version) and not settings.cases
    kernels = "kernels were compiled, none was run" if compiles else "no kernel was run"
    lacking = (
        "no GPU here"
        if version or settings.cases
        else "no GPU and no NVRTC here, so none was compiled either"
    )
    found = Report(f"the CPU engine; {kernels}: {lacking}", header(version))
    found.outcomes = on_cpu.run(chosen_cases(settings, on_cpu.cases()), track)
    if compiles:
        found.compiled = compile_all(table_kernels(settings.all_specs), track)
    return found


def gpu_cases(settings: Settings) -> list[Case]:
    """The cases of a GPU run: fixed ones, special ones, random ones."""
    every = every_case(DEFAULT if settings.sweep is None else settings.sweep)
    every = tuple(case for case in every if not (settings.beside and case.tag in BIG))
    of_part = [case for case in every if case.id in (settings.part or WHOLE)]
    return chosen_cases(settings, of_part, _timed_on_gpu(settings))


def _on_gpu(settings: Settings, track: Track) -> Report:
    commit = _checked_for_attesting(settings) if settings.attest else ""
    if settings.cubins:
        cache.compiled_elsewhere(settings.cubins)
    try:
        target = on_gpu.Target.current(settings.kernels, settings.repeats, settings.sources)
        cases = gpu_cases(settings)
        if settings.attest and settings.resume:
            cases = attesting.lacked(settings.attest, _sources(settings), cases, settings.also_cubins)
        specs = target.specs(track(cases, "masks", len(cases)))
        if cases and not specs:
            raise ValueError(_no_kernel(settings, target))
        taken = attesting.version_text(cache.current())  # where no case is left to say it
        version = nvrtc.version_text(cache.entry(specs[0]).nvrtc) if specs else taken
        found = Report(f"GPU kernels for {target.arch}", header(version, commit))
        if not settings.cubins:
            selected = set(table_kernels(every=True))
            if settings.all_specs:
                specs = list(
                    dict.fromkeys([*specs, *(s for s in selected if s.arch.rstrip("a") == target.arch)])
                )
            found.compiled = [
                one for one in compile_all(specs, track) if one.spec in selected or not one.registers
            ]
        if settings.attest:
            _attested(found, settings, target, cases, track)
            return found
        found.outcomes, usable = on_gpu.run(cases, target, track)
        if usable:
            found.timings = speed.run(target, timed(settings), track)
        return found
    finally:
        if settings.cubins:
            cache.compiled_elsewhere(None)


def _sources(settings: Settings) -> tuple[str, ...]:
    return settings.sources or tuple(source_digest.SOURCES)


def _no_kernel(settings: Settings, target: on_gpu.Target) -> str:
    of = f" of {' or '.join(settings.sources)}" if settings.sources else ""
    if settings.kernels:
        return f"verify: no kernel's name{of} holds {' or '.join(settings.kernels)}; widen --kernel"
    return f"verify: no kernel{of} runs on {target.arch}; name another --source"


def _checked_for_attesting(settings: Settings) -> str:
    """The commit that is attested. Raises ValueError for settings that would attest less than they say."""
    assert settings.attest is not None
    if settings.cases or settings.kernels:
        raise ValueError(
            "verify: --attest takes all cases of a source and all kernels of it; leave --kernel and --case out, "
            "--source and --part choose"
        )
    return attesting.attested_commit(settings.attest, settings.commit)


def _attested(
    found: Report, settings: Settings, target: on_gpu.Target, cases: list[Case], track: Track
) -> None:
    """The runs of a report, written to the attestation as they come; nothing of kernels with another fault."""
    assert settings.attest
    found.timings = speed.run(target, timed(settings), track)
    if found.failures:
        return
    sources = _sources(settings)
    run = Run(found.header["nvrtc"], attesting.header_of(found.header), settings.part or WHOLE)
    runs = [(run, cache.current())]
    if settings.also_cubins:
        also = cache.kernels_of(settings.also_cubins)
        version = attesting.version_of(also, run.nvrtc, target.specs(cases))
        runs.append((replace(run, nvrtc=version), also))
        found.where += f" and NVRTC {version}'s"
    with attesting.turns(settings.attest, runs, sources, cases, resume=settings.resume) as turns:
        if settings.resume:
            cases = [case for case in cases if any(case.id in (turn.cases or ()) for turn in turns)]
            found.where += f", {len(cases)} cases that {settings.attest} lacked"
            found.nothing_left = not cases
        found.outcomes, _ = on_gpu.run(cases, target, track, turns)


@pick.serve_every_kernel()
def build_cubins(folder: Path, arch: str, settings: Settings, track: Track = silent) -> int:
    """Compile what a GPU run with these settings needs on `arch` into a folder for its --cubins; returns how many.

    Raises CompileError, UnsupportedError without NVRTC.
    """
    target = on_gpu.Target(arch, 1, settings.kernels, sources=settings.sources, any_size=True)
    cases = gpu_cases(settings)
    cases += [speed.case_of(one, one.mask()) for one in _timed_on_gpu(settings)]
    specs: list[KernelSpec] = target.specs(track(cases, "masks", len(cases)))
    compile_all(specs, track)
    return cache.export(specs, folder)


def summary(found: Report) -> str:
    """What was verified and how it ended, in a line."""
    skipped = sum(bool(one.skipped) for one in found.outcomes)
    parts = [f"{len(found.outcomes)} cases"]
    if found.compiled:
        parts.append(f"{len(found.compiled)} kernels compiled")
    parts += [f"{skipped} skipped"] * bool(skipped)
    ending = "all passed" if found.passed else f"{len(found.failures)} FAILED"
    return f"Verified {found.where}. {', '.join(parts)}: {ending} in {found.seconds:.0f} s."
