"""Fitting the cost model: known ceilings are found again in made-up records, and real records are predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnicupy.call.problem import Problem
from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose import pick, prediction, variants
from omnicupy.choose.ceilings import Ceiling, Ceilings, Device
from omnicupy.tools.bench import records
from omnicupy.tools.bench.records import Record
from omnicupy.tools.explain import fitting, least_squares
from omnicupy.tools.workloads.workload import by_name

ROOT = Path(__file__).parents[3] / "docs" / "results"
DEVICE = Device("Fake H100", 132, 50 << 20)
SHARED = {
    "partial_ps": 60.0,
    "causal_ps": 9.0,
    "skipped_ps": 20.0,
    "launch_us": 15.0,
    "megabyte_us": 0.3,
}
TRUE = {
    64: Ceiling("sm90", 64, 192, pair_ps=68.0, item_us=1.5, **SHARED),  # 3/4 of the other's elements an item
    128: Ceiling("sm90", 128, 128, pair_ps=95.0, item_us=2.0, **SHARED),
}
NAMES = (
    *("full-d64-s2048", "causal-d64-s4096", "random-d64-s4096-seed0", "random-d64-s2048-seed1"),
    *("full-d128-s4096", "causal-d128-s4096", "random-d128-s4096-seed0", "random-d128-s8192-seed1"),
    *("causal-d128-s8192", "W4", "W5", "W12"),
)


def _record(names: Any = NAMES, noise: float = 0.0, **header: Any) -> dict[str, Any]:
    """A record whose times are the model's own, with noise."""
    draw = np.random.default_rng(0)
    known = {
        "device": DEVICE.name,
        "multiprocessors": 132,
        "l2_bytes": 50 << 20,
        "arch": "sm_90",
        "dtype": "bfloat16",
    }
    record = Record(None, {**known, **header})
    for name in names:
        workload = by_name(name)
        mask, head_dim = workload.mask(), workload.head_dim
        br = TRUE[head_dim].br
        word = f"sm90-{br}x{96 if br == 192 else 128}-s2-w{br // 16 + 4}"
        spec = variants.parse(word, "sm_90", "bfloat16", head_dim)
        problem = workload.problem(mask, "bfloat16")
        work = prediction.work_of(spec, problem, mask.blocks(spec.br, spec.bc), DEVICE)
        us = prediction.predict(work, TRUE[head_dim]).us * (1 + noise * draw.standard_normal())
        shape = [workload.batch, workload.q_heads, workload.kv_heads, *mask.shape, head_dim]
        record.add(workload=name, system="omnicupy", shape=shape, spec=word, ms=us / 1e3, correct=True)
    return record.content


def _fit(content: dict[str, Any]) -> Ceilings:
    return fitting.fit(fitting.device_of(content), fitting.points(content))


def test_known_ceilings_are_found_again() -> None:
    found = _fit(_record())
    for ceiling in found.of:
        true = TRUE[ceiling.head_dim]
        assert (ceiling.kernel, ceiling.br) == ("sm90", true.br)
        for name in choose_ceilings.FITTED:
            assert getattr(ceiling, name) == pytest.approx(getattr(true, name), rel=0.01), name


def test_noise_moves_predictions_by_no_more_than_itself() -> None:
    noisy = _fit(_record(noise=0.02))
    for residual in fitting.residuals(noisy, fitting.points(_record())):
        assert abs(residual.error) < 0.04, residual.point.workload


def test_workloads_that_were_not_fitted_are_predicted() -> None:
    found = _fit(_record(noise=0.01))
    fresh = _record(("random-d128-s16384-seed5", "sparse-d128-s16384-p50-seed0", "W1", "causal-d64-s16384"))
    assert max(abs(one.error) for one in fitting.residuals(found, fitting.points(fresh))) < 0.03


def test_held_out_errors_show_an_outlier_that_the_fit_hides() -> None:
    content = _record()
    measured = fitting.points(content)
    assert max(abs(one.error) for one in fitting.held_out(measured)) < 0.01
    measured[-1] = replace(measured[-1], us=2 * measured[-1].us)
    (outlier,) = (one for one in fitting.held_out(measured) if one.point is measured[-1])
    assert outlier.error == pytest.approx(-0.5, abs=0.02)


def test_a_class_with_one_measurement_is_not_held_out() -> None:
    measured = fitting.points(_record(NAMES[4:])) + fitting.points(_record(NAMES[:1]))
    assert {one.point.workload for one in fitting.held_out(measured)} == set(NAMES[4:])


def test_nothing_is_fitted_below_zero() -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        rows = draw.uniform(0, 1, (8, 4))
        found = least_squares.not_negative(rows, rows @ np.array([1.0, -0.5, 0.0, 2.0]))
        assert found.min() >= 0
    exact = least_squares.not_negative(rows, rows @ np.array([1.0, 0.5, 0.25, 2.0]))
    assert exact == pytest.approx([1.0, 0.5, 0.25, 2.0])


def test_what_cannot_be_fitted_says_so() -> None:
    content = _record()
    with pytest.raises(
        ValueError, match=r"fit: kernel 'sm90' needs 8 measurements or more for 2 classes, got 5"
    ):
        fitting.fit(DEVICE, fitting.points(_record(NAMES[:5])))
    with pytest.raises(ValueError, match="fit: the records hold no measurement"):
        fitting.fit(DEVICE, [])
    with pytest.raises(
        ValueError, match="record: expected one of a GPU with its multiprocessors, got device None"
    ):
        fitting.device_of({**content, "device": None})
    old = {key: value for key, value in content.items() if key != "multiprocessors"}
    with pytest.raises(ValueError, match="got device 'Fake H100'; measure it anew"):
        fitting.device_of(old)


def test_only_right_results_of_what_is_chosen_are_fitted() -> None:
    content = _record(NAMES[:2])
    good = content["rows"][0]
    chosen = next(spec for spec in fitting._table("sm_90", "bfloat16", 64, 64) if spec.heads == 1)
    content["rows"] += [
        {**good, "system": "flex"},
        {**good, "correct": False},
        {**good, "ms": None, "problem": "x"},
        {**good, "system": "omnicupy:naive", "spec": "naive"},
        {**good, "system": "omnicupy:sm80-16x32-s3-w1", "spec": "sm80-16x32-s3-w1"},
    ]
    assert len(fitting.points(content)) == 2
    content["rows"].append({**good, "system": "omnicupy:x", "spec": variants.word(chosen)})
    assert len(fitting.points(content)) == 3


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_what_is_chosen_is_what_pick_gives(head_dim: int) -> None:
    import omnicupy as oc

    found = fitting._table("sm_90", "bfloat16", head_dim, head_dim)
    for q_len in (16, 8192):
        for mask in (oc.full(64), oc.random(64, 0)):
            for mappable in (True, False):
                problem = Problem(1, 16, 16, q_len, q_len, head_dim, "bfloat16")
                assert pick.pick("sm_90", problem, (mask,), 132, mappable=mappable) in found


def test_files_of_one_device_are_fitted_together(tmp_path: Path) -> None:
    paths = []
    for place, names in enumerate((NAMES[:6], NAMES[6:])):
        path = tmp_path / f"run{place}.json"
        content = _record(names)
        Record(path, {key: value for key, value in content.items() if key not in ("rows", "schema")})
        record = Record(path, {key: value for key, value in content.items() if key not in ("rows", "schema")})
        for row in content["rows"]:
            record.add(**row)
        paths.append(path)
    out = tmp_path / "ceilings.json"
    found = fitting.from_files(paths, out)
    (saved,) = choose_ceilings.load(out)
    assert saved.sources == ("run0.json", "run1.json")
    assert saved.at("sm90", 128, 128).pair_ps == pytest.approx(95.0, rel=0.01)
    text = str(found)
    assert text.splitlines()[0] == "Fake H100, 12 measurements"
    assert "fitted    error 0." in text
    assert "held out  error" in text
    Record(paths[1], {**_record(()), "device": "Other"})
    with pytest.raises(ValueError, match="--fit: expected records of one device, got Fake H100, Other"):
        fitting.from_files(paths, out)


def test_kernels_without_ceilings_have_no_residuals() -> None:
    (h100,) = (one for one in choose_ceilings.load() if "H100" in one.device.name)
    measured = fitting.points(records.load(ROOT / "h100-dense.json"))
    kernels = {point.spec.kernel for point in measured}
    assert kernels == {"sm80", "sm90"}
    without = replace(h100, of=tuple(one for one in h100.of if one.kernel == "sm90"))
    assert {one.point.spec.kernel for one in fitting.residuals(without, measured)} == {"sm90"}


@pytest.mark.in_turn(8)
def test_models_and_random_masks_outside_of_the_fit_are_predicted() -> None:
    (h100,) = (one for one in choose_ceilings.load() if "H100" in one.device.name)
    measured = [point for source in h100.sources for point in fitting.points(records.load(ROOT / source))]
    outside = [
        point
        for name in ("h100-models.json", "h100-models-2.json", "h100-randoms.json")
        for point in fitting.points(records.load(ROOT / name))
    ]
    names = {point.workload for point in outside}
    found = fitting.fit(h100.device, [point for point in measured if point.workload not in names])
    assert {f"W{number}" for number in range(1, 14)} < names
    assert sum(name.startswith("random") for name in names) >= 10
    for residual in fitting.residuals(found, outside):
        assert abs(residual.error) < 0.15, residual.point.workload


@pytest.mark.parametrize(
    "ceilings", [one for one in choose_ceilings.load() if one.of], ids=lambda one: one.device.name
)
def test_the_library_s_ceilings_predict_their_records(ceilings: Ceilings) -> None:
    measured = [point for source in ceilings.sources for point in fitting.points(records.load(ROOT / source))]
    assert len(measured) > 10
    for residual in fitting.residuals(ceilings, measured):
        assert abs(residual.error) < 0.15, residual.point.workload
