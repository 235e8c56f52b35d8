"""One verification run: what is verified where, and what came of it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnicupy.choose import pick, table
from omnicupy.choose.table import every_spec
from omnicupy.jit import cache, nvrtc
from omnicupy.jit.build import Compiled, Track, compile_all, silent
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools import environment
from omnicupy.tools.verify import attestation, on_cpu, on_gpu, special_cases, speed
from omnicupy.tools.verify import report as verify_report
from omnicupy.tools.verify.cases import FIXED, Case
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.random_cases import DEFAULT, sweep
from omnicupy.tools.workloads.workload import Workload


@dataclass(frozen=True)
class Settings:
    """What to verify. sweep: random cases (None: the default number).  kernels: parts of kernel names, ()
    for all.

    cases: parts of case ids or of the table's names of groups, () for all.  cubins: a folder of kernels compiled
    elsewhere.  attest: file to write.  commit: what is verified, where no git tells.  all_specs: compile the full
    product of the table.  timing: measure speed too.  repeats: calls of each case, which must agree bit for bit.
    """

    sweep: int | None = None
    kernels: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    cubins: Path | None = None
    attest: Path | None = None
    commit: str | None = None
    all_specs: bool = False
    timing: bool = True
    repeats: int = on_gpu.REPEATS


@dataclass
class Report:
    """What a run found. where: what was verified, in words."""

    where: str
    header: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    timings: list[speed.Timed] = field(default_factory=list)
    compiled: list[Compiled[Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failures(self) -> list[str]:
        """A line for everything that failed."""
        return verify_report.failures(self.outcomes, self.timings, self.compiled)

    @property
    def passed(self) -> bool:
        """True when something ran and nothing failed."""
        return bool(self.outcomes or self.timings or self.compiled) and not self.failures

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
        if settings.attest or settings.cubins or settings.kernels:
            raise ValueError(
                "verify: --attest, --cubins and --kernel need a GPU, and there is none here; run without them"
            )
        found = _on_cpu(settings, track)
    found.seconds = time.perf_counter() - begin
    return found


def chosen_cases(settings: Settings, listed: Sequence[Case]) -> list[Case]:
    """The listed cases whose id or group holds one of the settings' parts, in any case; all without parts.

    Raises ValueError when none is left, unless a timed problem is.
    """
    parts = [part.lower() for part in settings.cases]
    found = [
        case for case in listed if not parts or any(part in case.id or part in case.group for part in parts)
    ]
    if not found and not timed(settings):
        raise ValueError(
            f"verify: no case's id or group holds {' or '.join(settings.cases)}; widen --case, `verify --list` has all"
        )
    return found


def timed(settings: Settings) -> list[Workload]:
    """The problems of the speed part, which only a GPU run has, whose name holds one of the settings' parts."""
    return speed.chosen(settings.cases) if settings.timing and environment.has_gpu() else []


def listed(settings: Settings) -> list[Case]:
    """The cases that a run with these settings takes on this machine. Raises ValueError when there is none."""
    return gpu_cases(settings) if environment.has_gpu() else chosen_cases(settings, on_cpu.cases())


def attested_commit(settings: Settings) -> str:
    """The commit that an attestation names: git's, or the one that is given where there is no git.

    Raises ValueError, before any work, when neither tells one commit that the files are known to be of.
    """
    assert settings.attest is not None
    known, given = environment.commit(settings.attest), (settings.commit or "").lower()
    if given and not re.fullmatch(r"[0-9a-f]{40}", given):
        raise ValueError(f"--commit: expected the 40 hexadecimal digits of a commit, got {settings.commit!r}")
    if known.endswith("+"):
        raise ValueError(
            f"verify: --attest names a commit, but files differ from {known[:-1]}; commit them or put them back first"
        )
    if known and given and known != given:
        raise ValueError(f"--commit: expected {known}, which is checked out here, got {given}; leave it out")
    if not known and not given:
        raise ValueError(
            "verify: --attest names a commit, and there is no git here that tells; give it as --commit"
        )
    return known or given


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
        specs = list(every_spec() if settings.all_specs else table.rows())
        found.compiled = compile_all(specs, track)
    return found


def gpu_cases(settings: Settings) -> list[Case]:
    """The cases of a GPU run: fixed ones, special ones, random ones."""
    random = sweep(DEFAULT if settings.sweep is None else settings.sweep)
    return chosen_cases(settings, [*FIXED, *special_cases.CASES, *random])


def _on_gpu(settings: Settings, track: Track) -> Report:
    if settings.attest and (settings.cases or settings.kernels):
        raise ValueError("verify: --attest needs every kernel and case; leave --kernel and --case out")
    commit = attested_commit(settings) if settings.attest else ""
    if settings.cubins:
        cache.compiled_elsewhere(settings.cubins)
    try:
        target = on_gpu.Target.current(settings.kernels, settings.repeats)
        cases = gpu_cases(settings)
        specs = target.specs(track(cases, "masks", len(cases)))
        if cases and not specs:
            raise ValueError(
                f"verify: no kernel's name holds {' or '.join(settings.kernels)}; widen --kernel"
            )
        version = nvrtc.version_text(cache.entry(specs[0]).nvrtc if specs else None)
        found = Report(f"GPU kernels for {target.arch}", header(version, commit))
        selected = set(every_spec())
        if not settings.cubins:
            if settings.all_specs:
                specs += [spec for spec in every_spec() if spec.arch.rstrip("a") == target.arch]
            found.compiled = [
                one for one in compile_all(specs, track) if one.spec in selected or not one.registers
            ]
        found.outcomes, usable = on_gpu.run(cases, target, track)
        if settings.timing and usable:
            found.timings = speed.run(target, timed(settings), track)
        if settings.attest and found.passed:
            attested = {
                key: found.header[key] for key in ("device", "compute_capability", "driver", "commit")
            }
            attestation.write(settings.attest, attested, found.outcomes, found.header["nvrtc"])
        return found
    finally:
        if settings.cubins:
            cache.compiled_elsewhere(None)


def build_cubins(folder: Path, arch: str, settings: Settings, track: Track = silent) -> int:
    """Compile what a GPU run with these settings needs on `arch` into a folder for its --cubins; returns
    how many.

    Raises CompileError, UnsupportedError without NVRTC.
    """
    # The device's multiprocessors decide which row of the table a case gets; every row is among the variants.
    target = on_gpu.Target(arch, 1, settings.kernels)
    cases = gpu_cases(settings)
    specs: list[AttnSpec] = target.specs(track(cases, "masks", len(cases)))
    compile_all(specs, track)
    return cache.export(specs, folder)


def summary(found: Report) -> str:
    """What was verified and how it ended, in a line."""
    skipped = sum(bool(one.skipped) for one in found.outcomes)
    parts = [f"{len(found.outcomes)} cases"]
    if found.compiled:
        parts.append(f"{len(found.compiled)} kernels compiled")
    if skipped:
        parts.append(f"{skipped} skipped")
    ending = "all passed" if found.passed else f"{len(found.failures)} FAILED"
    return f"Verified {found.where}. {', '.join(parts)}: {ending} in {found.seconds:.0f} s."
