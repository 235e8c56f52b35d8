"""What a suite is: workloads by systems, and what is done with each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
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


def with_seeds(names: Sequence[str], seeds: int) -> list[str]:
    """Of names that differ in their seeds alone the first so many."""
    seen: Counter[str] = Counter()
    kept = []
    for name in names:
        shape = re.sub(r"-seed\d+", "-seed", name)
        seen[shape] += 1
        if shape == name or seen[shape] <= seeds:
            kept.append(name)
    return kept
