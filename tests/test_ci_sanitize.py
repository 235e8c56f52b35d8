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
from omnicupy.choose import backward_table

CI = Path(__file__).parent.parent / ".ci"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    fake = numpy_gpu.install(monkeypatch)
    for name in ("ones", "isfinite"):
        setattr(fake, name, getattr(np, name))
    monkeypatch.syspath_prepend(str(CI))
    numpy_gpu.serve(monkeypatch, oc)
    spec = importlib.util.spec_from_file_location("sanitize_backward", CI / "sanitize_backward.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
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
    assert "14 passes" in capsys.readouterr().out
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
