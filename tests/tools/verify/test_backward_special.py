"""Backward cases of more than one call pass on a fake GPU, and find what is wrong there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy_gpu
import pytest

from omnicupy.tools.verify import backward_big, backward_special, on_gpu
from omnicupy.tools.verify.backward_cases import BackwardCase, backward_of
from omnicupy.tools.verify.cases import BASE

SMALL = replace(
    backward_of(replace(BASE, group="x", q_len=70, k_len=90, head_dim=16, q_heads=4), 0), dlse=True
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, on_gpu, backward_special, backward_big)
    return fake


TARGET = on_gpu.Target("sm_90", 132, ("bwd naive",), 2)


def _small(case: BackwardCase) -> BackwardCase:
    return replace(case, q_len=min(case.q_len, 140), k_len=min(case.k_len, 150), head_dim=16)


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("case", backward_special.CASES, ids=lambda case: case.id)
def test_special_cases_pass_on_small_stand_ins(
    case: BackwardCase, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward_big, "CHUNK", 64)
    (outcome,) = on_gpu.run_case(_small(case), TARGET)
    assert outcome.passed, str(outcome)


def test_big_cases_are_big_and_skipped_where_they_do_not_fit(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    big_q, big_kv = backward_special.CASES[:2]
    assert big_q.batch * big_q.q_heads * big_q.q_len * big_q.head_dim > 2**31
    assert big_kv.batch * big_kv.kv_heads * big_kv.k_len * big_kv.head_dim > 2**31
    monkeypatch.setattr(numpy_gpu.Device, "mem_info", (1 << 30, 1 << 30))
    (outcome,) = on_gpu.run_case(big_q, TARGET)
    assert outcome.skipped == "skipped: needs 40 GiB of free device memory"


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("tag", ["big-q", "big-kv", "streams", "addresses", "dropped-mask", "no-zeros"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_special_cases_find_a_wrong_gradient(
    tag: str, number: int, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        found = numpy_gpu.attention_backward(*arguments, **options)
        found[number][0, -1, -1] *= found[number].dtype.type(1.5)
        return found

    for module in (backward_special, backward_big):
        monkeypatch.setattr(module, "attention_backward", wrong)
    monkeypatch.setattr(backward_big, "CHUNK", 64)
    case = next(case for case in backward_special.CASES if case.tag == tag)
    # A row and a key at the end that see something.
    (outcome,) = on_gpu.run_case(replace(_small(case), mask="full"), TARGET)
    assert f"worst {('dq', 'dk', 'dv')[number]} at batch 0" in outcome.problem


def test_a_graph_that_is_not_replayed_is_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_gpu.Graph, "launch", lambda self, stream: None)
    case = next(case for case in backward_special.CASES if case.tag == "graph")
    (outcome,) = on_gpu.run_case(_small(case), TARGET)
    assert "ratio inf" in outcome.problem


def test_a_chain_that_reads_too_early_is_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def early(dout: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(dout)
        read = seen[-2] if len(seen) == 5 else dout  # what the call before had read
        return numpy_gpu.attention_backward(read, *arguments, **options)

    monkeypatch.setattr(backward_special, "attention_backward", early)
    case = next(case for case in backward_special.CASES if case.tag == "chained")
    (outcome,) = on_gpu.run_case(_small(case), TARGET)
    assert "of the chain differs from the same call alone" in outcome.problem


def test_a_gpu_run_names_backward_kernels_in_lines_of_their_own(gpu: Any) -> None:
    target = on_gpu.Target("sm_90", 132, ("bwd",), 2)
    found, usable = on_gpu.run([SMALL, replace(BASE, group="y")], target)
    assert usable
    assert all(one.passed for one in found), [str(one) for one in found]
    assert {one.case.group for one in found} == {"x"}
    assert len({one.kernel for one in found}) == 7
