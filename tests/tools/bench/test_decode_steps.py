"""bench/decode_steps.py: the rows of the suite `decode-steps`, on a stand-in GPU, and what its layers are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy_gpu
import pytest

from omnicupy.call.arrays import BFLOAT16, E4M3
from omnicupy.masks.constructors import causal
from omnicupy.reference.checked_rows import CheckedRows
from omnicupy.tools import random_arrays
from omnicupy.tools.bench import decode_steps, decoding, layer_inputs, layer_steps, measure
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.decode_steps import CACHED, PLANNED
from omnicupy.tools.bench.decode_steps import E4M3 as OF_E4M3
from omnicupy.tools.bench.layer_inputs import Layer, LayerJudge
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.report import plots
from omnicupy.tools.workloads.workload import Workload, by_name

FORMS = (PLANNED, CACHED, OF_E4M3)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, layer_steps)
    monkeypatch.setattr(random_arrays, "POOL", 2**16)
    monkeypatch.setattr(decode_steps, "CACHES_BYTES", 1)
    monkeypatch.setattr(measure, "gemm_tflops", lambda clock: ("fake", 778.0))
    monkeypatch.setattr("omnicupy.tools.bench.speeds.COPY_BYTES", 1000)
    monkeypatch.setattr(decode_steps, "TIMES_L2", 0)
    return fake


def _run(monkeypatch: pytest.MonkeyPatch, *systems: str, rows: int = 1) -> dict[str, Any]:
    workload = Workload("tiny", 2, (4, 2, 16), lambda: causal(rows, 96), "")
    monkeypatch.setattr(bench_run, "by_name", lambda name: workload)
    monkeypatch.setattr(bench_run, "missing", lambda names: {})
    options = bench_run.Options(
        ("decode-steps",), (GPU_SUITES["decode-steps"].workloads[0],), systems, samples=3
    )
    found: dict[str, Any] = bench_run.run(options, lambda line: None)
    return found


def test_the_suite_has_every_workload_of_decode() -> None:
    suite = GPU_SUITES["decode-steps"]
    assert sorted(suite.workloads) == sorted(decoding.workloads())
    with_e4m3, others = suite.parts
    assert with_e4m3.systems == (*others.systems, OF_E4M3)
    assert with_e4m3.workloads == tuple(name for name in decoding.workloads() if name in decode_steps.OF_E4M3)
    assert len(with_e4m3.workloads) == len(decode_steps.OF_E4M3)


@pytest.mark.parametrize("l2_bytes", [50 << 20, 60 << 20])
def test_caches_together_are_far_larger_than_l2(l2_bytes: int) -> None:
    for name in decoding.workloads():
        of = by_name(name)
        size = decoding.kv_bytes(of.batch, of.kv_heads, of.mask().shape[1], of.head_dim)
        count = decode_steps.layers_of(size, l2_bytes)
        assert 4 <= count <= 32
        assert 8 * l2_bytes <= count * size <= 24e9
    assert decode_steps.layers_of(10**6, l2_bytes) == 32
    assert decode_steps.layers_of(10**10, l2_bytes) == 4


def test_each_form_is_held_to_the_reference_and_to_copies(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _run(monkeypatch, *FORMS)
    rows = content["rows"]
    assert [row["system"] for row in rows] == list(FORMS)
    for row in rows:
        assert row["correct"] is True
        assert row["error"] < 2
        assert row["shape"] == [2, 4, 2, 1, 96, 16]
        size = decoding.kv_bytes(2, 2, 96, 16) // (2 if row["system"] == OF_E4M3 else 1)
        figures = row["figures"]
        assert figures["layers"] == 4
        assert figures["bytes"] == size
        assert figures["a layer, us"] == pytest.approx(1e3 * row["ms"], rel=1e-3)
        share = size / row["ms"] / 1e9 / content["copy_tbps"]
        assert row["copy_share"] == pytest.approx(share, rel=0.1)
        equal = figures["an equal copy, us"] / figures["a layer, us"]
        assert figures["share of an equal copy"] == pytest.approx(equal, rel=1e-3)
        assert "as fast as the best other" not in figures
        assert "spec" not in row  # the cost model is of calls by themselves
    assert rows[0]["figures"]["kernel"].startswith("sm90-")
    figure = plots.DRAWN["decode-steps"](rows, content)
    (panel,) = (axes for axes in figure.axes if axes.get_visible())
    assert {line.get_label() for line in panel.lines} >= {"omnicupy, planned ahead", "omnicupy, e4m3"}


def test_drafts_see_what_they_may(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["correct"] for row in _run(monkeypatch, *FORMS, rows=4)["rows"]] == [True] * 3


def test_a_layer_that_reads_another_one_s_cache_is_wrong(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def attention(q: Any, k: Any, v: Any, mask: Any, out: Any) -> Any:
        calls.append((q, k, v))
        used = calls[0] if len(calls) % 4 == 2 else calls[-1]
        return numpy_gpu.attention(q, *used[1:], mask, out=out)

    monkeypatch.setattr(layer_steps, "attention", attention)
    (row,) = _run(monkeypatch, PLANNED)["rows"]
    assert row["correct"] is False
    assert row["error"] > 10


def test_results_are_those_of_the_graph(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture that recorded nothing leaves what its outputs held before."""
    graph_of = layer_steps.graph_of

    def forgetful(call: Any) -> Any:
        replay = graph_of(call)
        if not poisoned:
            return replay
        for out in poisoned[-1]:
            out.view(np.uint16)[...] = layer_steps.NAN_BITS
        return lambda: None

    poisoned: list[Any] = []
    fill = layer_steps._poisoned
    monkeypatch.setattr(
        layer_steps, "_poisoned", lambda layers: poisoned.append(fill(layers)) or poisoned[-1]
    )
    monkeypatch.setattr(layer_steps, "graph_of", forgetful)
    (row,) = _run(monkeypatch, PLANNED)["rows"]
    assert (row["correct"], row["error"]) == (False, "inf")


def _rival(error: float, seconds: float) -> Any:
    judge = SimpleNamespace(error=lambda out: error)

    def replay() -> None:
        numpy_gpu.time.sleep(seconds)

    return layer_steps.Step(replay, [None], {"first_call_s": 1.0}, decoding.kv_bytes(2, 2, 96, 16), [judge])


def test_rivals_that_are_right_are_compared_with(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"sdpa-flash": _rival(1.0, 0.02), "sdpa-cudnn": _rival(9.0, 0.0), "flex": _rival(2.0, 0.03)}
    monkeypatch.setattr(layer_steps, "theirs", lambda stack, name: of[name])
    rows = {row["system"]: row for row in _run(monkeypatch, *decode_steps.SYSTEMS, OF_E4M3)["rows"]}
    assert [rows[name]["correct"] for name in decode_steps.PEERS] == [True, False, True]
    for name in (PLANNED, CACHED):
        times = rows["sdpa-flash"]["ms"] / rows[name]["ms"]
        assert rows[name]["figures"]["as fast as the best other"] == pytest.approx(times, rel=1e-3)
    for name in (*decode_steps.PEERS, OF_E4M3):
        assert "as fast as the best other" not in rows[name]["figures"]


def test_what_cannot_be_captured_is_said(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(stack: Any, name: str) -> Any:
        raise RuntimeError(f"{name} cannot be captured\nat all")

    monkeypatch.setattr(layer_steps, "theirs", refuses)
    monkeypatch.setattr(layer_steps, "copies", lambda stack, size: refuses(stack, "a copy"))
    rows = {row["system"]: row for row in _run(monkeypatch, PLANNED, "flex", "omnicupy:page8")["rows"]}
    assert rows["flex"]["problem"] == "RuntimeError: flex cannot be captured"
    assert rows["omnicupy:page8"]["problem"].startswith("ValueError: omnicupy:page8: the suite has ")
    assert rows[PLANNED]["correct"] is True
    assert "an equal copy, us" not in rows[PLANNED]["figures"]


def test_a_device_that_breaks_gives_no_times(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(replays: Any, samples: int) -> Any:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(layer_steps, "in_turns", breaks)
    rows = _run(monkeypatch, PLANNED, CACHED)["rows"]
    assert [row["problem"] for row in rows] == ["RuntimeError: illegal memory access"] * 2
    assert _run(monkeypatch, "omnicupy:page8")["rows"][0]["problem"].startswith("ValueError")


def test_steps_are_replayed_in_turns(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replays = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = layer_steps.in_turns(replays, 3)
    assert "".join(order) == "aabbcc" + "aabc" * 3
    assert {name: one.samples for name, one in found.items()} == {"a": 3, "b": 3, "c": 3}
    monkeypatch.setattr(layer_steps, "_ms", lambda events: 100.0)
    assert layer_steps.in_turns(replays, 30)["b"].samples == 6


@pytest.mark.parametrize("rows", [1, 5])
def test_judges_are_the_reference_s(rows: int) -> None:
    rng = np.random.default_rng(0)
    shapes = ((3, 6, rows, 16), (3, 2, 70, 16), (3, 2, 70, 16))
    layer = Layer(*(rng.standard_normal(shape).astype(BFLOAT16) for shape in shapes))
    mask = causal(rows, 70)
    judge, wanted = LayerJudge(layer, mask), CheckedRows(tuple(layer), mask)
    out = rng.standard_normal(shapes[0]).astype(BFLOAT16)
    assert judge.error(out) == pytest.approx(wanted.error(out), rel=1e-3)
    out[2, 5, rows - 1, 15] = np.nan
    assert judge.error(out) == np.inf


def test_layers_and_caches_of_e4m3_are_others_each(gpu: Any) -> None:
    workload = Workload("tiny", 2, (4, 2, 16), lambda: causal(1, 96), "")
    layers = layer_inputs.make_layers(workload, causal(1, 96), "float16", 3)
    every = [array.tobytes() for layer in layers for array in layer]
    assert len(set(every)) == len(every)
    found = [layer_inputs.e4m3_cache(layer, i) for i, layer in enumerate(layers)]
    assert len({one.k.tobytes() for one in found} | {one.v.tobytes() for one in found}) == 6
    for one in found:
        numbers = one.k.view(E4M3).astype(np.float32)
        assert np.isfinite(numbers).all()
        assert 0.9 < numbers.std() < 1.1
        meant = one.meant(np.dtype(np.float16))[0]
        assert meant.dtype == np.float16
        scaled = numbers * one.k_scale[None, :, None, None]
        assert (meant == scaled.astype(np.float16)).all()
        assert one.k_scale.dtype == np.float32
        assert len(set(one.k_scale.tolist())) == 2
