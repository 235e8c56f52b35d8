"""A verification run that attests: what it may be asked for, and what it writes while it goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omnicupy.jit import cache, nvrtc
from omnicupy.jit.spec import KernelSpec
from omnicupy.tools import environment
from omnicupy.tools.verify.attestation import Record, Run
from omnicupy.tools.verify.cases import Case
from omnicupy.tools.verify.on_gpu import Turn
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.plan import planned

WRITE_EVERY = 50  # cases; what an interrupted run loses at most
WRITE_AGAIN_S = 15.0  # after which fewer are written, too


def attested_commit(path: Path, given: str | None) -> str:
    """The commit that an attestation at `path` names: git's, or the given one where there is no git.

    Raises ValueError, before any work, when neither tells one commit that the files are known to be of.
    """
    known, given = environment.commit(path), (given or "").lower()
    if given and not re.fullmatch(r"[0-9a-f]{40}", given):
        raise ValueError(f"--commit: expected the 40 hexadecimal digits of a commit, got {given!r}")
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


class Attesting:
    """Adds the outcomes of a run to an attestation, in groups of cases; what is left of one at the end of the `with`.

    record: None where nothing is attested.
    """

    def __init__(self, record: Record | None) -> None:
        self._record = record
        self._waiting, self._written = 0, time.monotonic()

    @classmethod
    def of(cls, path: Path, run: Run, sources: Sequence[str], *, resume: bool) -> Self:
        """A run that attests `sources` in the file at `path`, see Record."""
        return cls(Record(path, run, sources, resume=resume))

    def done(self, outcomes: list[Outcome]) -> None:
        """Take in the outcomes of one case on all of its kernels."""
        if self._record is None:
            return
        self._record.add(outcomes)
        self._waiting += 1
        if self._waiting >= WRITE_EVERY or time.monotonic() > self._written + WRITE_AGAIN_S:
            self._record.write()
            self._waiting, self._written = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._record is not None and self._waiting:
            self._record.write()


@contextmanager
def turns(
    path: Path,
    runs: Sequence[tuple[Run, cache.Kernels]],
    sources: Sequence[str],
    cases: Sequence[Case],
    *,
    resume: bool,
) -> Iterator[list[Turn]]:
    """For each run a turn with its kernels, whose outcomes go to the file at `path`: of all cases, or of those that the
    file lacks. Raises as Record.
    """
    records: list[Record] = []
    for run, _ in runs:
        first = records[0].beside if records else partial(Record, path)
        records.append(first(run, sources, resume=resume))
    with ExitStack() as writers:
        found = []
        for (_, kernels), record in zip(runs, records, strict=True):
            writer = writers.enter_context(Attesting(record))
            wanted = left(cases, record, sources) if resume else cases
            found.append(
                Turn(partial(cache.take, kernels), writer.done, frozenset(case.id for case in wanted))
            )
        try:
            yield found
        finally:
            cache.take(runs[0][1])


def version_of(kernels: cache.Kernels, other: str, specs: Sequence[KernelSpec]) -> str:
    """The NVRTC of a folder's kernels, which has all of these. Raises ValueError where it is the other one's,
    UnsupportedError where a kernel is missing.
    """
    version = version_text(kernels)
    if version == other:
        raise ValueError(
            f"verify: --also-cubins: expected kernels of another NVRTC than {other}, got the same; leave them out"
        )
    before = cache.current()
    cache.take(kernels)
    try:
        for spec in specs:
            cache.entry(spec)
    finally:
        cache.take(before)
    return version


def version_text(kernels: cache.Kernels) -> str:
    """The NVRTC that makes, or has made, these kernels, such as "12.9"; "" where there is none."""
    return nvrtc.version_text(kernels.override.nvrtc if kernels.override else None)


def lacked(path: Path, sources: Sequence[str], cases: Sequence[Case], also: Path | None) -> list[Case]:
    """The cases that a file lacks for the kernels that are taken, or for those of the folder `also`; found before masks
    are made. Raises as Record.
    """
    every = [cache.current(), *([cache.kernels_of(also)] if also else [])]
    records = [Record(path, Run(version_text(one), {}), sources, resume=True) for one in every]
    wanted = {case.id for record in records for case in left(cases, record, sources)}
    return [case for case in cases if case.id in wanted]


def left(cases: Sequence[Case], record: Record, sources: Sequence[str]) -> list[Case]:
    """The cases that one of the sources has yet to pass."""
    wanted: set[str] = set().union(*(planned(name) - record.holds(name) for name in sources))
    return [case for case in cases if case.id in wanted]


def header_of(run: dict[str, Any]) -> dict[str, Any]:
    """What an attestation takes over from the header of a run."""
    return {key: run[key] for key in ("device", "compute_capability", "driver", "commit")}
