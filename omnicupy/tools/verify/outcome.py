"""What came of one case on one kernel."""

from __future__ import annotations

from dataclasses import dataclass

from omnicupy.tools.verify.cases import Case


@dataclass(frozen=True)
class Outcome:
    """One case on one kernel.

    kernel: the name the report gives it.  sources: its files in `kernels/`, none for the CPU engine.
    ratio: the worst row's error over its budget, 0 where the case compares bits.  problem: "" where it
    passed. skipped: why it did not run, "" where it did.
    """

    case: Case
    kernel: str
    sources: tuple[str, ...]
    ratio: float
    problem: str = ""
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """True within the budget and without any other problem."""
        return not self.problem and not self.skipped

    def __str__(self) -> str:
        return f"{self.kernel}: {self.case.id}: {self.problem or self.skipped or 'passed'}"


class BrokenDeviceError(RuntimeError):
    """A kernel left the device unusable for this process: nothing after it can run. outcome: of the
    culprit.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome
