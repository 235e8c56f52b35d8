"""What the tensors' shapes and the plan determine of a call of several ranks: looked up at each call but the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from omnicupy.masks.mask import Mask
from omnicupy.parallel import check
from omnicupy.parallel.overlap import Overlap, Piece, Steps, steps_of
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.prediction import Heads
from omnicupy.parallel.ranks import Ranks
from omnicupy.parallel.trip import Trip

Which = int | Sequence[int]


@dataclass(frozen=True)
class Way:
    """What calls of one shape share: steps, and what travels how; kept with the plan.

    masks: of all rows.  behind: the launch that waits.  groups: heads of keys in each exchange; () where nothing
    travels.  said: what ranks compare.  kept: own keys that buffers begin with, those of `behind`.
    """

    masks: tuple[Mask, ...]
    travels: bool
    steps: Steps
    behind: Piece | None
    groups: tuple[slice, ...]
    said: str
    trip: Trip
    overlaps: bool

    @property
    def kept(self) -> tuple[int, int]:
        return (self.behind.low, self.behind.high) if self.behind else (0, 0)


def way_of(
    plan: Plan, ranks: Ranks, mask: Which, arrays: tuple[Any, Any, Any], overlap: Overlap, exchange: str
) -> Way:
    """arrays: q, k and v of the rank, which are its shards under the plan. overlap: as `steps_of` takes it.
    exchange: as `attention` takes it.
    """
    _, k, v = arrays
    steps = _steps(plan, ranks.rank, mask, arrays, overlap)
    travels = plan.travels(mask)
    behind = steps.pieces[-1] if steps.pieces and steps.pieces[-1].waits else None
    groups = tuple(_groups(steps.groups)) if travels else ()
    hides = overlap is not False or _copies_long(plan, k, v)
    trip = Trip(plan, ranks, mask, hides=hides, overlaps=overlap is not False)
    said = check.said(plan, check.shared((k, v), mask, steps.groups)._replace(exchange=exchange))
    masks = plan.locals(ranks.rank, mask)
    return Way(masks, travels, steps, behind, groups, said, trip, overlap is not False)


def _copies_long(plan: Plan, k: Any, v: Any) -> bool:
    """Whether own keys take longer to copy than it costs to have the exchange on a stream beside them."""
    speeds = plan.setting.speeds
    return bool(2 * (k.numel() + v.numel()) * k.element_size() > speeds.copied * speeds.split_s)


def _steps(plan: Plan, rank: int, mask: Which, arrays: tuple[Any, Any, Any], overlap: Overlap) -> Steps:
    q, k, v = arrays
    # Work and bytes are those of the mean width.
    heads = Heads(q.shape[1], k.shape[1], (k.shape[3] + v.shape[3]) // 2)
    if overlap is None and not q.is_cuda:  # a CPU has no stream beside that of its computing threads
        overlap = False
    return steps_of(plan, rank, mask, len(q), heads, overlap)


def _groups(sizes: Sequence[int]) -> list[slice]:
    return [slice(first, stop) for first, stop in pairwise(accumulate(sizes, initial=0))]
