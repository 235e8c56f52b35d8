"""Which forms and tiles of the backward pass are worth a look."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.jit.backward_kernel import MAKES_ALL, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.build import Compiled
from omnicupy.masks.constructors import causal, full
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import segments
from omnicupy.tools.bench import gradients, tiles
from omnicupy.tools.bench.turns import NOBODY_ELSE, Turns
from omnicupy.tools.workloads.workload import Workload

FEW, MANY = segments([("text", 300), ("image", 400)]), full(8192)  # additions to a sum of dQ
TWO = causal(512)  # two kernels serve it in either order
EVERY = ("", ":any-order", ":split")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a study says while it compiles; tiles of 8 warps spill."""

    def compile_all(specs: Any) -> list[Compiled]:
        return [Compiled(spec, 9, "8 bytes of spills" if spec.warps == 8 else "") for spec in specs]

    monkeypatch.setattr(tiles, "compile_all", compile_all)
    return []


def _chosen(mask: Mask, head_dim: int) -> BackwardSpec:
    """The row's kernels, and in either order the one that a call gets."""
    problem = Problem(1, 2, 1, *mask.shape, head_dim, "bfloat16")
    row = backward_table.pick("sm_90", "bfloat16", head_dim)
    in_any, in_one = (
        backward_table.chosen_for("sm_90", problem, (mask,), deterministic=order) for order in (False, True)
    )
    return replace(row, fused=in_any.fused, ordered=in_one.ordered)


@pytest.mark.parametrize(
    ("head_dim", "forms", "mask"),
    [(64, EVERY, FEW), (64, EVERY, MANY), (64, EVERY, TWO), (128, EVERY, FEW), (256, ("",), FEW)],
)
def test_other_tiles_than_calls_get(
    head_dim: int, forms: tuple[str, ...], mask: Mask, said: list[str]
) -> None:
    session: Any = SimpleNamespace(arch="sm_90", dtype="bfloat16", say=said.append, turns=NOBODY_ELSE)
    found = tiles.likely_gradients(session, Workload("x", 1, (2, 1, head_dim), lambda: mask, ""))
    assert found[: len(forms)] == [f"omnicupy{form}" for form in forms]
    assert len(set(found)) == len(found)
    assert len(found) > len(forms)
    got = _chosen(mask, head_dim)
    for name in found[len(forms) :]:
        asked = gradients.asked(name.partition(":")[2])
        assert asked.tile is not None
        assert asked.tile.warps != 8
        if own := getattr(got, asked.part):
            assert asked.tile[:2] != own[:2] or (asked.part in MAKES_ALL and asked.tile.warps != own.warps)
    assert any(
        line.startswith("left out: omnicupy:dq-64x64-s") and "8 bytes of spills" in line for line in said
    )


@pytest.mark.parametrize("mask", [FEW, MANY, TWO])
def test_a_tile_of_the_row_is_another_one_where_calls_get_none_of_it(mask: Mask, said: list[str]) -> None:
    session: Any = SimpleNamespace(arch="sm_90", dtype="bfloat16", say=said.append, turns=NOBODY_ELSE)
    found = tiles.likely_gradients(session, Workload("x", 1, (2, 1, 64), lambda: mask, ""))
    # Deep rings leave no memory for dQ on its way: both forms are worth a look.
    assert {f"omnicupy:fused-64x192-s{stages}-w16" for stages in (3, 4)} <= set(found)
    got, few, full_ = _chosen(mask, 64), TileShape(64, 128, 4, 12), TileShape(64, 128, 4, 16)
    row = backward_table.pick("sm_90", "bfloat16", 64)
    expected: dict[int, tuple[Any, Any]] = {
        id(FEW): (few, None),
        id(MANY): (row.fused, full_),
        id(TWO): (None, None),
    }
    assert (got.fused, got.ordered) == expected[id(mask)]
    assert ("omnicupy:fused-64x128-s4-w16" in found) == (got.fused != row.fused)
    assert ("omnicupy:ordered-64x192-s3-w16" in found) == (got.ordered != row.ordered)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_threads_that_compile_beside_others_leave_them_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nice(_: Any) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    mine = nice(None)
    monkeypatch.setattr(tiles, "compile_all", lambda specs: list(ThreadPoolExecutor(2).map(nice, specs)))
    for turns, expected in ((NOBODY_ELSE, mine), (Turns(tmp_path), 19)):
        session: Any = SimpleNamespace(turns=turns)
        assert tiles._compile_all(session, ["a", "b"]) == [expected] * 2  # type: ignore[type-var, comparison-overlap]
        assert nice(None) == mine
