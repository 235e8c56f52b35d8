"""The attestation: which kernel sources a GPU run has verified, as digests and case ids that a machine without one can
check.

It is kept by source, and a run may be any part of the work: some sources, a part of their cases, one NVRTC. What it
finds is merged into the file, so several runs, also interrupted ones, add up to a whole. A source is attested when
every planned case has passed for its digest, with the kernels of each NVRTC of `nvrtc.ATTESTED`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnicupy.jit import nvrtc, trust
from omnicupy.jit.files import replace_file
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.plan import BIG_IDS, WHOLE, Part, planned
from omnicupy.tools.verify.source_digest import BACKWARD, SOURCES, digest

SCHEMA = 2
BEGUN = 400  # cases of a source of the backward pass, after which calls get its kernels
# What json.dumps spreads over lines, and reads better as one: a case's error for each NVRTC.
_RATIOS = re.compile(r'\{\s*("[\d.]+": [-\d.e]+(?:,\s*"[\d.]+": [-\d.e]+)*)\s*\}')

Content = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run is, as the file names it. nvrtc: the version whose kernels run.  part: of the planned cases.

    header: device, compute_capability, driver, commit.
    """

    nvrtc: str
    header: Content
    part: Part = WHOLE

    def content(self) -> Content:
        """The run as the file holds it, with no case yet."""
        return {"nvrtc": self.nvrtc, "part": str(self.part), "cases": 0, **self.header}


class Record:
    """An attestation file while a run adds to it.

    sources: what the run attests.  resume: keep what the file holds of the run's part; else that is run anew.
    What the file holds of other digests of these sources is dropped at the first write.
    Raises ValueError for a file that is no attestation, which is not overwritten.
    """

    def __init__(self, path: str | Path, run: Run, sources: Sequence[str], *, resume: bool = False) -> None:
        self._path, self._run = Path(path), run
        content, problem = _read(self._path)
        if content is None and self._path.exists() and not _is_of_another_schema(self._path):
            raise ValueError(f"verify: --attest: {problem}; name another file, or remove this one")
        self._content = content or {"schema": SCHEMA, "sources": {}}
        for name in sources:
            self._begin(name, resume)

    def beside(self, run: Run, sources: Sequence[str], *, resume: bool = False) -> Record:
        """The same file for another run at the same time; what either writes holds both. Arguments as above."""
        found = object.__new__(Record)
        found._path, found._run, found._content = self._path, run, self._content
        for name in sources:
            found._begin(name, resume)
        return found

    def _begin(self, name: str, resume: bool) -> None:
        made, ids = digest(name), planned(name)
        entry = self._content["sources"].get(name)
        if entry is None or entry["digest"] != made:
            entry = {"digest": made, "kernels": [], "runs": [], "cases": {}}
            self._content["sources"][name] = entry
        version, part = self._run.nvrtc, self._run.part
        for case in list(entry["cases"]):
            if case not in ids or (not resume and case in part):
                entry["cases"][case].pop(version, None)
            if case not in ids or not entry["cases"][case]:
                del entry["cases"][case]
        if not resume:
            entry["runs"] = [
                one
                for one in entry["runs"]
                if one["nvrtc"] != version or (part != WHOLE and one["part"] != str(part))
            ]

    def holds(self, name: str) -> set[str]:
        """The ids of the cases of a source that the run need not take: the file has them of this digest and NVRTC."""
        cases = self._content["sources"][name]["cases"]
        return {case for case, ratios in cases.items() if self._run.nvrtc in ratios}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Take in all outcomes of some cases. A case that failed or was skipped on any kernel of a source is not
        held for it, nor any longer.
        """
        cases: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in outcomes:
            for name in outcome.sources:
                if name in self._content["sources"]:
                    cases.setdefault((name, outcome.case.id), []).append(outcome)
        for (name, case), found in cases.items():
            entry = self._content["sources"][name]
            entry["kernels"] = sorted({*entry["kernels"], *(one.kernel for one in found)})
            of_case = entry["cases"].setdefault(case, {})
            is_new = of_case.pop(self._run.nvrtc, None) is None
            if all(one.passed for one in found):
                of_case[self._run.nvrtc] = float(f"{max(one.ratio for one in found):.3g}")
                self._entry_of_run(entry)["cases"] += is_new
            elif not of_case:
                del entry["cases"][case]

    def _entry_of_run(self, entry: Content) -> Content:
        mine = self._run.content()
        for one in entry["runs"]:
            if {**one, "cases": 0} == mine:
                found: Content = one
                return found
        entry["runs"].append(mine)
        return mine

    def write(self) -> None:
        """Write the file, whole or not at all."""
        _write(self._path, self._content)


def join(path: str | Path, others: Sequence[str | Path]) -> None:
    """Add to an attestation what other files hold, of runs beside each other: of each source what has today's digest.

    Raises ValueError for a file that is no attestation; `path` need not exist.
    """
    target = Path(path)
    files = [Path(one) for one in others]
    joined: Content = {"schema": SCHEMA, "sources": {}}
    for file in [target, *files] if target.exists() else files:
        content, problem = _read(file)
        if content is None:
            raise ValueError(f"attest: {problem}; leave it out")
        for name, entry in content["sources"].items():
            if name in SOURCES and entry["digest"] == digest(name):
                _add_entry(
                    joined["sources"].setdefault(name, {**entry, "kernels": [], "runs": [], "cases": {}}),
                    entry,
                )
    _write(target, joined)


def _add_entry(to: Content, entry: Content) -> None:
    to["kernels"] = sorted({*to["kernels"], *entry["kernels"]})
    to["runs"] += [one for one in entry["runs"] if one not in to["runs"]]
    for case, ratios in entry["cases"].items():
        mine = to["cases"].setdefault(case, {})
        for version, ratio in ratios.items():
            mine[version] = max(ratio, mine.get(version, 0.0))


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _RATIOS.sub(lambda found: f"{{{' '.join(found[1].split())}}}", json.dumps(content, indent=1))
    replace_file(path, f"{text}\n".encode())


def _read(path: Path) -> tuple[Content | None, str]:
    """What a file holds, or None and what is wrong with it."""
    try:
        content = trust.parsed_json(path.read_bytes())
        schema = content.get("schema")
        if schema == SCHEMA and isinstance(content["sources"], dict):
            return content, ""
    except (OSError, ValueError, AttributeError, KeyError):
        return None, f"{path} is missing or unreadable"
    if not isinstance(schema, int):
        return None, f"{path} is no attestation"
    return (
        None,
        f"{path} has schema {schema}, which is not read any more ({SCHEMA} is): run verify --attest anew",
    )


def _is_of_another_schema(path: Path) -> bool:
    return "has schema" in _read(path)[1]


def stale(path: str | Path) -> dict[str, str]:
    """Kernel source -> what an attestation lacks of it, for every source that it does not cover whole."""
    content, problem = _read(Path(path))
    found = {name: problem or _problem_of(name, content) for name in SOURCES}
    return {name: said for name, said in found.items() if said}


def unserved(path: str | Path) -> dict[str, str]:
    """Kernel source -> why no row of the table may select it.

    A source of the backward pass may be selected before it is attested whole, once BEGUN cases of this very digest
    passed, with any NVRTC. Any other one before the cases passed that need most of a GPU's memory and so a GPU of their
    own (plan.BIG_IDS).
    """
    content, _ = _read(Path(path))
    found = stale(path)
    for name in list(found):
        entry = content["sources"].get(name) if content else None
        if entry is None or entry["digest"] != digest(name):
            continue
        if SOURCES[name].launch is not BACKWARD:
            if not _problem_of(name, content, planned(name) - BIG_IDS):
                del found[name]
            continue
        passed = [max(ratios.values()) for case, ratios in entry["cases"].items() if case in planned(name)]
        if len(passed) >= BEGUN and max(passed) <= 1:
            del found[name]
    return found


def _problem_of(name: str, content: Content | None, needed: set[str] | None = None) -> str:
    """Why a source is not attested; "" where it is. needed: the cases that must have passed, None for all."""
    entry = content["sources"].get(name) if content else None
    if entry is None:
        return "no entry"
    if entry["digest"] != digest(name):
        return "the digest is another one: its sources, variants, struct or launch code have changed"
    ids = planned(name)
    if unknown := len(set(entry["cases"]) - ids):
        return f"{unknown} of its cases are unknown"
    needed = ids if needed is None else needed
    missing = [said for version in nvrtc.ATTESTED if (said := missing_parts(entry, needed, version))]
    if missing:
        return "; ".join(missing)
    if any(ratio > 1 for ratios in entry["cases"].values() for ratio in ratios.values()):
        return "a case is over its budget"
    return ""


def missing_parts(entry: Content, ids: set[str], version: str) -> str:
    """Which of the planned cases (their ids) an entry lacks for a version of NVRTC, in words; "" where it has all."""
    lacking = {case for case in ids if version not in entry["cases"].get(case, {})}
    if not lacking:
        return ""
    runs = [one for one in entry["runs"] if one["nvrtc"] == version]
    count = Part.parse(runs[-1]["part"]).count if runs else 1
    if count == 1:
        return f"NVRTC {version}: {len(lacking)} of {len(ids)} cases are missing"
    whole, some = [], []
    for part in (Part(number, count) for number in range(1, count + 1)):
        mine = {case for case in ids if case in part}
        gone = len(mine & lacking)
        if gone and gone == len(mine):
            whole.append(part.number)
        elif gone:
            some.append(f"{gone} of {len(mine)} cases of part {part.number}")
    said = [_these_parts(whole, count)] if whole else []
    return f"NVRTC {version}: {' and '.join([*said, *some])} are missing"


def _these_parts(numbers: Sequence[int], count: int) -> str:
    if len(numbers) == 1:
        return f"all of part {numbers[0]} of {count}"
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return f"parts {listed} of {count}"
