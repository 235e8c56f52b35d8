"""The goals of the backward pass beside what was measured, in the tables of targets.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from omnicupy.tools.bench import peers
from omnicupy.tools.bench.gradients import ANY_ORDER, IN_ANY_ORDER, PASSES
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.suites import (
    CALL_SEEDS,
    GRADIENT_MODELS,
    MIDDLE_RANDOM,
    NARROW_RANDOM,
    SHORT_RANDOM,
    WIDE_RANDOM,
)
from omnicupy.tools.report import targets
from omnicupy.tools.report.library import Library
from omnicupy.tools.report.targets import IN_A_ROW, Target

_BACKWARD, _BOTH = PASSES["bwd"].name, PASSES["fwd+bwd"].name
MODELS = GRADIENT_MODELS
DENSE_RIVALS = ("sdpa-cudnn", "fa4")  # the fastest there; cuDNN's flex_attention never was
FLEX = "cudnn-flex"
WIDE_RIVALS = (*DENSE_RIVALS, FLEX, "flex")
SAME_BITS = (*peers.SAME_BITS, "flex")
# Times as fast as cuDNN's flex_attention: at least, and if possible.
GOALS_OF = {"W7": (1.35, 1.7), "W7g": (1.35, 1.7), "W9": (1.1, 1.3), "W13": (1.1, 1.3)}
GOALS = (0.95, 1.12)


def _dense() -> Iterator[Target]:
    suites = (f"dense {_BACKWARD}",)
    for head_dim, kind, least, aim in (
        *((128, kind, 0.97, 1.05) for kind in ("full", "causal")),
        *((64, kind, 1.0, 1.06) for kind in ("full", "causal")),
        (256, "full", 1.15, 1.3),
        (256, "causal", 1.1, 1.3),
    ):
        label, names = f"D {head_dim}, S 16384, {kind}", (f"{kind}-d{head_dim}-s16384",)
        ours: dict[str, Any] = {"ours": IN_ANY_ORDER}
        goal = Target(label, suites, names, DENSE_RIVALS, least, aim, **ours)  # the fastest counts
        if head_dim > 128:  # not all libraries have gradients there
            of_one = Target(label, suites, names, DENSE_RIVALS[:1], **ours)
            goal = replace(goal, rivals=WIDE_RIVALS, some=True, or_else=of_one)
        yield goal
        for rival in (*DENSE_RIVALS, FLEX) if head_dim <= 128 else WIDE_RIVALS:
            yield Target(label, suites, names, (rival,), **ours)


def _masks() -> Iterator[Target]:
    suites = (f"vlm {_BACKWARD}",)
    for name in MODELS:
        wanted = GOALS_OF.get(name, GOALS)
        yield Target(targets.model_label(name), suites, (name,), (FLEX,), *wanted, ours=IN_ANY_ORDER)
    mean = "all of them, geometric mean"
    yield Target(mean, suites, MODELS, (FLEX,), 1.05, 1.15, ours=IN_ANY_ORDER, mean=True)
    suites = (f"random {_BACKWARD}",)
    for names, wanted in (
        (NARROW_RANDOM, (1.05, 1.2)),
        (MIDDLE_RANDOM, (1.05, 1.15)),
        (WIDE_RANDOM, (1.4, 2.0)),
    ):
        label = targets.random_label(names[0])
        for rival in (FLEX, "flex"):
            yield Target(label, suites, names[:1], (rival,), ours=IN_ANY_ORDER)
        label = f"{label}, {targets.ALL_SEEDS}"
        one = Target(label, suites, names, (FLEX,), *wanted, ours=IN_ANY_ORDER, mean=True)
        yield replace(one, rivals=(FLEX, "flex"), or_else=one)


def _in_one_order() -> Iterator[Target]:
    suites, rivals = (f"vlm {_BACKWARD}",), (IN_ANY_ORDER,)
    yield Target("geometric mean", suites, MODELS, rivals, 1 / 1.08, 1 / 1.03, mean=True)
    yield Target("the worst", suites, MODELS, rivals, 1 / 1.2, 1 / 1.1)


def _beside_rivals_in_one_order() -> Iterator[Target]:
    names = tuple(f"{kind}-d{head_dim}-s16384" for head_dim in (64, 128) for kind in ("full", "causal"))
    suites = (f"dense {_BACKWARD}",)
    for head_dim in (64, 128):
        for kind in ("full", "causal"):
            for rival in SAME_BITS:
                label, name = f"D {head_dim}, S 16384, {kind}", f"{kind}-d{head_dim}-s16384"
                yield Target(label, suites, (name,), (rival,))
    # Over the fastest of them.
    yield Target("those four, geometric mean", suites, names, SAME_BITS, 1.1, 1.3, mean=True)
    of_masks = (f"same-bits {_BACKWARD}", f"vlm {_BACKWARD}")
    for name in MODELS:
        yield Target(targets.model_label(name), of_masks, (name,), SAME_BITS[-1:])
    yield Target("the models, geometric mean", of_masks, MODELS, SAME_BITS[-1:], 1.1, 1.3, mean=True)


def _whole_calls() -> Iterator[Target]:
    for name in SHORT_RANDOM:
        label = f"{targets.random_label(name)}, in a row"
        for rival in ("flex", FLEX):
            yield Target(label, (f"latency {_BOTH}",), (name,), (rival,), figure=IN_A_ROW)
    suites, rivals = (f"seeds {_BOTH}",), ("flex", FLEX)
    for names, wanted in zip(CALL_SEEDS, ((2.0, 3.0), (1.5, 1.8)), strict=True):
        label = f"{targets.random_label(names[0])}, in a row, {targets.ALL_SEEDS}"
        yield Target(label, suites, names, rivals, figure=IN_A_ROW, mean=True)
        label = f"{label}, by torch's autograd"
        default = Target(label, suites, names, rivals, ours=peers.BY_TORCH, figure=IN_A_ROW, mean=True)
        yield default
        free = replace(default, label=f"{label}, in any order", ours=peers.BY_TORCH_FREE)
        yield replace(free, least=wanted[0], aim=wanted[1], or_else=default)


def _portable() -> Iterator[Target]:
    for ours, order, wanted in (
        (f"{OURS}:sm80-{ANY_ORDER}", "any order", (0.95, 1.05)),
        (f"{OURS}:sm80", "one order", (0.7, 0.85)),
    ):
        suites = (f"portable {_BACKWARD}", f"dense {_BACKWARD}")
        for head_dim in (64, 128):
            for length in (4096, 16384):
                for kind in ("full", "causal"):
                    label = f"D {head_dim}, S {length}, {kind}, in {order}"
                    names = (f"{kind}-d{head_dim}-s{length}",)
                    yield Target(label, suites, names, ("sdpa-flash",), *wanted, ours=ours)


GROUPS = {
    f"Gradients in any order, full and causal. {targets.RATES}": tuple(_dense()),
    f"Gradients in any order, masks. {targets.RATES}": tuple(_masks()),
    "Gradients in one order, the default, over those in any order, on the masks of models above. Each cell shows the "
    "rate in any order and the share of it that the default reaches.": tuple(_in_one_order()),
    "Gradients in one order, the default, over those of other libraries that give the same bits each time; "
    f"FlexAttention alone has such gradients of masks. {targets.RATES}": tuple(_beside_rivals_in_one_order()),
    "Both passes by whole calls. Each cell shows the other library's microseconds and our speed-up over it; of a mean "
    "the faster library's counts.": tuple(_whole_calls()),
    f"Gradients by the mma.sync kernels. {targets.RATES}": tuple(_portable()),
}


def gradients(library: Library) -> str:
    """The backward pass on Hopper beside its rivals."""
    return targets.tables(library, GROUPS)
