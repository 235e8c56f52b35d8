"""The suite `accuracy` as text: errors beside the best rival's, and which are above what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

ALLOWED = 1.05  # our error over the best rival's
NAMES = ("out", "dq", "dk", "dv")
OURS = "omnicupy"


@dataclass(frozen=True)
class Verdict:
    """One error of ours beside the best rival's. rival: "" where none ran.  name: of NAMES.  only_here: elements that
    are Inf or NaN in ours and in no result of torch's.
    """

    workload: str
    system: str
    name: str
    error: float
    rival: str
    best: float
    only_here: int = 0

    @property
    def ratio(self) -> float:
        """Our error over the best rival's; 1 where both are 0 or both infinite."""
        if self.error == self.best:
            return 1.0
        return self.error / self.best if self.best else inf

    @property
    def holds(self) -> bool:
        """True where it is allowed; where no rival ran, too."""
        return not self.only_here and self.error < inf and (not self.rival or self.ratio <= ALLOWED)

    def __str__(self) -> str:
        beside = f" ({self.ratio:.2f} of {self.rival})" if self.rival else ""
        more = f", {self.only_here} not finite in ours alone" if self.only_here else ""
        return f"{self.error:.2e}{beside}{more}"


def verdicts(rows: Sequence[dict[str, Any]]) -> Iterator[Verdict]:
    """Each error of ours in rows of the suite."""
    for row in rows:
        if not is_ours(row) or not row.get("rms"):
            continue
        rivals = [
            one for one in rows if one["workload"] == row["workload"] and not is_ours(one) and one.get("rms")
        ]
        for name in NAMES:
            beside = {one["system"]: float(one["rms"][name]) for one in rivals}
            rival = min(beside, key=lambda system: beside[system], default="")
            only = (row.get("only_here") or {}).get(name, 0)
            found = Verdict(row["workload"], row["system"], name, float(row["rms"][name]), rival, 0.0, only)
            yield (
                found
                if not rival
                else Verdict(found.workload, found.system, name, found.error, rival, beside[rival], only)
            )


def is_ours(row: dict[str, Any]) -> bool:
    """True for a row of this library."""
    return str(row["system"]).partition(":")[0] == OURS


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table's lines of cells: an input a line for each of our calls, with the ratio to the best rival."""
    of: dict[tuple[str, str], dict[str, Verdict]] = {}
    for one in verdicts(rows):
        of.setdefault((one.workload, one.system), {})[one.name] = one
    found = [["input", "system", *NAMES, f"at most {ALLOWED}"], ["---", "---", *["---:"] * len(NAMES), "---"]]
    for (workload, system), by_name in of.items():
        holds = all(one.holds for one in by_name.values())
        found.append([workload, system, *(str(by_name[name]) for name in NAMES), "yes" if holds else "NO"])
    for row in rows:
        if is_ours(row) and row.get("problem"):
            found.append([row["workload"], row["system"], *["-"] * len(NAMES), f"NO: {row['problem']}"])
    return found


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many errors are at most ALLOWED times the best rival's, and every one that is not."""
    every = list(verdicts(rows))
    above = [one for one in every if not one.holds]
    text = [
        f"{len(every) - len(above)} of {len(every)} errors of ours are at most {ALLOWED} times the best rival's."
    ]
    text += [f"- {one.workload}, {one.system}: {one.name} {one}" for one in above]
    failed = [row for row in rows if row.get("problem")]
    text += [
        f"- {row['workload']}, {row['system']}: not measured: {row['problem']}"
        for row in failed
        if is_ours(row)
    ]
    return text
