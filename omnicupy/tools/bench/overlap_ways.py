"""What `bench parallel` calls: problems that grow with the ranks, and the ways in which a call may overlap."""

from __future__ import annotations

import inspect
from functools import partial

from omnicupy import parallel as several
from omnicupy.parallel import Plan
from omnicupy.parallel.overlap import ROWS, Overlap, Sizes, Steps, steps_of
from omnicupy.parallel.prediction import Heads
from omnicupy.tools.bench import sharing
from omnicupy.tools.workloads.workload import NAMED, Workload

ON_GPU = ("W1", "W12", "causal-d128-s32768-h32-k8-b1", "W10", "W7")
ON_CPU = ("random-d8-s512-seed0-h2-k1-b1",)
DEFAULT: Overlap = inspect.signature(several.attention).parameters["overlap"].default
BEHIND, FIRST, PREDICTED = "exchange first", "rows first", "predicted way"
SHARES = {
    2: (1, 3),
    4: (1, 1, 2, 4),
}  # of the heads, the groups: what comes first is waited for, so it is small


def grown(ranks: int) -> list[Workload]:
    """Packs like W1 and W12 that have so many tokens for each rank: weak scaling."""
    found = []
    for name in sharing.PACKS:
        tokens = sharing.TOKENS * ranks
        mask = partial(sharing.grown, name, tokens)
        label = f"{name}-like, {sharing.TOKENS:,} tokens a rank"
        found.append(Workload(label, 1, NAMED[name].sizes, mask, "documents like those of a pack"))
    return found


def in_groups(heads: int, count: int) -> Sizes:
    """Heads of keys in each of 2 or 4 exchanges; () where there are too few."""
    if heads < count:
        return ()
    shares = SHARES[count]
    sizes = [max(1, heads * one // sum(shares)) for one in shares[:-1]]
    return (*sizes, heads - sum(sizes))


def steps(made: Plan, rank: int, workload: Workload, overlap: Overlap) -> Steps:
    """What a rank does."""
    return steps_of(made, rank, 0, workload.batch, Heads(*workload.sizes), overlap)


def ways(made: Plan, workload: Workload, *, on_gpu: bool, every: bool) -> dict[str, Overlap]:
    """How a call under a plan may go, by name. every: all that there are, else the usual ones."""
    found: dict[str, Overlap] = {BEHIND: False}
    if not made.travels():
        return found
    predicted = [steps(made, rank, workload, None) for rank in range(made.ranks)]
    if on_gpu and any(str(one) != "none" for one in predicted):
        found[PREDICTED] = None
    if not every:
        return found
    if any(len(steps(made, rank, workload, ROWS).pieces) > 1 for rank in range(made.ranks)):
        found[FIRST] = ROWS
    for count in SHARES:
        if sizes := in_groups(workload.kv_heads, count):
            found[f"heads in {count}"] = sizes
    return found
