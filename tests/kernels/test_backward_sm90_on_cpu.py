"""The Hopper kernels of the backward pass, run on the CPU over the lists that a GPU gets, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cuda_on_cpu
import kernel_calls
import numpy as np
import pytest
from kernel_calls import KV_HEADS, Q_HEADS, Problem, assert_right, prepared, run, spec_of
from kernel_masks import DEAD_TILES, MASKS

from omnicupy.choose import backward_table
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.schedule import backward_grid, ordered_lists, parts, ranks, sections

pytestmark = [
    pytest.mark.in_turn(8, by=("which",)),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]


@pytest.fixture(scope="module")
def libraries() -> Callable[[BackwardKernel], Any]:
    return cuda_on_cpu.build


def _poisoned(problem: Problem, spec: BackwardSpec, libraries: Callable[[BackwardKernel], Any]) -> Any:
    """NaN where nothing is seen, and what the kernel that prepares makes of it."""
    assert problem.gradients  # before NaN is there
    problem.poison()
    return prepared(problem, spec, libraries)


def _compare(problem: Problem, spec: BackwardSpec, libraries: Callable[[BackwardKernel], Any]) -> None:
    """The gradients of the two kernels."""
    made = _poisoned(problem, spec, libraries)
    for part in ("dkdv", "dq"):
        kernel = spec.part(part)
        for name, found in run(problem, kernel, made, libraries(kernel)).items():
            assert_right(problem, name, found)


# (dtype, head_dim, value_dim of the tensors): a warpgroup with keys of its own, and a role a warpgroup.
WIDTHS = [("bfloat16", 128, 128), ("bfloat16", 192, 128), ("float16", 64, 128), ("float16", 96, 64)]
WIDTHS += [("bfloat16", 72, 40), ("float16", 64, 192)]


@pytest.mark.parametrize("masks", ["causal", "one-a-batch-element"])
@pytest.mark.parametrize("which", WIDTHS, ids=lambda which: "-".join(map(str, which)))
def test_gradients(
    which: tuple[str, int, int], masks: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    dtype, head_dim, value_dim = which
    problem = Problem(dtype, head_dim, MASKS[masks](), value_dim=value_dim)
    _compare(problem, spec_of("sm90", "sm_90", dtype, head_dim, value_dim), libraries)


# Two and three warpgroups that take turns at dQ, and one that makes nothing else.
FUSED = [
    ("bfloat16", 64, 64),
    ("bfloat16", 128, 64),
    ("float16", 64, 128),
    ("float16", 40, 56),
    ("bfloat16", 56, 16),
    ("bfloat16", 40, 24),
]


@pytest.mark.parametrize("masks", ["causal", "one-a-batch-element"])
@pytest.mark.parametrize("which", FUSED, ids=lambda which: "-".join(map(str, which)))
def test_all_gradients_by_one_kernel(
    which: tuple[str, int, int], masks: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    dtype, head_dim, value_dim = which
    problem = Problem(dtype, head_dim, MASKS[masks](), value_dim=value_dim)
    spec = spec_of("sm90", "sm_90", dtype, head_dim, value_dim)
    made = _poisoned(problem, spec, libraries)
    kernels = {part: spec.part(part) for part in ("fused", "convert")}
    found = run(problem, kernels["fused"], made, libraries(kernels["fused"]))
    sums = {"dq_sums": found.pop("dq_sums")}
    found |= run(problem, kernels["convert"], made | sums, libraries(kernels["convert"]))
    for name, gradient in found.items():
        assert_right(problem, name, gradient)


@pytest.mark.parametrize(("head_dim", "head_by_head"), [(64, False), (128, False), (128, True)])
@pytest.mark.parametrize("masks", ["causal", "one-a-batch-element"])
def test_all_gradients_in_one_order(
    masks: str,
    head_dim: int,
    head_by_head: bool,
    libraries: Callable[[BackwardKernel], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread block takes item after item, each when all additions of the one before have their turn."""
    monkeypatch.setattr(ranks.Walk, "is_head_by_head", lambda *_: head_by_head)
    problem = Problem("bfloat16", head_dim, MASKS[masks]())
    spec = spec_of("sm90", "sm_90", "bfloat16", head_dim)
    made = _poisoned(problem, spec, libraries)
    kernels = {part: spec.part(part) for part in ("ordered", "convert")}
    found = run(problem, kernels["ordered"], made, libraries(kernels["ordered"]))
    sums = {"dq_sums": found.pop("dq_sums")}
    found |= run(problem, kernels["convert"], made | sums, libraries(kernels["convert"]))
    for name, gradient in found.items():
        assert_right(problem, name, gradient)


@pytest.mark.parametrize("places", [None, 1])
@pytest.mark.parametrize("masks", ["causal", "one-a-batch-element", *DEAD_TILES])
@pytest.mark.parametrize(("head_dim", "head_by_head"), [(80, False), (128, False), (128, True)])
def test_sums_become_dq(
    masks: str,
    head_dim: int,
    head_by_head: bool,
    places: int | None,
    libraries: Callable[[BackwardKernel], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """places: for the sums of so many heads of keys, so that each is used by one after the other; None for all."""
    monkeypatch.setattr(ranks.Walk, "is_head_by_head", lambda *_: head_by_head)
    problem = Problem("bfloat16", head_dim, (MASKS | DEAD_TILES)[masks]())
    spec = spec_of("sm90", "sm_90", "bfloat16", head_dim)
    kernel = spec.part("finishing")
    if places is not None:
        of_head = 3 * len(problem.masks) * Q_HEADS // KV_HEADS
        monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", (places * of_head + 1) * kernel.sum_bytes)
        assert getattr(kernel_calls._lists(problem, kernel), "turn_heads", None) == places
    found = run(problem, kernel, _poisoned(problem, spec, libraries), libraries(kernel))
    for name in ("dq", "dk", "dv"):
        assert_right(problem, name, found[name])


@pytest.mark.parametrize(
    ("masks", "batch"), [("causal", 2), ("causal", 4), ("one-a-batch-element", 2), ("dead-tiles", 2)]
)
@pytest.mark.parametrize(("head_dim", "head_by_head"), [(80, False), (128, False), (128, True)])
def test_sums_become_dq_in_the_background(
    masks: str,
    batch: int,
    head_dim: int,
    head_by_head: bool,
    libraries: Callable[[BackwardKernel], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing but turns is zero before. The bits are those of the kernels that add to zeros and convert, where no head
    comes before the tiers of others. batch: of four elements a warp has more sums than it looks at at a time.
    """
    monkeypatch.setattr(ordered_lists, "early_heads", lambda *_: 0)
    monkeypatch.setattr(ranks.Walk, "is_head_by_head", lambda *_: head_by_head)
    monkeypatch.setattr(kernel_calls, "BATCH", batch)
    problem = Problem("bfloat16", head_dim, (MASKS | DEAD_TILES)[masks]())
    spec = spec_of("sm90", "sm_90", "bfloat16", head_dim)
    kernels = {part: spec.part(part) for part in ("background", "ordered", "convert")}
    made = _poisoned(problem, spec, libraries)
    found = run(problem, kernels["background"], made, libraries(kernels["background"]))
    assert len(found["dq_sums"]) == batch * Q_HEADS * 3 * kernels["background"].sum_bytes // 4
    apart = run(problem, kernels["ordered"], made, libraries(kernels["ordered"]))
    sums = {"dq_sums": apart.pop("dq_sums")}
    apart |= run(problem, kernels["convert"], made | sums, libraries(kernels["convert"]))
    for name in ("dq", "dk", "dv"):
        assert_right(problem, name, found[name])
        assert np.array_equal(found[name].view(np.uint16), apart[name].view(np.uint16))


@pytest.mark.parametrize(("masks", "batch"), [("causal", 4), ("one-a-batch-element", 2), ("dead-tiles", 2)])
@pytest.mark.parametrize("which", [(64, 2.0), (80, None), (128, None)])
@pytest.mark.parametrize("part", ["tickets", "tickets_alone"])
def test_sums_of_any_order_become_dq_in_the_background(
    masks: str,
    batch: int,
    which: tuple[int, float | None],
    part: str,
    libraries: Callable[[BackwardKernel], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing but turns is zero before. which: head_dim and the soft cap."""
    head_dim, softcap = which
    monkeypatch.setattr(kernel_calls, "BATCH", batch)
    problem = Problem("bfloat16", head_dim, (MASKS | DEAD_TILES)[masks](), softcap=softcap)
    spec = backward_table.pick("sm_90", "bfloat16", head_dim, softcap=softcap is not None)
    kernel = spec.part(part)
    found = run(problem, kernel, _poisoned(problem, spec, libraries), libraries(kernel))
    for name in ("dq", "dk", "dv"):
        assert_right(problem, name, found[name])


@pytest.mark.parametrize("part", ["background", "tickets"])
@pytest.mark.parametrize("masks", ["causal", "one-a-batch-element"])
def test_heads_come_before_the_tiers_of_others(
    masks: str, part: str, libraries: Callable[[BackwardKernel], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few heads have more than one tier so.
    monkeypatch.setattr(parts, "TIER_SHARES", (1 / 10, 1 / 20, 1 / 40))
    monkeypatch.setattr(sections, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(backward_grid, "MOST_PARTIAL_BYTES", 0)
    problem = Problem("bfloat16", 128, MASKS[masks]())
    spec = spec_of("sm90", "sm_90", "bfloat16", 128)
    kernel = spec.part(part)
    assert 0 < kernel_calls._lists(problem, kernel).early_heads < KV_HEADS * kernel_calls.BATCH
    found = run(problem, kernel, _poisoned(problem, spec, libraries), libraries(kernel))
    for name in ("dq", "dk", "dv"):
        assert_right(problem, name, found[name])


@pytest.mark.parametrize(("masks", "batch"), [("causal", 2), ("causal", 4), ("one-a-batch-element", 2)])
@pytest.mark.parametrize("which", [(64, False, 2.0), (80, False, None), (128, False, 2.0), (128, True, None)])
def test_one_kernel_makes_delta_and_dq_too(
    masks: str,
    batch: int,
    which: tuple[int, bool, float | None],
    libraries: Callable[[BackwardKernel], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bits are those behind a launch that prepares, with rows that see no key and gradients of lse. which:
    head_dim, whether a part goes head by head, and the soft cap.
    """
    head_dim, head_by_head, softcap = which
    monkeypatch.setattr(ranks.Walk, "is_head_by_head", lambda *_: head_by_head)
    monkeypatch.setattr(kernel_calls, "BATCH", batch)
    problem = Problem("float16", head_dim, MASKS[masks](), softcap=softcap)
    spec = backward_table.pick("sm_90", "float16", head_dim, softcap=softcap is not None)
    kernels = {part: spec.part(part) for part in ("alone", "background")}
    made = _poisoned(problem, spec, libraries)
    found, apart = (run(problem, kernel, made, libraries(kernel)) for kernel in kernels.values())
    for name in ("dq", "dk", "dv"):
        assert_right(problem, name, found[name])
        assert np.array_equal(found[name].view(np.uint16), apart[name].view(np.uint16))


def test_capped_scores_with_sinks(libraries: Callable[[BackwardKernel], Any]) -> None:
    sinks = (-np.inf, 0.0, 2.0, 4.0)
    problem = Problem(
        "bfloat16", 192, MASKS["one-a-batch-element"](), softcap=1.5, sinks=sinks, value_dim=128
    )
    _compare(problem, replace(spec_of("sm90", "sm_90", "bfloat16", 192, 128), softcap=True), libraries)


@pytest.mark.parametrize("value_dim", [128, 192])
def test_some_blocks_of_keys_are_split(value_dim: int) -> None:
    """So that their parts are merged above."""
    problem = Problem("bfloat16", 192, MASKS["causal"](), value_dim=value_dim)
    kernel = spec_of("sm90", "sm_90", "bfloat16", 192, value_dim).part("dkdv")
    assert kernel_calls._lists(problem, kernel).n_split_rows
