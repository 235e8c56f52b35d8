"""What a plan gives each rank, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnicupy.parallel.exchange import Needs
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.prediction import Setting, near_and_far
from omnicupy.parallel.runs import Real
from omnicupy.parallel.seen import Shown, pairs_before

MOST_SHOWN = 16  # ranks in print(stats)


@dataclass(frozen=True)
class PlanStats:
    """A plan in numbers; of several masks the sums, each as often as it has layers.

    tokens: rows of each rank.  pairs: allowed pairs of its rows; of a mask kept as bits or tiles each row counts as the
    mean of its strip, of which there are about 512.  received, sent: bytes of K and V of other ranks, in 16-bit
    numbers; far_received: of them, from other nodes.  rank_s: predicted seconds of each rank: exchange, then one
    launch.  alone_s: of one rank with everything.  slowest_s: of the slowest rank, mask by mask.
    """

    tokens: NDArray[np.int64]
    pairs: NDArray[np.int64]
    received: NDArray[np.int64]
    sent: NDArray[np.int64]
    far_received: NDArray[np.int64]
    rank_s: NDArray[np.float64]
    alone_s: float
    slowest_s: float

    @property
    def balance(self) -> float:
        """Mean over greatest number of pairs: 1 where every rank has the same work."""
        most = float(self.pairs.max())
        return float(self.pairs.mean()) / most if most else 1.0

    @property
    def efficiency(self) -> float:
        """Predicted: time of one rank with everything over (ranks times the slowest rank's time)."""
        return self.alone_s / (len(self.tokens) * self.slowest_s)

    def __str__(self) -> str:
        lines = [
            f"{'rank':>6}{'tokens':>10}{'pairs':>16}{'received MB':>13}{'sent MB':>10}{'predicted us':>14}"
        ]
        shown = range(min(len(self.tokens), MOST_SHOWN))
        for rank in shown:
            lines.append(
                f"{rank:6}{self.tokens[rank]:10}{self.pairs[rank]:16}{self.received[rank] / 1e6:13.2f}"
                f"{self.sent[rank] / 1e6:10.2f}{self.rank_s[rank] * 1e6:14.1f}"
            )
        if len(shown) < len(self.tokens):
            lines.append(f"{'...':>6} {len(self.tokens) - len(shown)} more ranks")
        lines.append(
            f"balance {self.balance:.3f}, received at most {self.received.max() / 1e6:.2f} MB "
            f"({self.far_received.max() / 1e6:.2f} MB from other nodes), predicted efficiency {self.efficiency:.3f}"
        )
        return "\n".join(lines)


def stats_of(
    shown: Sequence[Shown], weights: Sequence[float], rows: Owners, needs: Sequence[Needs], setting: Setting
) -> PlanStats:
    """Statistics of a plan. needs: of each mask."""
    ranks = rows.ranks
    pairs, rank_s = np.zeros(ranks), np.zeros(ranks)
    moved = np.zeros((3, ranks))
    alone = slowest = 0.0
    for one, weight, need in zip(shown, weights, needs, strict=True):
        before = pairs_before(one, rows.edges)
        own: Real = np.bincount(rows.owner, np.diff(before), ranks).astype(np.float64)
        traffic = need.traffic(ranks)
        near, far_keys = near_and_far(traffic, setting.node)
        moved += weight * np.stack([near[1] + far_keys[1], near[0] + far_keys[0], far_keys[1]])
        took = setting.rank_s(own, setting.exchange_s(traffic))
        pairs += weight * own
        rank_s += weight * took
        alone += weight * setting.alone_s(float(before[-1]))
        slowest += weight * float(took.max())
    moved *= setting.heads.key_bytes
    whole, received, sent, far = (np.rint(one).astype(np.int64) for one in (pairs, *moved))
    return PlanStats(rows.counts, whole, received, sent, far, rank_s, alone, slowest)
