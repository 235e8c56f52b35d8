"""bench/pages.py: the rows of the suite `paged`, and what a row holds, on a stand-in GPU."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy_gpu
import pytest

import omnicupy as oc
from omnicupy.masks.constructors import causal
from omnicupy.tools.bench import decoding, measure, pages
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.report import plots
from omnicupy.tools.workloads.workload import Workload, by_name


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, pages)
    monkeypatch.setattr(measure, "gemm_tflops", lambda clock: ("fake", 778.0))
    monkeypatch.setattr("omnicupy.tools.bench.speeds.COPY_BYTES", 1000)
    return fake


def _run(
    monkeypatch: pytest.MonkeyPatch, keys: int, *systems: str, suite: str = "paged", rows: int = 1
) -> dict[str, Any]:
    workload = Workload("tiny", 2, (4, 2, 16), lambda: causal(rows, keys), "")
    monkeypatch.setattr(bench_run, "by_name", lambda name: workload)
    options = bench_run.Options((suite,), (GPU_SUITES[suite].workloads[0],), systems, samples=3)
    found: dict[str, Any] = bench_run.run(options, lambda line: None)
    return found


def test_the_suite_has_large_batches_and_one_long_sequence() -> None:
    names = GPU_SUITES["paged"].workloads
    assert set(names) <= set(decoding.workloads())
    assert {"decode-d128-s131072-h28-k4-b1", "decode-d128-s131072-h32-k8-b1"} <= set(names)
    made = [by_name(name) for name in names]
    assert {of.q_heads // of.kv_heads for of in made} >= {1, 2, 3, 4, 5, 7, 8, 71}
    for of in made:
        rows, keys = of.mask().shape
        assert rows == 1
        assert all(keys % size == 0 for size in pages.SIZES)
        assert of.batch == 1 or of.batch >= 8
        assert decoding.kv_bytes(of.batch, of.kv_heads, keys, of.head_dim) >= 256e6
    assert GPU_SUITES["paged"].systems == pages.SYSTEMS


def test_each_size_is_held_to_the_reference_and_to_no_pages(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _run(monkeypatch, 256)
    rows = content["rows"]
    assert [row["system"] for row in rows] == list(pages.SYSTEMS)
    times = {row["system"]: row["ms"] for row in rows}
    for row in rows:
        assert row["correct"] is True
        assert row["shape"] == [2, 4, 2, 1, 256, 16]
        read = decoding.kv_bytes(2, 2, 256, 16)
        assert row["copy_share"] == pytest.approx(read / row["ms"] / 1e9 / content["copy_tbps"], rel=0.5)
        over = row["figures"]["time over contiguous"]
        assert over == pytest.approx(row["ms"] / times[pages.WHOLE], rel=1e-3)
    figure = plots.DRAWN["paged"](rows, content)
    (panel,) = (axes for axes in figure.axes if axes.get_visible())
    labels = [line.get_label() for line in panel.lines]
    assert len(set(labels)) == len(pages.SYSTEMS)
    assert "pages of 16" in labels


def test_prompts_have_as_many_rows_as_keys_or_fewer(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [by_name(name).mask().shape for name in GPU_SUITES["prompts"].workloads]
    assert all(64 < rows <= keys and keys % 128 == 0 for rows, keys in shapes)
    assert {rows == keys for rows, keys in shapes} == {False, True}
    for row in _run(monkeypatch, 256, suite="prompts", rows=100)["rows"]:
        assert row["correct"] is True
        assert "copy_share" not in row
        assert row["figures"]["time over contiguous"] > 0


def test_e4m3_is_held_to_the_numbers_that_it_stands_for(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _run(monkeypatch, 256, suite="e4m3")
    rows = content["rows"]
    assert [(row["system"], row["correct"]) for row in rows] == [(name, True) for name in pages.E4M3_SYSTEMS]
    for row in rows:
        read = decoding.kv_bytes(2, 2, 256, 16) / (1 if row["system"] == pages.WHOLE else 2)
        assert row["copy_share"] == pytest.approx(read / row["ms"] / 1e9 / content["copy_tbps"], rel=0.5)


def test_bytes_of_e4m3_and_their_numbers(gpu: Any) -> None:
    k = np.linspace(-7, 7, 999).astype(np.float16)
    codes, numbers = pages.in_e4m3(k)
    meant = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(pages.E4M3_SCALE)
    assert numbers.dtype == k.dtype
    np.testing.assert_array_equal(numbers, meant.astype(np.float16))
    np.testing.assert_allclose(numbers[abs(k) < 6], k[abs(k) < 6], rtol=1 / 15, atol=1e-4)
    assert abs(numbers).max() == np.float16(448 * pages.E4M3_SCALE)


def test_what_cannot_run_is_said(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _run(monkeypatch, 200, pages.WHOLE, "omnicupy:page8", "omnicupy:page16", "omnicupy:page7")["rows"]
    problems = {row["system"]: row.get("problem", "") for row in rows}
    assert problems["omnicupy:page16"] == "ValueError: pages of 16 tokens do not divide 200 keys"
    assert problems["omnicupy:page7"].startswith(
        "ValueError: omnicupy:page7: the suite has omnicupy:contiguous"
    )
    assert problems[pages.WHOLE] == problems["omnicupy:page8"] == ""


def test_a_wrong_result_is_marked(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pages.in_pages

    def wrong(*given: Any) -> oc.PagedKV:
        kv = made(*given)
        kv.page_table[0] = kv.page_table[1]
        return kv

    monkeypatch.setattr(pages, "in_pages", wrong)
    rows = _run(monkeypatch, 64, pages.WHOLE, "omnicupy:page8")["rows"]
    assert [row["correct"] for row in rows] == [True, False]


def test_pages_hold_the_keys_in_another_order(gpu: Any) -> None:
    k = np.arange(2 * 1 * 32 * 2, dtype=np.uint16).view(np.float16).reshape(2, 1, 32, 2)
    kv = pages.in_pages(k, k, np.full(2, 32, np.int32), 8)
    assert sorted(kv.page_table.reshape(-1).tolist()) == list(range(8))
    assert kv.page_table.reshape(-1).tolist() != list(range(8))
    for b, entries in enumerate(kv.page_table):
        held = np.concatenate([kv.k_pages[page] for page in entries]).transpose(1, 0, 2)
        assert held.tobytes() == k[b].tobytes()
