"""Whole calls, of one workload and of seeds whose mean counts, and ours by torch beside them; no timed assertions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy_gpu
import pytest

from omnicupy.api import attention, attention_backward
from omnicupy.masks.constructors import causal
from omnicupy.masks.segment_masks import segments
from omnicupy.reference import checked_rows
from omnicupy.reference.checked_gradients import CheckedGradients
from omnicupy.tools.bench import gradients, memory, peers, timing, torch_inputs
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.bench.suites import CALL_SEEDS, GPU_SUITES
from omnicupy.tools.workloads.workload import Workload, by_name


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    workload = Workload("tiny", 2, (2, 1, 16), lambda: segments([("text", 30), ("image", 50)]), "")
    return numpy_gpu.tiny_bench(monkeypatch, workload, gradients, memory)


@pytest.mark.parametrize(
    ("suite", "turns", "alone"), [("latency", timing.TURNS, timing.ALONE), ("seeds", 3, 30)]
)
def test_seeds_take_fewer_turns(
    suite: str, turns: int, alone: int, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def latencies(calls: Any, synchronize: Any, *how: int) -> Any:
        asked.append(how)
        return dict.fromkeys(calls, (1.0, 2.0))

    monkeypatch.setattr(timing, "latencies_us", latencies)
    names = ("omnicupy",) if suite == "latency" else ()
    options = bench_run.Options((suite,), (CALL_SEEDS[0][0],), names, timed="fwd+bwd")
    rows = bench_run.run(options, lambda line: None)["rows"]
    assert asked == [(turns, alone)]
    (row,) = (row for row in rows if row["system"] == "omnicupy")
    assert (row["pass"], row["figures"]["us_of_100_in_a_row"], row["figures"]["correct"]) == (
        "forward+backward",
        1.0,
        True,
    )


def test_seeds_are_of_default_heads() -> None:
    for names, length, batch in zip(CALL_SEEDS, (1024, 2048), (4, 8), strict=True):
        for seed, name in enumerate(names):
            workload, default = by_name(name), by_name(f"random-d128-s{length}-seed{seed}")
            assert workload.sizes == default.sizes == (16, 16, 128)
            assert (workload.batch, default.batch) == (batch, 16384 // length)
            assert workload.mask() == default.mask()
    assert GPU_SUITES["seeds"].workloads == (*CALL_SEEDS[0], *CALL_SEEDS[1])


def test_gradients_may_be_checked_in_the_first_batch_elements() -> None:
    rng, mask = np.random.default_rng(0), causal(70)
    dout, q, k, v = (rng.standard_normal((3, 1, 70, 16)).astype(np.float16) for _ in range(4))
    out, lse = attention(q, k, v, mask, return_lse=True)
    found = attention_backward(dout, q, k, v, out, lse, mask)
    first = tuple(one[:1] for one in (dout, q, k, v))
    judge = CheckedGradients(first, mask, out[:1], lse[:1])  # type: ignore[arg-type]
    assert 0 < judge.error(found) <= checked_rows.TOLERANCE
    found[1][1:] = np.nan
    assert judge.error(found) <= checked_rows.TOLERANCE
    found[1][0] = 0
    assert judge.error(found) > checked_rows.TOLERANCE


@pytest.mark.parametrize("system", [peers.BY_TORCH, peers.BY_TORCH_FREE])
@pytest.mark.parametrize("timed", ["bwd", "fwd+bwd"])
def test_ours_by_torch_stands_beside_the_others(
    timed: str, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch_inputs, "as_torch", torch.from_numpy)
    rng, mask = np.random.default_rng(0), segments([("text", 20), ("image", 30)])
    q, k, v, dout = (rng.standard_normal((1, 2, 50, 16)).astype(np.float32) for _ in range(4))
    shared = torch_inputs.Shared(Workload("tiny", 1, (2, 2, 16), lambda: mask, ""), mask, (q, k, v), dout)
    found = peers.prepare(system, shared, timed=PASSES[timed]).output()
    out, lse = attention(q, k, v, mask, return_lse=True)
    for mine, theirs in zip(attention_backward(dout, q, k, v, out, lse, mask), found, strict=True):
        assert np.allclose(mine, theirs.numpy(), atol=1e-4)


def test_the_mma_sync_kernel_is_asked_for_in_any_order_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tiles of the forward pass stand for one system of gradients; the forms that a suite names stay."""
    systems = bench_run._for_pass(GPU_SUITES["portable"].systems, "bwd")
    assert systems == ("omnicupy:sm80", "omnicupy:sm80-any-order", "sdpa-flash")
    assert bench_run._for_pass(GPU_SUITES["dense"].systems, "bwd")[:2] == ("omnicupy", "omnicupy:sm80")
    monkeypatch.setattr(bench_run.environment, "has_gpu", lambda: True)
    with pytest.raises(ValueError, match="portable measures forms of the backward pass; add --pass bwd"):
        bench_run.run(bench_run.Options(("portable",)), lambda line: None)
