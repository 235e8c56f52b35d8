"""The goals of the backward pass in one table, and those that README.md shows."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.bench.records import OURS, Row, table
from omnicupy.tools.report import behind_targets, gradient_targets, targets
from omnicupy.tools.report.library import Library
from omnicupy.tools.report.tables import NONE
from omnicupy.tools.report.targets import Target

BUILD, BLOCKS = f"build {PASSES['fwd+bwd'].name}", "blocks"
NEW, SAME = "new_mask_call_ms", "same_mask_call_ms"
TIED = "\xa0"  # a space where no line ends
IN_ONE = "in one order if any was not timed"  # gradient_targets falls back to that
OLD_TILE = f"{OURS}:sm90-128x64-s3-w12"  # of W8 before there were several thread blocks a multiprocessor
LONG = tuple(f"D {head_dim}, S 16384" for head_dim in (128, 64, 256))


@dataclass
class Measured:
    """What a goal is held against. of: figures by what they are of.  used: names of records.  missing: what has no
    figure.
    """

    of: dict[str, float] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Goal:
    """label, least, aim: what is asked.  find: what was measured.  mean: of the geometric mean in place of each.

    at_most: less is better, and `least` the most.  unit: behind figures.  word: for README.md, "" where it has it not.
    """

    label: str
    least: float
    aim: float
    find: Callable[[Library], Measured]
    mean: bool = False
    at_most: bool = False
    unit: str = ""
    word: str = ""

    def reached(self, value: float) -> bool:
        """Is a figure what is asked at least?"""
        return value <= self.least if self.at_most else value >= self.least

    def share(self, value: float) -> float:
        """Of what is asked at least."""
        return self.least / value if self.at_most else value / self.least


def _held(wanted: Iterable[Target]) -> Callable[[Library], Measured]:
    """Ours over the fastest of the rivals, by workload."""
    every = tuple(wanted)

    def find(library: Library) -> Measured:
        found = Measured()
        for target in every:
            known = targets.by_workload(target, library)
            found.missing += [] if known else [target.label]
            found.of |= {name: one.ratio for name, one in known.items()}
            found.used |= {part.name for one in known.values() for part in one.parts}
        return found

    return find


def _group(begins: str) -> list[Target]:
    (found,) = (every for title, every in gradient_targets.GROUPS.items() if title.startswith(begins))
    return [target for target in found if target.least]


def _chosen(begins: str, *labels: str, mean: bool = False) -> Callable[[Library], Measured]:
    """Of a group of gradient_targets those with a goal whose label has one of these words."""
    wanted = [one for one in _group(begins) if one.mean == mean and any(word in one.label for word in labels)]
    return _held(wanted)


def _mean(label: str, least: float, aim: float, begins: str, name: str, word: str = "") -> Goal:
    """A goal of a mean."""
    return Goal(label, least, aim, _chosen(begins, name, mean=True), mean=True, word=word)


def _one_over(find: Callable[[Library], Measured]) -> Callable[[Library], Measured]:
    def made(library: Library) -> Measured:
        found = find(library)
        found.of = {name: 1 / value for name, value in found.of.items()}
        return found

    return made


def _new_mask(library: Library) -> Measured:
    """Milliseconds that a new mask of W1 adds to both passes."""
    for part in library.every(BUILD):
        for row in part.rows:
            figures = row.get("figures", {})
            if (row["workload"], row["system"]) == ("W1", OURS) and figures.get(NEW) and figures.get(SAME):
                return Measured({"W1": figures[NEW] - figures[SAME]}, {part.name})
    return Measured(missing=["W1"])


def _windows(library: Library) -> Measured:
    """The time of the tile of before over that of what a call gets now, W8."""
    for part in library.every(BLOCKS):
        rows: dict[str, Row] = {row["system"]: row for row in part.rows if row["workload"] == "W8"}
        pair = [rows.get(system, {}).get("ms") for system in (OLD_TILE, OURS)]
        if pair[0] and pair[1]:
            return Measured({"W8": pair[0] / pair[1]}, {part.name})
    return Measured(missing=["W8"])


_ANY, _MASKS, _ORDER = (
    "Gradients in any order, full",
    "Gradients in any order, masks",
    "Gradients in one order, the default, over those in",
)
_SAME, _CALLS, _PORTABLE = (
    "Gradients in one order, the default, over those of",
    "Both passes",
    "Gradients by the mma.sync",
)
_BEST = "of the best other library"
_FLEX = "of cuDNN's flex_attention"
_EACH = tuple(f"{name}:" for name in gradient_targets.MODELS if name not in gradient_targets.GOALS_OF)
_FORWARD = [target for every in behind_targets.GROUPS.values() for target in every if target.least]


def _behind(*words: str) -> Callable[[Library], Measured]:
    return _held(target for target in _FORWARD if any(word in target.label for word in words))


GOALS = (
    Goal(
        f"{LONG[0]}, full and causal, {_BEST}",
        0.97,
        1.05,
        _chosen(_ANY, LONG[0]),
        word="S 16384, full and causal, D 128",
    ),
    Goal(f"{LONG[1]}, full and causal, {_BEST}", 1.0, 1.06, _chosen(_ANY, LONG[1]), word="D 64"),
    Goal(f"{LONG[2]}, full, {_BEST}", 1.15, 1.3, _chosen(_ANY, f"{LONG[2]}, full"), word="D 256, full"),
    Goal(f"{LONG[2]}, causal, {_BEST}", 1.1, 1.3, _chosen(_ANY, f"{LONG[2]}, causal"), word="D 256, causal"),
    Goal(f"W1 to W6, W8f, W10 to W12, {_FLEX}", 0.95, 1.12, _chosen(_MASKS, *_EACH)),
    _mean(f"all masks of models, {_FLEX}", 1.05, 1.15, _MASKS, "all of them", word="means: masks of models"),
    Goal(f"W7, W7g, {_FLEX}", 1.35, 1.7, _chosen(_MASKS, "W7:", "W7g:")),
    Goal(f"W9, W13, {_FLEX}", 1.1, 1.3, _chosen(_MASKS, "W9:", "W13:")),
    _mean(f"random, D 64, S 8192, {_BEST}", 1.05, 1.2, _MASKS, "D 64", word="random, D 64"),
    _mean(f"random, D 128, S 16384, {_BEST}", 1.05, 1.15, _MASKS, "D 128", word="random, D 128"),
    _mean(f"random, D 256, S 8192, {_BEST}", 1.4, 2.0, _MASKS, "D 256", word="random, D 256"),
    _mean(
        f"both passes by torch, random, S 1024 x 4, {_BEST}",
        2.0,
        3.0,
        _CALLS,
        "S 1024",
        word="both passes by torch, S 1024 x 4",
    ),
    _mean(
        f"both passes by torch, random, S 2048 x 8, {_BEST}",
        1.5,
        1.8,
        _CALLS,
        "S 2048",
        word="S 2048 x 8",
    ),
    Goal(
        "the default's time over that in any order, masks of models",
        1.08,
        1.03,
        _one_over(_chosen(_ORDER, "mean", mean=True)),
        mean=True,
        at_most=True,
    ),
    Goal("the worst of them", 1.2, 1.1, _one_over(_chosen(_ORDER, "worst")), at_most=True),
    _mean("the default, of other libraries' gradients with the same bits each time", 1.1, 1.3, _SAME, "mean"),
    Goal("a new mask of W1 for both passes", 6.0, 3.0, _new_mask, at_most=True, unit=" ms"),
    Goal("mma.sync in any order, of FlashAttention-2", 0.95, 1.05, _chosen(_PORTABLE, "in any order")),
    Goal("mma.sync in one order, of FlashAttention-2", 0.7, 0.85, _chosen(_PORTABLE, "in one order")),
    Goal(f"forward, dense, S 512, {_BEST}", 1.0, 1.05, _behind("S 512")),
    Goal(f"forward, random, D 256, S 8192, {_FLEX}", 1.0, 1.05, _behind("random"), mean=True),
    Goal(f"forward, W3m, W9, {_FLEX}", 1.0, 1.05, _behind("W3m", "W9")),
    Goal("forward, W8, the time of a tile of 128 x 64 over today's", 1.3, 2.0, _windows),
)


def best(library: Library) -> str:
    """The goals that were measured, in a sentence of README.md."""
    of = {goal.word: (goal, goal.find(library).of) for goal in GOALS if goal.word}
    said = [
        f"{word} {f'{statistics.geometric_mean(found.values()):.2f}' if goal.mean else _listed(found)}"
        for word, (goal, found) in of.items()
        if found
    ]
    whole = "; ".join(one.replace(" ", TIED) for one in said)
    begin = "Gradients in any order over the fastest other default"
    text = textwrap.fill(f"{begin}: {whole}. Both {IN_ONE}.", 120)
    return text.replace(TIED, " ") if said else NONE


def _listed(found: dict[str, float]) -> str:
    return ", ".join(f"{one:.2f}" for one in found.values())


def goals(library: Library) -> str:
    """What is asked of the backward pass, a line a goal, and what stays short of it."""
    lines = [["goal", "at least", "aim", "measured", "reach it", "short of it, and the share of the goal"]]
    lines.append(["---", "---:", "---:", "---:", "---:", "---"])
    used: set[str] = set()
    for goal in GOALS:
        found = goal.find(library)
        used |= found.used
        bound = "at most " if goal.at_most else ""
        wanted = [goal.label, f"{bound}{goal.least:g}{goal.unit}", f"{goal.aim:g}{goal.unit}"]
        lines.append([*wanted, *_cells(goal, found)])
    if not used:
        return NONE
    names = ", ".join(f"[{name}](results/{name})" for name in sorted(used))
    return (
        "Times as fast, the worst of a line's workloads or, where it says so, their geometric mean. Gradients are in "
        f"any order unless a line says otherwise, {_CALLS.lower()} {IN_ONE}.\n\n{table(lines)}\n\nFrom {names}."
    )


def _cells(goal: Goal, found: Measured) -> list[str]:
    """Cells of a line: what counts, how many reach the goal, those that do not."""
    if not found.of:
        return ["not measured", "", ""]
    if goal.mean:
        value = statistics.geometric_mean(found.of.values())
        reached = goal.reached(value)
        last = _absent(found) if reached else f"{goal.share(value):.2f}"
        return [f"{value:.3f}{goal.unit}, mean of {len(found.of)}", "yes" if reached else "no", last]
    worst = (max if goal.at_most else min)(found.of.values())
    short = {name: one for name, one in found.of.items() if not goal.reached(one)}
    last = ", ".join(f"{name} {one:.3f} ({goal.share(one):.2f})" for name, one in short.items())
    reach = f"{len(found.of) - len(short)} of {len(found.of)}"
    return [f"{worst:.3f}{goal.unit}", reach, "; ".join(filter(None, [last, _absent(found)]))]


def _absent(found: Measured) -> str:
    return f"not measured: {', '.join(found.missing)}" if found.missing else ""
