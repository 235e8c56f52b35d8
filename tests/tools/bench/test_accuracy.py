"""The suite `accuracy` on a stand-in GPU: what is measured, which errors count, what is said of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy_gpu
import pytest
from click.testing import CliRunner

from omnicupy.tools.bench import accuracy, accuracy_cases, accuracy_table, peers, records
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.accuracy_cases import Case, cases
from omnicupy.tools.cli.main import main

NORMAL = Case("normal", "causal", 96, 16, "float16")
ONES = Case("ones", "diagonal", 96, 16, "bfloat16")
OVER = Case("overflow", "causal", 96, 16, "float16")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """A stand-in GPU; the list of cases that the suite has there."""
    numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, accuracy)
    monkeypatch.setitem(sys.modules, "torch", None)
    chosen = [NORMAL]
    monkeypatch.setattr(accuracy, "cases", lambda dtypes: iter(chosen))
    return chosen


def _run(*systems: str) -> dict[str, Any]:
    said: list[str] = []
    content = bench_run.run(bench_run.Options(("accuracy",), systems=systems), said.append)
    return {**content, "said": said}


def test_the_cases_cover_every_input_dtype_and_head_dim() -> None:
    found = list(cases())
    assert len(found) == len(set(found))
    assert {one.head_dim for one in found} == {64, 128, 256}
    assert {one.mask for one in found} == set(accuracy_cases.MASKS)
    assert {one.length for one in found} == {1024, 2048, 4096}
    assert len([one for one in found if one.length == 4096]) == 2
    for name in accuracy_cases.INPUTS:
        of = {one.dtype for one in found if one.input == name}
        assert of == ({"float16"} if name in ("large", "overflow") else {"float16", "bfloat16"})
    assert {one.dtype for one in cases(("bfloat16",))} == {"bfloat16"}
    assert found[0].name == "normal-full-d64-s1024-bfloat16"
    assert found[2].name == "scores-full-d64-s1024-b8-bfloat16"
    assert [one.shape[0] for one in (found[2].arrays(np)[1], found[0].arrays(np)[1])] == [8, 1]
    assert (found[2].workload().batch, found[0].workload().batch) == (8, 1)


@pytest.mark.parametrize("parts", [1, 2, 7, 16, 100])
def test_shares_hold_every_case_once_and_what_is_compiled_together(parts: int) -> None:
    every = list(cases())
    shares = [accuracy_cases.share(every, part, parts) for part in range(1, parts + 1)]
    found = [case for share in shares for case in share]
    assert sorted(found, key=every.index) == every
    assert all(sorted(share, key=every.index) == share for share in shares)
    groups = [{(one.dtype, one.head_dim, one.mask, one.length) for one in share} for share in shares]
    assert sum(map(len, groups)) == len(set().union(*groups))
    if parts <= 16:
        assert max(map(len, shares)) - min(map(len, shares)) <= 2


def test_a_run_measures_its_share(gpu: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu += [ONES]
    rows = []
    for part in (1, 2):
        options = bench_run.Options(("accuracy",), systems=("omnicupy",), part=(part, 2))
        rows += bench_run.run(options, lambda text: None)["rows"]
    assert [row["workload"] for row in rows] == [NORMAL.name, ONES.name]


def test_masks_have_rows_that_see_one_key() -> None:
    assert accuracy_cases.diagonal(200).pairs == 200
    few = accuracy_cases.few(200).to_dense()
    lone = few.sum(axis=1) == 1
    assert np.flatnonzero(lone).tolist() == [0, 64, 128, 192]
    assert few[~lone].all()
    assert few[lone, np.flatnonzero(lone)].all()


def test_scores_reach_1e4_and_overflowing_gradients_overflow() -> None:
    _, q, k, _ = (
        np.asarray(one, np.float64) for one in Case("scores", "full", 512, 64, "float16").arrays(np)
    )
    assert 5e3 < np.abs(q @ k.swapaxes(2, 3)).max() / 8 < 5e4
    dout = Case("overflow", "causal", 512, 64, "float16").arrays(np)[0].astype(np.float64)
    assert np.isfinite(dout).all()
    assert (dout / (1 + np.arange(512))[:, None]).sum(axis=2).max() > 65520  # dv of the first key, about


def test_a_row_a_case_and_system(gpu: list[Case]) -> None:
    gpu += [ONES]
    content = _run()
    rows = content["rows"]
    assert [(row["workload"], row["system"]) for row in rows] == [
        (case.name, name) for case in gpu for name in ("omnicupy", "omnicupy:any-order")
    ]
    assert set(content["missing"]) == {
        "sdpa-flash",
        "sdpa-cudnn",
        "sdpa-efficient",
        "flex",
        "fa4",
        "cudnn-flex",
    }
    for row in rows[:2]:
        assert row["suite"] == "accuracy"
        assert (row["dtype"], row["shape"]) == ("float16", [1, 8, 8, 96, 96, 16])
        assert set(row["rms"]) == {"out", "dq", "dk", "dv"}
        assert all(1e-5 < error < 2e-3 for error in row["rms"].values())
        assert not {"over_terms", "not_finite", "finite"} & set(row)
    for row in rows[2:]:
        assert row["over_terms"] == ["dq", "dk"]
        assert all(row["rms"][name] < 1e-5 for name in ("dq", "dk"))
    assert (
        "8 of 8 errors of ours are at most 1.05" in content["said"][-1] or "16 of 16" in content["said"][-1]
    )
    text = records.markdown({key: value for key, value in content.items() if key != "said"})
    assert "| input | system | out | dq | dk | dv | at most 1.05 |" in text
    assert text.count(NORMAL.name) == 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_wrong_gradients_have_large_errors(number: int, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, deterministic: bool, **options: Any) -> Any:
        found = numpy_gpu.attention_backward(*arguments, **options)
        if deterministic:
            found[number][:] *= np.float16(1.25)
        else:
            found[number][0, 0, 3, 3] = np.nan
        return found

    monkeypatch.setattr(accuracy, "attention_backward", wrong)
    first, second = _run()["rows"]
    name = ("dq", "dk", "dv")[number]
    assert first["rms"][name] == pytest.approx(0.25, rel=0.02)
    assert (second["rms"][name], second["not_finite"]) == ("inf", {name: 1})
    others = {"out", "dq", "dk", "dv"} - {name}
    assert all(row["rms"][other] < 2e-3 for row in (first, second) for other in others)
    json.dumps([first, second], allow_nan=False)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_gradients_that_overflow_are_judged_where_they_do_not(gpu: list[Case]) -> None:
    gpu[:] = [OVER]
    row = _run("omnicupy")["rows"][0]
    assert row["rms"]["dv"] < 1e-3
    assert "finite" not in row  # Inf wherever the exact one rounds to Inf


def _theirs(errors: dict[str, float], broken: str = "") -> Any:
    """A rival whose results are ours times 1 + its error."""

    def run(name: str, shared: Any, limit_s: float) -> Any:
        if name not in errors:
            raise peers.MissingError("no interleaved masks")
        results = accuracy._ours("omnicupy", shared, NORMAL.workload().mask())
        results = tuple((one * (1 + errors[name])).astype(np.float16) for one in results)
        if broken:
            results[accuracy.NAMES.index(broken)][0, 0, 5, 5] = np.inf
        return results

    return run


def _with_rivals(
    monkeypatch: pytest.MonkeyPatch, errors: dict[str, float], broken: str = ""
) -> dict[str, Any]:
    monkeypatch.setattr(accuracy, "missing", lambda names: {})
    monkeypatch.setattr(accuracy, "Shared", lambda workload, mask, arrays, dout: (dout, *arrays))
    monkeypatch.setattr(accuracy, "_theirs", _theirs(errors, broken))
    return _run("omnicupy", "sdpa-flash", "flex", "fa4")


def test_ours_is_held_against_the_best_rival(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _with_rivals(monkeypatch, {"sdpa-flash": 0.01, "flex": 0.02})
    found = {one.name: one for one in accuracy_table.verdicts(content["rows"])}
    assert {one.rival for one in found.values()} == {"sdpa-flash"}
    assert all(one.holds and 0.01 < one.ratio < 0.05 for one in found.values())
    assert content["rows"][3]["problem"] == "no interleaved masks"
    assert content["said"][-1].startswith("4 of 4 errors")


def test_an_error_above_the_best_rival_s_is_named(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = numpy_gpu.attention_backward

    def wrong(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **{key: value for key, value in options.items() if key != "deterministic"})
        found[1][:] *= np.float16(1.25)
        return found

    rows = _with_rivals(monkeypatch, {"sdpa-flash": 0.01})["rows"]
    monkeypatch.setattr(accuracy, "attention_backward", wrong)
    worse = _run("omnicupy")["rows"]
    content = {"schema": 1, "suites": ["accuracy"], "rows": [worse[0], *rows[1:]]}
    text = records.markdown(content)
    assert "3 of 4 errors of ours are at most 1.05 times the best rival's.\n" in text
    (line,) = (line for line in text.splitlines() if line.startswith("- "))
    assert line.startswith(f"- {NORMAL.name}, omnicupy: dk 2.5")
    assert "of sdpa-flash)" in line
    assert "| NO |" in text


def test_elements_that_torch_alone_has_inf_in_are_counted(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, *_ = _with_rivals(monkeypatch, {"sdpa-flash": 0.01}, broken="dq")["rows"]
    assert ours["only_there"] == {"dq": 1}
    assert (theirs["rms"]["dq"], theirs["not_finite"]) == ("inf", {"dq": 1})


def test_inf_in_ours_alone_does_not_hold() -> None:
    rms = dict.fromkeys(accuracy_table.NAMES, 1e-3)
    rows: list[dict[str, Any]] = [
        {"workload": "w", "system": "omnicupy", "rms": rms, "only_here": {"dk": 3}},
        {"workload": "w", "system": "flex", "rms": rms},
        {"workload": "x", "system": "omnicupy", "problem": "it broke"},
    ]
    assert [one.holds for one in accuracy_table.verdicts(rows)] == [True, True, False, True]
    assert accuracy_table.summary(rows)[1:] == [
        "- w, omnicupy: dk 1.00e-03 (1.00 of flex), 3 not finite in ours alone",
        "- x, omnicupy: not measured: it broke",
    ]
    assert accuracy_table.lines(rows)[-1][-1] == "NO: it broke"


def test_the_ratio_of_errors_that_are_0() -> None:
    def ratio(error: float, best: float) -> float:
        return accuracy_table.Verdict("w", "omnicupy", "dq", error, "flex", best).ratio

    assert (ratio(0.0, 0.0), ratio(1e-9, 0.0), ratio(2.0, 1.0)) == (1.0, float("inf"), 2.0)


def test_the_command_takes_what_the_suite_reads(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(accuracy, "cases", lambda dtypes: asked.append(dtypes) or iter([NORMAL]))
    out = tmp_path / "a.json"
    done = CliRunner().invoke(
        main, ["bench", "accuracy", "--system", "omnicupy", "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert [row["system"] for row in json.loads(out.read_text())["rows"]] == ["omnicupy"]
    CliRunner().invoke(main, ["bench", "accuracy", "--dtype", "float16", "--system", "omnicupy"])
    assert asked == [("bfloat16", "float16"), ("float16",)]
    done = CliRunner().invoke(main, ["bench", "accuracy", "--part", "2/2", "--out", str(out)])
    assert (done.exit_code, json.loads(out.read_text())["rows"]) == (0, [])
    done = CliRunner().invoke(main, ["bench", "accuracy", "--part", "3/2"])
    assert '--part: expected i/n, from "1/n" to "n/n", got \'3/2\'' in done.output
    for option in (["--samples", "5"], ["--seeds", "2"], ["--pass", "bwd"]):
        done = CliRunner().invoke(main, ["bench", "accuracy", *option])
        assert "does nothing with accuracy" in done.output
    done = CliRunner().invoke(main, ["bench", "accuracy", "--mask", "W4"])
    assert "bench: accuracy has inputs and masks of its own" in done.output


def test_other_kernels_of_ours_are_refused(gpu: Any) -> None:
    (row,) = _run("omnicupy:naive")["rows"]
    assert (
        row["problem"]
        == "ValueError: omnicupy:naive: expected omnicupy or omnicupy:any-order in the suite accuracy"
    )


def test_inf_that_the_dtype_cannot_hold_is_right() -> None:
    finite, broken = np.array([False, False, False]), np.array([True, True, False])
    rows: dict[str, dict[str, Any]] = {"omnicupy": {}}
    of = {"omnicupy": [broken] * 4, "sdpa-flash": [finite] * 4, "sdpa-cudnn": [finite] * 4}
    can = np.array([True, False, True])
    accuracy._compare(rows, of, [can, can, ~broken, ~broken])
    assert rows["omnicupy"] == {"only_here": {"out": 1, "dq": 1}}
    accuracy._compare(rows, {**of, "sdpa-flash": [broken] * 4}, [can] * 4)
    assert rows["omnicupy"] == {"only_here": {"out": 1, "dq": 1}}  # a result of torch's has it too
    rows["omnicupy"] = {}
    accuracy._compare(rows, {"omnicupy": [finite] * 4, "sdpa-flash": [broken] * 4}, [can] * 4)
    assert rows["omnicupy"] == {"only_there": dict.fromkeys(accuracy.NAMES, 2)}
