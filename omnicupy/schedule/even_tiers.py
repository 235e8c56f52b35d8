"""Tiers whose last parts begin early enough, for launches in which a part takes a good share of the time.

Tier by tier all sections of heads come one after the other. So the longest part of a tier of the last section begins
when the tiers ahead are done and this one is, but for that section; it may end long after all others. Tiers by length
(parts.py) bound that where parts are short. Here each tier holds as many parts as leave its longest one time to end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnicupy.schedule.parts import Workers

FEW = 4  # sections, of which additions would wait about as long as multiprocessors do without
MOST = 1.1  # of the time of even work: what ends later is late
TRIED = (0.0, 0.02, 0.04, 0.06, 0.08)  # by how much of it a tier's longest part may end late


def even_tiers(
    costs: NDArray[np.int64], tiers: tuple[int, ...], section: int, workers: Workers
) -> tuple[int, ...]:
    """Where tiers of a head's parts end: as they were, but where the launch ends late by them and not by others.

    costs: of the parts, the longest first.  section: heads that are worked on side by side.
    """
    sections = -(-workers.heads // section)
    if sections <= FEW:
        return tiers
    before = np.zeros(len(costs) + 1)
    costs.cumsum(out=before[1:])
    before /= before[-1]
    shares = costs.astype(np.float64) * (workers.sm_count / (int(costs.sum()) * workers.heads))
    work = _Work(before, shares, sections)
    if work.end(tiers) <= MOST:
        return tiers
    end, found = min((work.end(one), one) for one in (work.cut(late, len(tiers)) for late in TRIED))
    return found if end <= MOST else tiers


@dataclass(frozen=True)
class _Work:
    """before: a head's work before each part, and of all, over all of it.  shares: what each part takes of the time of
    even work.  sections: of heads, one after the other.
    """

    before: NDArray[np.float64]
    shares: NDArray[np.float64]
    sections: int

    def end(self, tiers: tuple[int, ...]) -> float:
        """When the last section's longest parts end, over the time of even work: a bound from below."""
        first, latest = 0, 1.0
        for end in tiers:
            if first < end:
                own = (self.before[end] - self.before[first]) * (1 - 1 / self.sections)
                latest = max(latest, float(self.before[first] + own + self.shares[first]))
            first = end
        return latest

    def cut(self, late: float, count: int) -> tuple[int, ...]:
        """So many tiers, each as long as it may be for its longest part to end in time, the last one with the rest."""
        first, ends, all_parts = 0, [], len(self.shares)
        for _ in range(count - 1):
            if first < all_parts:
                room = 1 + late - float(self.before[first] + self.shares[first])
                own = max(0.0, room) * self.sections / (self.sections - 1)
                last = int(self.before.searchsorted(self.before[first] + own, "right")) - 1
                first = min(max(first + 1, last), all_parts)
            ends.append(first)
        return (*ends, all_parts)
