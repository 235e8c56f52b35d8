"""The goals of the backward pass beside what was measured, in the tables of targets.py."""

from __future__ import annotations

from collections.abc import Iterator

from omnicupy.tools.bench import peers
from omnicupy.tools.bench.gradients import IN_ANY_ORDER, PASSES
from omnicupy.tools.bench.suites import GRADIENT_MODELS, SHORT_RANDOM, WIDE_RANDOM
from omnicupy.tools.report import targets
from omnicupy.tools.report.library import Library
from omnicupy.tools.report.targets import IN_A_ROW, Target

_BACKWARD, _BOTH = PASSES["bwd"].name, PASSES["fwd+bwd"].name
MODELS = GRADIENT_MODELS
DENSE_RIVALS = ("sdpa-cudnn", "fa4")  # the fastest there; cuDNN's flex_attention never was
FLEX = "cudnn-flex"
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
        rivals = DENSE_RIVALS if head_dim <= 128 else DENSE_RIVALS[:1]
        yield Target(label, suites, names, rivals, least, aim, ours=IN_ANY_ORDER)  # the fastest counts
        for rival in (*rivals, FLEX) if head_dim <= 128 else rivals:
            yield Target(label, suites, names, (rival,), ours=IN_ANY_ORDER)


def _masks() -> Iterator[Target]:
    suites = (f"vlm {_BACKWARD}",)
    for name in MODELS:
        wanted = GOALS_OF.get(name, GOALS)
        yield Target(targets.model_label(name), suites, (name,), (FLEX,), *wanted, ours=IN_ANY_ORDER)
    mean = "all of them, geometric mean"
    yield Target(mean, suites, MODELS, (FLEX,), 1.05, 1.15, ours=IN_ANY_ORDER, mean=True)
    suites = (f"random {_BACKWARD}",)
    for name, least, aim in (("random-d64-s8192-seed0", 1.05, 1.2), ("random-d128-s16384-seed0", 1.05, 1.15)):
        yield Target(targets.random_label(name), suites, (name,), (FLEX,), least, aim, ours=IN_ANY_ORDER)
    label = targets.random_label(WIDE_RANDOM[0])
    yield Target(label, suites, WIDE_RANDOM[:1], (FLEX,), ours=IN_ANY_ORDER)
    yield Target(
        f"{label}, {targets.ALL_SEEDS}", suites, WIDE_RANDOM, (FLEX,), 1.4, 2.0, ours=IN_ANY_ORDER, mean=True
    )


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
    for name, least, aim in zip(SHORT_RANDOM, (2.0, 1.5) * 2, (3.0, 1.8) * 2, strict=True):
        label = f"{targets.random_label(name)}, in a row"
        suites = (f"latency {_BOTH}",)
        yield Target(label, suites, (name,), ("flex",), least, aim, figure=IN_A_ROW)
        yield Target(label, suites, (name,), (FLEX,), figure=IN_A_ROW)


GROUPS = {
    f"Gradients in any order, full and causal. {targets.RATES}": tuple(_dense()),
    f"Gradients in any order, masks. {targets.RATES}": tuple(_masks()),
    "Gradients in one order, the default, over those in any order, on the masks of models above. Each cell shows the "
    "rate in any order and the share of it that the default reaches.": tuple(_in_one_order()),
    "Gradients in one order, the default, over those of other libraries that give the same bits each time; "
    f"FlexAttention alone has such gradients of masks. {targets.RATES}": tuple(_beside_rivals_in_one_order()),
    "Both passes by whole calls. Each cell shows the other library's microseconds and our speed-up over it.": tuple(
        _whole_calls()
    ),
}


def gradients(library: Library) -> str:
    """The backward pass on Hopper beside its rivals."""
    return targets.tables(library, GROUPS)
