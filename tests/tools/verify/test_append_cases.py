"""Cases of append pass on the CPU engine and on a fake GPU, and find what is wrong there."""

from __future__ import annotations

from itertools import product
from typing import Any

import fp8_caches
import numpy as np
import numpy_gpu
import pytest

from omnicupy import serving_api
from omnicupy.jit.append_spec import Fp8AppendSpec
from omnicupy.serving.caches import pools_of
from omnicupy.tools.verify import append_cases, on_cpu, on_gpu
from omnicupy.tools.verify.append_cases import CASES, KINDS, ON_THE_HOST
from omnicupy.tools.verify.cases import BSHD, Case
from omnicupy.tools.verify.serving_cases import PAGE_SIZES
from omnicupy.tools.verify.serving_kinds import SCALES

TARGET = on_gpu.Target("sm_90", 132)


def _plain(kv: Any) -> Any:
    return numpy_gpu._plain(kv)


def _append(kv: Any, k_new: Any, v_new: Any, slots: Any = None) -> None:
    serving_api.append(_plain(kv), np.asarray(k_new), np.asarray(v_new), slots)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(append_cases, "append", _append)
    return fake


def _verdict(case: Case) -> str:
    (outcome,) = on_gpu.run_case(case, TARGET)
    assert outcome.sources == ("cache_append_fp8.cu" if KINDS[case.tag].scales else "cache_append.cu",)
    return outcome.problem


@pytest.mark.parametrize("case", ON_THE_HOST, ids=lambda case: case.id)
def test_they_pass(case: Case, gpu: Any) -> None:
    assert on_cpu.run_case(case).passed
    assert _verdict(case) == ""


def test_cases_are_what_they_promise() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    kinds = list(KINDS.values())
    for scaled in (False, True):
        assert {kind.page_size for kind in kinds if bool(kind.scales) == scaled} == {0, *PAGE_SIZES}
        assert {kind.slots for kind in kinds if bool(kind.scales) == scaled} == {0, 32, 64}
        assert any(kind.lost and bool(kind.scales) == scaled for kind in kinds)
    assert {kind.scales for kind in kinds} == {"", *SCALES}
    for scaled in (False, True):
        cases = [case for case in CASES if bool(KINDS[case.tag].scales) == scaled]
        assert {(case.dtype, case.options) for case in cases} == set(
            product(("float16", "bfloat16"), ((), (BSHD,)))
        )
    specs = TARGET.specs(CASES)
    assert len(specs) == 3
    assert {one.dtype for one in specs if isinstance(one, Fp8AppendSpec)} == {"float16", "bfloat16"}


def test_e4m3_is_rounded_as_it_is_defined() -> None:
    assert append_cases.MAGNITUDES.tolist() == fp8_caches.NUMBERS[:0x7F].tolist()
    rng = np.random.default_rng(0)
    middles = (append_cases.MAGNITUDES[1:] + append_cases.MAGNITUDES[:-1]) / 2
    values = np.concatenate(
        [middles, -middles, rng.normal(size=300) * 10.0 ** rng.uniform(-4, 3, 300), [1e9, -np.inf]]
    )
    values = values.astype(np.float32)
    assert append_cases.nearest(values).tolist() == [fp8_caches.nearest(float(value)) for value in values]
    assert append_cases.nearest(np.array([np.nan], np.float32)).tolist() == [0x7F]


def _kept(kv: Any, k_new: Any, v_new: Any, slots: Any = None) -> None:
    """As a device does it: what has no place is left out."""
    kv = _plain(kv)
    k, _, table = pools_of(kv)
    capacity = k.shape[2] if table is None else table.shape[1] * k.shape[1]
    tokens = k_new.shape[2]
    for b, length in enumerate(kv.lengths.tolist()):
        for token in range(tokens):
            position = length - tokens + token
            if not 0 <= length <= capacity or position < 0:
                continue
            page, row = (
                (b, position) if table is None else (table[b, position // k.shape[1]], position % k.shape[1])
            )
            if not 0 <= page < len(k):
                continue
            slot = np.array([page * (capacity if table is None else k.shape[1]) + row])
            _append(kv, np.asarray(k_new)[b, :, token][None], np.asarray(v_new)[b, :, token][None], slot)


@pytest.mark.parametrize("case", [case for case in CASES if KINDS[case.tag].lost], ids=lambda case: case.id)
def test_places_that_do_not_exist_are_left_out(case: Case, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_cases, "append", _kept)
    assert _verdict(case) == ""
    monkeypatch.setattr(append_cases, "append", _append)
    assert "ValueError" in _verdict(case)


@pytest.mark.parametrize(
    ("tag", "change", "said"),
    [
        ("append", "a bit", "elements differ of k"),
        ("append-pages2", "a bit", "elements differ of k"),
        ("append-pages16-e4m3-token", "a sign", "elements differ of k"),
        ("append-pages16-e4m3-token", "a scale", "scales of v differ"),
        ("append-pages3", "nothing written", "elements differ of k"),
    ],
)
def test_faults_are_found(
    tag: str, change: str, said: str, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(kv: Any, k_new: Any, v_new: Any, slots: Any = None) -> None:
        if change != "nothing written":
            _append(kv, k_new, v_new, slots)
        k = pools_of(kv)[0]
        if change == "a bit":
            bits = k.view(np.uint16)
            bits[-1, -1, -1, -1] ^= 1
        if change == "a sign":
            k[k == 0x80] = 0
        if change == "a scale":
            kv.v_scale[kv.v_scale == 1] = 2

    monkeypatch.setattr(append_cases, "append", wrong)
    assert said in _verdict(next(case for case in CASES if case.tag == tag))
    assert {case.options for case in CASES if case.tag in ("append", "append-pages2")} == {(), (BSHD,)}


def test_the_caches_of_a_case_hold_something() -> None:
    for case in ON_THE_HOST:
        made = append_cases._made(case, KINDS[case.tag], case.generator("append 1"))
        assert made.kept.any()
