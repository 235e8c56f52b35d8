"""What a suite is: workloads by systems, and what is done with each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Workloads on systems. kind: what is done with each workload, a key of suites.KINDS."""

    workloads: tuple[str, ...]
    systems: tuple[str, ...]
    kind: str = "measure"


@dataclass(frozen=True)
class Suite:
    """Parts that go into one record. note: what it is for."""

    note: str
    parts: tuple[Part, ...]

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workloads of all parts."""
        return tuple(name for part in self.parts for name in part.workloads)

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems of all parts."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.systems))
