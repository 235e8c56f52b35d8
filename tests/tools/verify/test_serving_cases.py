"""Cases of pages, e4m3 and rows of their own pass on a fake GPU, find what is wrong there, and compile what may run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy_gpu
import pytest

import omnicupy as oc
from omnicupy.choose import pick, table
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.ragged_spec import RaggedSpec
from omnicupy.jit.spec import AttnSpec, round_up
from omnicupy.masks.constructors import intervals
from omnicupy.tools.verify import on_cpu, on_gpu, serving_cases, serving_judge, serving_kernels
from omnicupy.tools.verify.case_kernels import DEFAULT
from omnicupy.tools.verify.cases import Case
from omnicupy.tools.verify.serving_cases import CASES, KINDS, WIDTHS
from omnicupy.tools.verify.serving_kinds import SCALES

TARGET = on_gpu.Target("sm_90", 132, ("naive",), 2)
HOLES = [case for case in CASES if KINDS[case.tag].holes and KINDS[case.tag].page_size < 64]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, serving_judge)
    return fake


def _small(case: Case) -> Case:
    """Without a split: rows of their own take one on packed tiles alone."""
    size = KINDS[case.tag].page_size or 1
    return replace(
        case, k_len=round_up(150, size), q_len=min(case.q_len, 20), head_dim=16, value_dim=0, split=0
    )


def _one(wanted: Callable[[Any], bool]) -> Case:
    return _small(next(case for case in CASES if wanted(KINDS[case.tag])))


def _verdict(case: Case) -> str:
    (outcome,) = on_gpu.run_case(case, TARGET)
    return outcome.problem


@pytest.mark.parametrize("case", serving_cases.ON_THE_HOST[::5], ids=lambda case: case.id)
def test_they_pass_on_small_stand_ins(case: Case, gpu: Any) -> None:
    assert _verdict(_small(case)) == ""


@pytest.mark.parametrize("case", serving_cases.ON_THE_HOST[3::29], ids=lambda case: case.id)
def test_the_cpu_engine_passes_them(case: Case) -> None:
    outcome = on_cpu.run_case(case)
    assert outcome.passed, str(outcome)
    assert 0 < outcome.ratio <= 1
    assert case in on_cpu.cases()


def test_cases_are_what_they_promise() -> None:
    assert len({case.id for case in CASES}) == len(CASES) == len({*CASES})
    for group in ("caches: pages", "caches: rows", "caches: e4m3"):
        cases = [case for case in CASES if case.group == group]
        assert {(case.head_dim, case.value_dim) for case in cases} == set(WIDTHS)
        assert {case.q_heads // case.kv_heads for case in cases} == {1, 4, 7, 8}
        assert {case.dtype for case in cases} == {"float16", "bfloat16"}
        assert {case.softcap for case in cases} >= {None, 20.0}
        assert {case.split for case in cases} == {0, 384}
    kinds = list(KINDS.values())
    assert {kind.page_size for kind in kinds} == {0, 1, 2, 3, 8, 16, 24, 64, 256}
    assert {kind.scales for kind in kinds} == {"", *SCALES}
    assert {kind.rule for kind in kinds} == {"causal", "window", "sinks", "tail", "draft"}
    assert all(sum(getattr(kind, name) for kind in kinds) > 5 for name in ("shared", "holes", "rows"))


@pytest.mark.parametrize("widths", WIDTHS)
def test_every_row_of_the_table_is_compiled_for_every_kind_of_cache(widths: tuple[int, int]) -> None:
    target = on_gpu.Target("sm_90", 132)
    specs = target.specs([case for case in CASES if (case.head_dim, case.value_dim) == widths])
    made: dict[Any, set[tuple[int, ...]]] = {}
    for spec in specs:
        if isinstance(spec, PagedSpec) and spec.kernel == "sm90":
            ragged = isinstance(spec, RaggedSpec) or (isinstance(spec, Fp8Spec) and spec.ragged)
            kind = (isinstance(spec, Fp8Spec), ragged, spec.page)
            made.setdefault(kind, set()).add((spec.br, spec.bc, spec.warps, spec.pack))
    rows = [
        row
        for row in table.TABLE
        if row.kernel == "sm90" and row.shape != "short" and row.serves("sm_90", "float16", *kernel(widths))
    ]
    of_rows = {(row.br, row.bc, row.warps, row.pack) for row in rows}
    for boxes in (8, 16, 64):
        for ragged in (False, True):
            found = {tile for kind, tiles in made.items() if kind[:2] == (False, ragged) for tile in tiles}
            assert of_rows <= found
            if not ragged:  # a box holds no more keys than divide a tile's
                assert any(kind[2] == boxes for kind in made)
    assert {kind for kind in made if kind[0]} == {
        (True, ragged, page) for ragged in (False, True) for page in (0, 1)
    }
    assert {(False, ragged, 1) for ragged in (False, True)} | {(False, True, 0)} <= set(made)


def kernel(widths: tuple[int, int]) -> tuple[int, int]:
    return widths[0], widths[1] or widths[0]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_what_a_call_chooses_is_among_the_kernels_of_other_devices(arch: str) -> None:
    """So kernels that are compiled elsewhere serve a device of any size."""
    with pick.serve_every_kernel():
        for case in CASES:
            named = {one.spec for one in serving_kernels.variants(case, arch, 1) if one.explicit}
            for sm_count in (1, 132):
                chosen = [
                    one for one in serving_kernels.variants(case, arch, sm_count) if one.name == DEFAULT
                ]
                assert {one.spec for one in chosen} <= named


# A device's kernels hide keys of entries that name no page, which the CPU engine refuses.
def _hiding(q: Any, kv: Any, v: Any = None, mask: Any = None, **options: Any) -> Any:
    if not isinstance(kv, oc.PagedKV):
        return numpy_gpu.attention(q, kv, v, mask, **options)
    rule = mask if isinstance(mask, oc.CachedRule) else mask.rule
    rows, _ = options.pop("rows", None), options.pop("max_rows", None)
    out, lse = (
        options.pop("out"),
        np.full(q.shape[:3] if rows is None else (q.shape[1], q.shape[0]), -np.inf, "f"),
    )
    for b, keys in enumerate(kv.lengths.tolist()):
        of_q, of_out, of_lse = _of_sequence(q, out, lse, rows, b)
        if of_q.shape[2]:
            k, v, named = _gathered(kv, b)
            hidden = intervals(np.zeros(len(named), int), np.where(named, of_q.shape[2], 0), of_q.shape[2])
            seen = rule.mask(keys, of_q.shape[2], len(named), sequence=b) & hidden
            given = options | {"return_lse": True, "out": None}
            of_out[...], of_lse[...] = numpy_gpu.attention(of_q, k, v, [seen], **given)
    return out, lse


def _of_sequence(q: Any, out: Any, lse: Any, rows: Any, b: int) -> tuple[Any, Any, Any]:
    if rows is None:
        return q[b : b + 1], out[b : b + 1], lse[b : b + 1]
    here = slice(int(rows[b]), int(rows[b + 1]))
    return q[here].transpose(1, 0, 2)[None], out[here].transpose(1, 0, 2)[None], lse[None, :, here]


def _gathered(kv: Any, b: int) -> tuple[Any, Any, Any]:
    """Keys and values of a sequence of 16 bits, and whether each is in a page that there is."""
    size, entries = kv.k_pages.shape[1], np.asarray(kv.page_table[b])
    named = np.repeat((entries >= 0) & (entries < len(kv.k_pages)), size)
    page = np.where(named, np.repeat(entries, size), 0)
    at = page, np.arange(len(page)) % size
    k, v = (np.asarray(pool)[at].transpose(1, 0, 2)[None] for pool in (kv.k_pages, kv.v_pages))
    return k, v, named


@pytest.mark.parametrize(
    "case", [case for case in HOLES if not KINDS[case.tag].scales][::4], ids=lambda case: case.id
)
def test_entries_that_name_no_page_hide_keys(case: Case, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_judge, "attention", _hiding)
    monkeypatch.setattr(serving_judge, "plan", lambda q, kv, rule, **options: _Step(rule))
    assert _verdict(_small(case)) == ""

    def first_page(q: Any, kv: Any, v: Any = None, mask: Any = None, **options: Any) -> Any:
        entries = np.where(kv.page_table < 0, 0, kv.page_table)
        return _hiding(q, oc.PagedKV(kv.k_pages, kv.v_pages, entries, kv.lengths), v, mask, **options)

    monkeypatch.setattr(serving_judge, "attention", first_page)
    assert "worst" in _verdict(_small(case))


class _Step:
    def __init__(self, rule: Any) -> None:
        self.rule = rule


def _changed_kv(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The CPU engine on other caches."""

    def attention(q: Any, kv: Any, v: Any = None, mask: Any = None, **options: Any) -> Any:
        return numpy_gpu.attention(q, change(kv), v, mask, **options)

    return attention


def _next_page(kv: Any) -> Any:
    if not isinstance(kv, oc.PagedKV):
        return kv
    entries = np.where(kv.page_table < 0, kv.page_table, (kv.page_table + 1) % len(kv.k_pages))
    return oc.PagedKV(kv.k_pages, kv.v_pages, entries.astype(np.int32), kv.lengths)


def _other_scale(kv: Any) -> Any:
    if kv.k_scale is None:
        return kv
    return oc.CachedKV(kv.k, kv.v, kv.lengths, k_scale=kv.v_scale, v_scale=kv.k_scale)


def _longer(kv: Any) -> Any:
    more = np.minimum(kv.lengths + 1, kv.k.shape[2]).astype(np.int32)
    return oc.CachedKV(kv.k, kv.v, more, k_scale=kv.k_scale, v_scale=kv.v_scale)


def _in_other_words(kind: Any) -> bool:
    return bool(kind.scales == "head" and not kind.page_size)


FAULTS: list[tuple[Callable[[Any], Any], Callable[[Any], bool]]] = [
    (
        _next_page,
        lambda kind: kind.page_size == 3 and kind.on_the_host and not kind.scales and kind.rule == "window",
    ),
    (_other_scale, _in_other_words),
    (_longer, lambda kind: kind.rows and not kind.page_size and not kind.scales),
]


@pytest.mark.parametrize(("change", "kind"), FAULTS, ids=["pages", "scales", "lengths"])
def test_other_keys_are_found(change: Any, kind: Any, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_judge, "plan", lambda q, kv, rule, **options: rule)
    monkeypatch.setattr(serving_judge, "attention", _changed_kv(change))
    assert "worst" in _verdict(_one(kind))


def _after(change: Callable[[Any, Any, Any], None]) -> Callable[..., Any]:
    """The CPU engine, its result changed. change: of the caches, the mask and out."""

    def attention(q: Any, kv: Any, v: Any = None, mask: Any = None, **options: Any) -> Any:
        out, lse = numpy_gpu.attention(q, kv, v, mask, **options)
        change(kv, mask, out.view(np.uint16))
        return out, lse

    return attention


def _last_bit(wanted: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Any], None]:
    def change(kv: Any, mask: Any, bits: Any) -> None:
        if wanted(kv, mask):
            bits[...] ^= np.where(bits & 0x7F00, 1, 0).astype(np.uint16)

    return change


def _last_row(kv: Any, mask: Any, bits: Any) -> None:
    bits[-1] = 0


def test_other_bits_are_found(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(change: Any, wanted: Callable[[Any], bool]) -> str:
        monkeypatch.setattr(serving_judge, "attention", _after(change))
        return _verdict(_one(wanted))

    in_pages = lambda kind: kind.page_size == 16 and kind.on_the_host  # noqa: E731
    of_e4m3 = lambda kind: bool(kind.scales) and not kind.page_size  # noqa: E731
    plain = _last_bit(lambda kv, mask: isinstance(kv, oc.CachedKV) and kv.k_scale is None)
    for wanted in (in_pages, of_e4m3):
        assert "differ from those of plain caches" in said(plain, wanted)
    assert "differ behind a step" in said(
        _last_bit(lambda kv, mask: isinstance(mask, oc.CachedStep)), in_pages
    )
    calls: list[int] = []
    turn = _last_bit(lambda kv, mask: calls.append(1) or len(calls) == 2)  # type: ignore[func-returns-value]
    assert "elements differ over 2 repetitions" in said(turn, in_pages)
    assert "rows of no sequence were written" in said(_last_row, lambda kind: kind.rows)


def test_rows_of_their_own_are_split_where_heads_are_packed() -> None:
    split = [case for case in CASES if KINDS[case.tag].rows and case.split]
    assert len(split) >= 5
    for case in split:
        found = serving_kernels.variants(case, "sm_90", 132)
        assert all(isinstance(one.spec, AttnSpec) and one.spec.pack for one in found)
        assert any(one.explicit for one in found)
        assert not serving_kernels.counts_for("sm80", case)
