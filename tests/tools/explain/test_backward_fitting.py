"""Fitting the cost model of the backward pass: known ceilings are found again in made-up records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_ceilings import BACKWARD

from omnicupy.choose import backward_prediction, backward_table, keys_kernel
from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose.backward_ceilings import OF_KERNELS, OF_PASSES
from omnicupy.choose.ceilings import Device
from omnicupy.schedule import backward_grid
from omnicupy.tools.bench import records
from omnicupy.tools.bench.gradients import asked
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.suites import FORMS
from omnicupy.tools.explain import backward_fitting, fitting
from omnicupy.tools.workloads.workload import by_name

ROOT = Path(__file__).parents[3] / "docs" / "results"
DEVICE = Device("Fake H100", 132, 50 << 20)
NAMES = (
    *("full-d64-s1024", "causal-d64-s2048-h8-k2-b1", "random-d64-s2048-seed1", "sparse-d64-s4096-p100-seed0"),
    *("full-d128-s1024", "causal-d128-s4096-h8-k8-b1", "random-d128-s4096-seed2-h8-k2-b1"),
    *("sparse-d128-s4096-p100-seed1-h28-k4-b1", "decode-d128-s4096-q1024-h8-k1-b1"),
    *("full-d256-s1024-h8-k8-b2", "causal-d256-s4096-h4-k4-b1", "random-d256-s2048-seed3-h8-k4-b1"),
    *("sparse-d256-s4096-p100-seed2-h8-k4-b1", "full-d128-s256-h8-k1-b1", "full-d64-s256-h8-k1-b1"),
    *("full-d256-s256-h8-k1-b1", "causal-d64-s4096-h16-k16-b1", "random-d64-s1024-seed5-h28-k4-b2"),
)
FRESH = ("random-d128-s8192-seed9-h28-k4-b1", "causal-d64-s4096", "W4", "W7")


def _record(names: Any = NAMES, noise: float = 0.0, **header: Any) -> dict[str, Any]:
    """A record whose times are the model's own, with noise."""
    draw = np.random.default_rng(0)
    known = {"device": DEVICE.name, "multiprocessors": 132, "l2_bytes": 50 << 20, "arch": "sm_90"}
    record = Record(None, {**known, "dtype": "bfloat16", **header})
    for name in names:
        workload = by_name(name)
        mask = workload.mask()
        problem = workload.problem(mask, "bfloat16")
        shape = [workload.batch, workload.q_heads, workload.kv_heads, *mask.shape, workload.head_dim]
        for system in FORMS:
            of = asked(system.partition(":")[2])
            spec = backward_table.pick("sm_90", "bfloat16", workload.head_dim)
            if of.two:
                spec = replace(spec, fused=None, ordered=None)
            how: Any = {"deterministic": not of.free, "wanted": of.wanted}
            work = backward_prediction.work_of(spec, problem, mask, DEVICE, **how)
            part = keys_kernel.keys_kernel(spec, problem, mask, DEVICE, **how)
            us = backward_prediction.predict(work, BACKWARD).us * (1 + noise * draw.standard_normal())
            row = {"workload": name, "system": system, "pass": "backward", "shape": shape}
            record.add(**row, spec=str(spec), part=part, ms=us / 1e3, correct=True)
    return record.content


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return _record()


@pytest.fixture(scope="module")
def measured(content: dict[str, Any]) -> list[backward_fitting.BackwardPoint]:
    return backward_fitting.points(content, DEVICE)


@pytest.mark.in_turn(8)
def test_known_ceilings_are_found_again(measured: list[backward_fitting.BackwardPoint]) -> None:
    found = backward_fitting.fit(measured, ("made.json",))
    assert {(one.part, one.head_dim) for one in found.of} == {
        (one.part, one.head_dim) for one in BACKWARD.of if one.head_dim != 80
    }
    for one in found.of:
        true = BACKWARD.at("sm90", one.part, one.head_dim, one.owned)
        for name in OF_KERNELS:
            if name == "merge_us" and one.part == "dq":  # no block of queries was split
                continue
            assert getattr(one, name) == pytest.approx(getattr(true, name), rel=0.02, abs=0.02), (name, one)
    for name in OF_PASSES:
        assert getattr(found, name) == pytest.approx(getattr(BACKWARD, name), rel=0.02), name
    assert found.sources == ("made.json",)


@pytest.mark.in_turn(8)
def test_workloads_that_were_not_fitted_are_predicted() -> None:
    noisy = backward_fitting.fit(backward_fitting.points(_record(noise=0.01), DEVICE))
    fresh = backward_fitting.points(_record(FRESH), DEVICE)
    assert max(abs(one.error) for one in backward_fitting.residuals(noisy, fresh)) < 0.06


def test_what_cannot_be_fitted_says_so(measured: list[backward_fitting.BackwardPoint]) -> None:
    with pytest.raises(
        ValueError, match=r"fit: the backward pass needs \d+ measurements or more for \d+ kernels, got 9"
    ):
        backward_fitting.fit(measured[:9])


def test_only_right_results_of_the_hopper_kernels_are_fitted(content: dict[str, Any]) -> None:
    good = content["rows"][0]
    sm80 = str(next(row for row in backward_table.rows() if row.kernel == "sm80" and row.arch == "sm_90"))
    others = [
        {**good, "system": "cudnn-flex"},
        {**good, "correct": False},
        *({**good, "suite": suite} for suite in ("choices", "same-bits")),  # other tiles, and what is known
        {**good, "ms": None, "problem": "x"},
        {**good, "pass": "forward+backward"},
        {**good, "pass": "forward", "spec": "sm90-128x128-s2-w12"},
        {**good, "system": "omnicupy:sm80", "spec": sm80},
    ]
    assert backward_fitting.points({**content, "rows": others}, DEVICE) == []
    assert len(backward_fitting.points({**content, "rows": [good, *others]}, DEVICE)) == 1


def test_rows_say_which_kernel_ran(content: dict[str, Any]) -> None:
    """Whatever calls get today; in any order older ones did not make dQ in the background."""
    (row,) = (
        one
        for one in content["rows"]
        if one["workload"] == "full-d128-s1024" and one["system"] == "omnicupy:any-order"
    )
    of = {
        "fused": ("", False),
        "tickets": ("background", False),
        "tickets_alone": ("background", True),
        "": ("", False),
    }
    for part, how in of.items():
        (point,) = backward_fitting.points({**content, "rows": [{**row, "part": part}]}, DEVICE)
        assert [(one.kernel.finishes, one.kernel.prepares) for one in point.work.kernels] == [how]


def test_forms_of_older_records_are_told_by_their_kernels() -> None:
    """Their default at head_dim 128 was two kernels."""
    name = ROOT / "h100-gradients-dense.json"
    old = records.load(name)
    found = backward_fitting.points(old, fitting.device_of(old))
    of = {(one.workload, one.system): [part.kernel.part for part in one.work.kernels] for one in found}
    assert of["full-d128-s16384", "omnicupy"] == ["dkdv", "dq"]
    assert of["full-d128-s16384", "omnicupy:any-order"] == ["fused"]
    assert len(of) == 16


@pytest.mark.in_turn(8)
def test_a_file_keeps_what_it_has_of_the_other_pass(content: dict[str, Any], tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("record", "out", "other")]
    paths[0].write_text(json.dumps({"schema": 1, **content}))
    forward = choose_ceilings.load()[0]
    choose_ceilings.save(replace(forward, device=DEVICE, backward=None), paths[1])
    fitted = backward_fitting.from_files([paths[0]], paths[1])
    (saved,) = choose_ceilings.load(paths[1])
    assert (saved.of, saved.tiles, saved.sources) == (forward.of, forward.tiles, forward.sources)
    assert saved.backward is not None
    assert saved.backward.sources == ("record.json",)
    assert saved.backward.as_json() == fitted.ceilings.as_json()
    assert "sm90 ordered head_dim  128, 128 owned:" in str(fitted)
    assert str(fitted).startswith(f"Fake H100, {len(fitted.residuals)} measurements of the backward pass")
    backward_fitting.from_files([paths[0]], paths[2])  # a file of the backward pass alone
    (alone,) = choose_ceilings.load(paths[2])
    assert (alone.of, alone.backward) == ((), saved.backward)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize(
    ("name", "rows", "close"),
    [
        ("h200-explain-backward-11.json", 60, 60),
        ("h100-explain-backward.json", 26, 22),  # it is older than the ranks of short sections
    ],
    ids=["H200", "H100"],
)
def test_masks_outside_of_the_fit_are_predicted(
    name: str, rows: int, close: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the library's own ceilings: so many of what was measured within 15%. A record that names no kernels is older
    than those that make dQ of sums.
    """
    content = records.load(ROOT / name)
    if not all("part" in row for row in content["rows"]):
        for most in ("FEW_ADDITIONS", "MANY_ADDITIONS"):
            monkeypatch.setattr(backward_grid, most, 0)
    device = fitting.device_of(content)
    of = next(one.backward for one in choose_ceilings.load() if one.device.name == device.name)
    assert of is not None
    assert name not in of.sources
    measured = backward_fitting.points(content, device)
    errors = [abs(one.error) for one in backward_fitting.known_residuals(of, measured)]
    assert len(errors) >= rows
    assert sum(error <= 0.15 for error in errors) >= close
    assert max(errors) < 0.25
