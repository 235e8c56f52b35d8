"""The analysis of the sparsity suite, on made-up rows whose line and crossings are known."""

from __future__ import annotations

from typing import Any

import made_records
import numpy as np
import pytest

from omnicupy.tools.report import sparsity
from omnicupy.tools.report.sparsity import Crossing

SHAPE = [1, 16, 16, 16384, 16384, 128]
PAIRS = 16 * 16384**2


def _row(density: float, ms: float, system: str = "omnicupy", **more: Any) -> dict[str, Any]:
    kind = "sparse" if density < 1 else "full"
    known = {"workload": f"{kind}-{density}", "shape": SHAPE, "useful": 0.8, "correct": True}
    return {**known, "density": density, "ms": ms, "system": system, **more}


DENSITIES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75)


def _linear(scale: float = 4.0, launch: float = 0.05, **more: Any) -> list[dict[str, Any]]:
    """Rows that take `scale` ms for all executed pairs, and a launch."""
    return [_row(density, launch + scale * density / 0.8, **more) for density in DENSITIES]


def test_a_known_line_is_found() -> None:
    (group,) = sparsity.groups(_linear())
    assert (group.sizes, group.name) == ((128, 16384), "D 128, S 16384")
    found = sparsity.line(group)
    assert found.launch_ms == pytest.approx(0.05)
    assert found.pairs_per_ms == pytest.approx(PAIRS / 4.0)
    assert found.r_squared == pytest.approx(1.0)
    assert found.worst < 1e-9
    assert [density for density, _ in found.residuals] == list(DENSITIES)


def test_residuals_show_a_mask_that_is_slow() -> None:
    rows = _linear()
    rows[2]["ms"] *= 1.3
    (group,) = sparsity.groups(rows)
    found = sparsity.line(group)
    assert max(found.residuals, key=lambda one: one[1])[0] == 0.1
    assert found.worst > 0.15
    assert found.r_squared < 1


def test_a_line_needs_three_masks() -> None:
    (group,) = sparsity.groups(_linear()[:2])
    with pytest.raises(
        ValueError, match="sparsity: a line needs three masks or more of D 128, S 16384, got 2"
    ):
        sparsity.line(group)


def test_rows_without_a_right_result_are_left_out() -> None:
    rows = [
        *_linear(),
        _row(0.3, 99.0, correct=False),
        {**_row(0.3, 0.0), "ms": None},
        {"workload": "W1", "system": "x", "figures": {}},
    ]
    (group,) = sparsity.groups(rows)
    assert len(group.sparse) == len(DENSITIES)
    assert sparsity.groups([_row(1.0, 2.0)]) == []


def test_crossings_are_where_the_times_meet() -> None:
    rows = [*_linear(), *_linear(8.0, system="flex"), *_linear(0.001, 9.0, system="slow")]
    rows += [_row(1.0, 2.5, "sdpa-cudnn"), _row(1.0, 4.0, "sdpa-flash"), _row(1.0, 5.05)]
    (group,) = sparsity.groups(rows)
    assert group.best_dense() == ("sdpa-cudnn", 2.5)
    assert group.systems() == ["omnicupy", "flex", "slow"]
    found = {one.system: one for one in sparsity.crossings(group)}
    assert found["omnicupy"].density == pytest.approx((2.5 - 0.05) * 0.8 / 4.0, rel=0.03)
    assert found["flex"].density == pytest.approx((2.5 - 0.05) * 0.8 / 8.0, rel=0.03)
    assert found["slow"] == Crossing("slow", "sdpa-cudnn", None, "slower")
    assert sparsity.crossing(group, "omnicupy", 100.0, "x") == Crossing("omnicupy", "x", None, "faster")
    assert sparsity.crossings(sparsity.groups(_linear())[0]) == []


def test_noise_between_masks_of_one_density_makes_no_crossing() -> None:
    rows = [*_linear(), _row(0.51, 2.4), _row(0.52, 2.7), _row(1.0, 9.0, "sdpa-cudnn")]
    (group,) = sparsity.groups(rows)
    (found,) = sparsity.crossings(group)
    assert found.always == "faster"


def test_full_masks_are_compared_with_none() -> None:
    rows = _linear()
    rows += [
        _row(1.0, 2.0, "omnicupy:nomask"),
        _row(1.0, 2.02, "omnicupy:ones"),
        _row(1.0, 3.0, "fa4"),
        _row(1.0, 2.01),
    ]
    (group,) = sparsity.groups(rows)
    assert sparsity.full_objects(group) == {
        "omnicupy:ones": pytest.approx(1.01),
        "omnicupy": pytest.approx(1.005),
    }
    assert sparsity.full_objects(sparsity.groups(_linear())[0]) == {}


def test_the_cost_model_is_a_line_of_executed_pairs() -> None:
    content = made_records.record("sparsity", only=("d128-s16384",))
    (group,) = sparsity.groups(content["rows"])
    found = sparsity.line(group)
    assert found.r_squared > 0.99
    assert np.isfinite(found.worst)
    assert {one.system for one in sparsity.crossings(group)} == set(group.systems())
    assert set(sparsity.full_objects(group)) == {"omnicupy", "omnicupy:image", "omnicupy:ones"}
