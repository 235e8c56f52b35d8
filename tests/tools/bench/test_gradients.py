"""Benchmarks of the backward pass on a stand-in GPU: what is timed, judged and recorded. No timed assertions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy_gpu
import pytest

from omnicupy.api import attention, attention_backward
from omnicupy.masks.constructors import causal
from omnicupy.masks.segment_masks import segments
from omnicupy.reference import checked_rows
from omnicupy.reference.checked_gradients import CheckedGradients
from omnicupy.tools.bench import gradients, memory, peers, records, suites, tiles, torch_inputs
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.explain import fitting
from omnicupy.tools.report import plots
from omnicupy.tools.workloads.workload import Workload, by_name

OURS = ("omnicupy", "omnicupy:any-order", "omnicupy:sm80", "omnicupy:naive")
MASK = segments([("text", 300), ("image", 400)])


def _case() -> tuple[Any, Any, Any, tuple[Any, Any, Any]]:
    rng = np.random.default_rng(0)
    dout, q = (rng.standard_normal((1, 2, 700, 16)).astype(np.float16) for _ in range(2))
    k, v = (rng.standard_normal((1, 1, 700, 16)).astype(np.float16) for _ in range(2))
    out, lse = attention(q, k, v, MASK, return_lse=True)
    return CheckedGradients((dout, q, k, v), MASK, out, lse), out, lse, (dout, q, (k, v))


def test_checked_gradients_tell_right_from_wrong() -> None:
    judge, out, lse, (dout, q, (k, v)) = _case()
    right = attention_backward(dout, q, k, v, out, lse, MASK)
    assert 0 < judge.error(right) <= checked_rows.TOLERANCE
    other = attention_backward(dout, q, k, v, out, lse, causal(700))
    for number in range(3):
        mixed = [other[i] if i == number else right[i] for i in range(3)]
        assert judge.error(mixed) > checked_rows.TOLERANCE
        broken = [array.copy() for array in right]
        broken[number][0, 0, 699, 3] = np.nan
        assert judge.error(broken) == np.inf
    assert judge.error([array * np.float16(1.05) for array in right]) > checked_rows.TOLERANCE


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    workload = Workload("tiny", 1, (2, 1, 16), lambda: segments([("text", 30), ("image", 50)]), "")
    return numpy_gpu.tiny_bench(monkeypatch, workload, gradients, memory)


def _run(suite: str, *systems: str, timed: str = "bwd") -> dict[str, Any]:
    options = bench_run.Options((suite,), ("W1",), systems, samples=3, timed=timed)
    return bench_run.run(options, lambda line: None)


@pytest.mark.parametrize(("timed", "factor"), [("bwd", 2.5), ("fwd+bwd", 3.5)])
def test_a_suite_fills_the_record(timed: str, factor: float, gpu: Any) -> None:
    content = _run("dense", *OURS, "omnicupy:sm80-64x64-s1-w4", timed=timed)
    rows = {row["system"]: row for row in content["rows"]}
    for name in OURS:
        row = rows[name]
        assert row["pass"] == PASSES[timed].name
        assert (row["suite"], row["correct"]) == ("dense", True)
        workload = Workload("tiny", 1, (2, 1, 16), lambda: MASK, "")
        pairs = segments([("text", 30), ("image", 50)]).pairs
        assert row["tflops"] * row["ms"] == pytest.approx(factor * workload.flops(pairs) / 1e9, rel=1e-3)
        assert "executed_tflops" not in row
    assert rows["omnicupy"]["spec"].startswith("bwd sm90 sm_90a")
    assert rows["omnicupy:sm80"]["spec"].startswith("bwd sm80 sm_90")
    assert "expected naive or sm90 or sm80 for gradients" in rows["omnicupy:sm80-64x64-s1-w4"]["problem"]
    assert f"| tiny, {PASSES[timed].name} |" in records.markdown(content)


def test_any_order_is_asked_for_by_that_system_alone(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(*arguments: Any, **options: Any) -> Any:
        kernel = options["config"].kernel if options["config"] else None
        asked.append((options["deterministic"], kernel))
        return numpy_gpu.attention_backward(*arguments, **options)

    monkeypatch.setattr(gradients, "attention_backward", noted)
    for system, wanted in {
        "omnicupy": (True, None),
        "omnicupy:any-order": (False, None),
        "omnicupy:sm80": (True, "sm80"),
        "omnicupy:sm80-any-order": (False, "sm80"),
    }.items():
        asked.clear()
        (row,) = _run("dense", system)["rows"]
        assert set(asked) == {wanted}
        assert row["spec"].startswith(f"bwd {wanted[1] or 'sm90'} ")


def test_forms_and_tiles_are_asked_for_by_name(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(options)
        return numpy_gpu.attention_backward(*arguments, **options)

    monkeypatch.setattr(gradients, "attention_backward", noted)
    every = ("q", "k", "v")
    for word, (free, wanted, part, tile) in {
        "split": (False, every, "ordered", None),
        "dkdv-alone": (False, ("k", "v"), "", None),
        "dq-alone": (False, ("q",), "", None),
        "dkdv-64x64-s4-w8": (False, every, "dkdv", (64, 64, 4, 8)),
        "dq-128x64-s4-w12": (False, every, "dq", (128, 64, 4, 12)),
        "fused-64x64-s4-w8": (True, every, "fused", (64, 64, 4, 8)),
    }.items():
        seen.clear()
        (row,) = _run("dense", f"omnicupy:{word}")["rows"]
        assert row["correct"] is True
        (config,) = {options["config"] for options in seen}
        assert {(not options["deterministic"], options["wanted"]) for options in seen} == {(free, wanted)}
        if not part:
            assert config is None
            continue
        assert getattr(config, part) == tile
        assert row["spec"] == str(config)
        assert (config.fused is None) == (part != "fused")
    problems = {
        "dkdv-64x128": "expected a tile such as 64x128-s4-w12",
        "dkdv-64x80-s4-w8": "bc of dkdv must be a multiple of 32",
        "alone": "expected naive or sm90 or sm80 for gradients, got 'alone'; or any-order, split, dkdv-alone",
    }
    for word, problem in problems.items():
        (row,) = _run("dense", f"omnicupy:{word}")["rows"]
        assert problem in row["problem"]


def test_a_wrong_gradient_that_is_not_wanted_counts_for_nothing_and_one_that_is_does() -> None:
    judge, out, lse, (dout, q, (k, v)) = _case()
    dq, dk, dv = attention_backward(dout, q, k, v, out, lse, MASK)
    assert judge.error((None, dk, dv)) <= checked_rows.TOLERANCE
    assert judge.error((None, dk, -dv)) > checked_rows.TOLERANCE
    assert judge.error((-dq, None, None)) > checked_rows.TOLERANCE


def test_the_suite_of_forms_is_of_gradients_alone(gpu: Any) -> None:
    with pytest.raises(ValueError, match="bench: fit measures forms of the backward pass; add --pass bwd"):
        _run("fit", timed="fwd")
    (row,) = _run("fit", "omnicupy:split")["rows"]
    assert (row["suite"], row["pass"]) == ("fit", "backward")


def test_what_the_model_is_fitted_on_is_not_what_it_is_judged_by() -> None:
    fitted, unseen = (suites.GPU_SUITES[name].workloads for name in ("fit", "unseen"))
    others = {name for suite in ("vlm", "random", "choices") for name in suites.GPU_SUITES[suite].workloads}
    assert not set(fitted) & (set(unseen) | set(suites.GPU_SUITES["vlm"].workloads))
    assert {f"W{n}" for n in range(1, 14)} <= set(unseen)
    drawn = [name for name in unseen if name.startswith("random")]
    assert len(drawn) == 10
    assert not {name.split("-")[3] for name in drawn} & {
        name.split("-")[3] for name in {*fitted, *others} if name.startswith("random")
    }
    assert {by_name(name).head_dim for name in fitted} == {64, 80, 128, 192, 256}


def test_choices_measure_what_is_worth_a_look(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"omnicupy:{word}" for word in ("split", "dkdv-64x64-s4-w8")]
    monkeypatch.setattr(tiles, "likely_gradients", lambda session, workload: names)
    assert [row["system"] for row in _run("choices")["rows"]] == names


def test_the_default_is_the_forward_pass(gpu: Any) -> None:
    (row,) = _run("dense", "omnicupy", timed="fwd")["rows"]
    assert row["pass"] == "forward"
    assert bench_run.Options().timed == "fwd"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_wrong_gradients_are_marked(number: int, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        found = numpy_gpu.attention_backward(*arguments, **options)
        found[number][:] = -found[number]
        return found

    monkeypatch.setattr(gradients, "attention_backward", wrong)
    assert _run("dense", "omnicupy")["rows"][0]["correct"] is False


def test_whole_calls_and_memory_are_measured_too(gpu: Any) -> None:
    (row,) = _run("short", "omnicupy")["rows"]
    assert row["pass"] == "backward"
    assert {"us_of_100_in_a_row", "us_alone", "host_us", "error"} <= set(row["figures"])
    assert memory._output_bytes(PASSES["fwd"], *(SimpleNamespace(nbytes=n) for n in (1, 2, 4))) == 1
    assert memory._output_bytes(PASSES["bwd"], *(SimpleNamespace(nbytes=n) for n in (1, 2, 4))) == 7


def test_suites_of_the_forward_pass_refuse_another(gpu: Any) -> None:
    for name in ("tiles", "build", "variants", "host"):
        with pytest.raises(
            ValueError, match=f"bench: --pass bwd is for shapes, .*, got {name}, which measures"
        ):
            _run(name)
    with pytest.raises(ValueError, match="bench: --pass must be one of fwd, bwd, fwd"):
        _run("dense", timed="backward")


def test_tiles_of_the_forward_kernels_are_left_out() -> None:
    part = suites.GPU_SUITES["dense"].parts[0]
    assert set(suites.PORTABLE_TILES) <= set(part.systems)
    assert bench_run._for_pass(part.systems, "fwd") == part.systems
    found = bench_run._for_pass(part.systems, "bwd")
    assert found[:2] == ("omnicupy", "omnicupy:sm80")
    assert found[2:] == part.systems[3:]


def _row(**more: Any) -> dict[str, Any]:
    shape = [1, 16, 16, 1024, 1024, 128]
    known = {"workload": "full-d128-s1024", "system": "omnicupy", "suite": "dense", "shape": shape}
    return {**known, "ms": 1.0, "tflops": 100.0, "correct": True, "spec": "sm90-128x128-s2-w12", **more}


def test_readers_of_records_keep_the_passes_apart() -> None:
    rows = [_row(), _row(**{"pass": "forward"}), _row(**{"pass": "backward"}, spec="bwd sm90"), _row(ms=2.0)]
    content = {"schema": 1, "suites": ["dense"], "rows": rows, "device": "H100"}
    assert plots.suites_of(content) == ["dense", "dense backward"]
    assert plots.rows_of(content, "dense") == [rows[0], rows[1], rows[3]]
    assert [fitting._usable(row) for row in rows] == [True, True, False, True]
    text = records.kernel_table(rows)
    assert "| full-d128-s1024 |" in text
    assert "| full-d128-s1024, backward |" in text


@pytest.mark.parametrize("timed", ["bwd", "fwd+bwd"])
@pytest.mark.parametrize("tokens_first", [False, True])
def test_gradients_of_a_peer_are_those_of_its_call(
    timed: str, tokens_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch_inputs, "as_torch", torch.from_numpy)
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 2, 60, 8)).astype(np.float32) for _ in range(4))
    workload = Workload("tiny", 1, (2, 2, 8), lambda: causal(60), "")
    shared = torch_inputs.Shared(workload, causal(60), (q, k, v), dout)
    attend = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def made(shared: Any) -> peers.Peer:
        inputs = shared.bshd if tokens_first else (shared.q, shared.k, shared.v)

        def call() -> Any:
            calls.append(1)
            given = [one.transpose(1, 2) for one in inputs] if tokens_first else inputs
            out = attend(*given, is_causal=True)
            return out.transpose(1, 2) if tokens_first else out

        return peers.Peer(call, call, inputs=inputs, tokens_first=tokens_first)

    monkeypatch.setitem(peers.SYSTEMS, "flex", made)
    peer = peers.prepare("flex", shared, timed=PASSES[timed])
    found = [one.numpy() for one in peer.output()]
    out, lse = attention(q, k, v, causal(60), return_lse=True)
    for mine, theirs in zip(attention_backward(dout, q, k, v, out, lse, causal(60)), found, strict=True):
        assert np.allclose(mine, theirs, atol=1e-4)
    assert len(calls) == (1 if timed == "bwd" else 2)  # a backward pass alone runs the forward pass once
