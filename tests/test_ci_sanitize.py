""".ci/sanitize_backward.py on a stand-in GPU: every row of the table is run, and NaN that comes through is found."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy_gpu
import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table
from omnicupy.schedule import backward_grid

CI = Path(__file__).parent.parent / ".ci"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    fake = numpy_gpu.install(monkeypatch)
    for name in ("ones", "isfinite"):
        setattr(fake, name, getattr(np, name))
    monkeypatch.syspath_prepend(str(CI))
    numpy_gpu.serve(monkeypatch, oc)
    yield _module("sanitize_backward")
    sys.modules.pop("sanitize", None)


def _short(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [one for one in script.backward_masks() if one[0] in ("dead keys", "dead rows")]
    monkeypatch.setattr(script, "backward_masks", lambda: iter(chosen))


def test_every_row_for_hopper_is_run(script: ModuleType) -> None:
    found = {spec for kernel in script.KERNELS for spec in script.specs(kernel, set())}
    rows = {spec for spec in backward_table.rows() if spec.arch in ("sm_90", "sm_90a")}
    assert {spec for spec in rows if spec.dtype == "bfloat16"} < found
    assert len(found) == len(rows) / 2 + 1
    assert {spec.head_dim for spec in script.specs("sm90", {64})} == {64}


def test_passes_without_a_fault_pass(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _short(script, monkeypatch)
    script.main(["sm90", "64"])
    assert "42 passes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no row of the table is asked for"):
        script.main(["sm90", "65"])


def test_nan_that_comes_through_is_found(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(*arguments: Any, **options: Any) -> Any:
        found = numpy_gpu.attention_backward(*arguments, **options)
        for array in found:
            if array is not None:
                array[0, 0, 3, 3] = np.nan
        return found

    _short(script, monkeypatch)
    monkeypatch.setattr(oc, "attention_backward", leaking)
    with pytest.raises(AssertionError, match="NaN from rows or keys that see nothing"):
        script.main(["naive"])


def test_forms_are_chosen_by_name(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []

    def seen(*arguments: Any, **options: Any) -> Any:
        asked.append((options.get("deterministic", True), options["config"].ordered is None))
        return numpy_gpu.attention_backward(*arguments, **options)

    _short(script, monkeypatch)
    monkeypatch.setattr(oc, "attention_backward", seen)
    for words, wanted in (
        (["any-order"], {(False, False)}),
        (["default"], {(True, False)}),
        (["any-order", "default"], {(False, False), (True, False)}),
    ):
        asked.clear()
        script.main(["sm90", "64", *words])
        assert set(asked) == wanted
    with pytest.raises(SystemExit, match="no row of the table is asked for"):
        script.main(["sm90", "256", "any-order"])


@pytest.mark.parametrize("form", ["default", "any-order"])
def test_sums_are_converted_behind_where_that_is_asked_for(
    form: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []

    def seen(dout: Any, q: Any, k: Any, *arrays: Any, **options: Any) -> Any:
        spec, problem = options["config"], Problem(1, 2, 1, q.shape[2], k.shape[2], q.shape[3], "bfloat16")
        how = {"deterministic": options.get("deterministic", True)}
        chosen.append(backward_grid.makes_all_part(spec.kernels(), problem, (arrays[-1],), **how))
        return numpy_gpu.attention_backward(dout, q, k, *arrays, **options)

    for name in ("FEW_ADDITIONS", "MANY_ADDITIONS"):  # which the script changes
        monkeypatch.setattr(backward_grid, name, getattr(backward_grid, name))
    monkeypatch.setattr(oc, "attention_backward", seen)
    script.main(["sm90", "128", form])
    others = set(chosen)
    chosen.clear()
    script.main(["sm90", "128", form, "behind"])
    assert set(chosen) == {"ordered" if form == "default" else "fused"}
    assert not others & set(chosen)


def test_calls_of_few_rows_are_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the CPU, which has all keys that a row sees, and finds NaN where it reads past lengths."""
    fake = numpy_gpu.install(monkeypatch)
    for name in ("isfinite", "ascontiguousarray"):
        monkeypatch.setattr(fake, name, getattr(np, name), raising=False)
    script = _module("sanitize_few_rows")
    asked: list[Any] = []

    def attention(q: Any, kv: Any, *, mask: Any, config: Any) -> Any:
        keys = kv.k if isinstance(kv, oc.CachedKV) else kv.k_pages
        asked.append((config.head_dim, type(kv).__name__, keys.dtype.itemsize))
        return q

    monkeypatch.setattr(oc, "attention", attention)
    script.main(["64"])
    assert "54 calls" in capsys.readouterr().out
    assert set(asked) == {(64, name, size) for name in ("CachedKV", "PagedKV") for size in (1, 2)}
    with pytest.raises(SystemExit, match="the kernel for few rows has no head_dim of"):
        script.main(["96"])
    monkeypatch.setattr(oc, "attention", lambda q, *_, **__: np.full(q.shape, np.nan, np.float32))
    with pytest.raises(AssertionError, match="NaN past a length"):
        script.main(["64"])


@pytest.fixture
def packed_paged(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    fake = numpy_gpu.install(monkeypatch)
    for name, of in (("isfinite", np.isfinite), ("asnumpy", np.asarray)):
        monkeypatch.setattr(fake, name, of, raising=False)
    return _module("sanitize_packed_paged")


def test_packed_tiles_and_prompts_in_pages_are_run(
    packed_paged: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_cpu, asked = oc.attention, []

    def attention(*arrays: Any, config: Any = None, **options: Any) -> Any:
        if config is None:
            return on_cpu(*arrays, **options)
        asked.append((config.source, config.head_dim, type(arrays[1]).__name__, "rows" in options))
        if isinstance(arrays[1], oc.PagedKV):  # entries of no page are errors on the host
            table = arrays[1].page_table
            table[-1, 1::3] = np.where(table[-1, 1::3] == packed_paged.NO_PAGE, table[-1, 0], table[-1, 1::3])
        return on_cpu(*arrays, **options)

    monkeypatch.setattr(oc, "attention", attention)
    packed_paged.main(["64"])
    assert "49 calls" in capsys.readouterr().out
    assert {one[1] for one in asked} == {64}
    kinds = {(one[0], *one[2:]) for one in asked}
    of_pages = [
        (source, "PagedKV", ragged)
        for source in ("attention_fwd_packed.cu", "attention_fwd_sm90.cu")
        for ragged in (False, True)
    ]
    assert kinds == {
        *of_pages,
        ("attention_fwd_packed.cu", "CachedKV", False),
        ("attention_fwd_packed.cu", "ndarray", False),
    }
    with pytest.raises(SystemExit, match="no row of the table is asked for"):
        packed_paged.main(["paged", "65"])


def test_packed_tiles_whose_keys_are_shared_out_are_run(
    packed_paged: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_cpu, asked = oc.attention, []

    def attention(*arrays: Any, config: Any = None, **options: Any) -> Any:
        asked.extend([] if config is None else [config.source])
        return on_cpu(*arrays, **options)

    monkeypatch.setattr(oc, "attention", attention)
    monkeypatch.setattr(packed_paged, "calls", lambda _: [])
    packed_paged.main(["turns", "128"])
    assert "12 calls" in capsys.readouterr().out
    assert set(asked) == {"attention_fwd_key_turns.cu"}


@pytest.mark.parametrize("kernel", ["packed", "paged"])
def test_packed_and_paged_results_are_compared(
    kernel: str, packed_paged: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = oc.attention

    def off(*arrays: Any, config: Any = None, **options: Any) -> Any:
        out, lse = on_cpu(*arrays, **options)
        return (out if config is None else out + out.dtype.type(0.1)), lse

    monkeypatch.setattr(oc, "attention", off)
    with pytest.raises(AssertionError, match="out is not that of the CPU"):
        packed_paged.main([kernel, "64"])
