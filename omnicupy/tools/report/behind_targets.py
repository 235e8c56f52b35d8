"""The goals of forward calls on which another library was once faster, in the tables of targets.py."""

from __future__ import annotations

from collections.abc import Iterator

from omnicupy.tools.bench.suites import WIDE_RANDOM
from omnicupy.tools.report import targets
from omnicupy.tools.report.library import Library
from omnicupy.tools.report.targets import Target

SUITES = ("behind",)
GOAL = (1.0, 1.05)  # times as fast: at least, and if possible


def _goals() -> Iterator[Target]:
    for head_dim in (64, 128, 256):
        for kind in ("full", "causal"):
            label, name = f"D {head_dim}, S 512, {kind}", f"{kind}-d{head_dim}-s512"
            yield Target(label, SUITES, (name,), ("sdpa-cudnn", "cudnn-flex"), *GOAL)
    label = targets.random_label(WIDE_RANDOM[0])
    yield Target(label, SUITES, WIDE_RANDOM[:1], ("cudnn-flex",))
    yield Target(f"{label}, {targets.ALL_SEEDS}", SUITES, WIDE_RANDOM, ("cudnn-flex",), *GOAL, mean=True)
    for name in ("W3m", "W9"):
        yield Target(targets.model_label(name), SUITES, (name,), ("cudnn-flex",), *GOAL)


GROUPS = {f"{targets.RATES} Of several libraries the fastest counts.": tuple(_goals())}


def behind(library: Library) -> str:
    """Those calls beside their rivals."""
    return targets.tables(library, GROUPS)
