"""choose/saved.py: choices are kept, found and dropped by what they depend on; pick.select and calls use them."""

from __future__ import annotations

import json
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_device
import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import classes, pick, saved, table
from omnicupy.choose.saved import Machine
from omnicupy.jit import cache, source, trust
from omnicupy.jit.spec import AttnSpec

SMS = 132
HERE = Machine("Fake H100", "13.0", "12.9")
PROBLEM = Problem(2, 4, 2, 300, 300, 64, "bfloat16")
MASK = oc.random(300, 1)
SPEC = AttnSpec(arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=64, bc=160, stages=2, warps=8)


@pytest.fixture(autouse=True)
def machine(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU of a known name, every kernel served, an empty folder; its path."""
    monkeypatch.setattr(saved, "current_machine", lambda: HERE)
    monkeypatch.setattr(pick, "SERVED", frozenset(row.kernel for row in table.TABLE))
    return isolated_cache / "tuned.json"


def _keep(
    spec: AttnSpec = SPEC, problem: Problem = PROBLEM, mask: oc.Mask = MASK, at: Machine = HERE
) -> Path:
    return saved.keep(at, classes.class_of(problem, (mask,), SMS), spec, {"ms": 1.5})


def _select(problem: Problem = PROBLEM, mask: oc.Mask = MASK, **options: Any) -> AttnSpec:
    return pick.select("sm_90", problem, (mask,), SMS, **options)


def test_without_a_file_nothing_is_asked(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "current_machine", lambda: pytest.fail("asked for the device"))
    monkeypatch.setattr(classes, "mask_class", lambda masks: pytest.fail("looked at the mask"))
    assert saved.find(PROBLEM, (MASK,), SMS) is None
    assert _select() == pick.pick("sm_90", PROBLEM, (MASK,), SMS)
    assert not machine.parent.exists()


def test_a_kept_choice_is_found_and_selected(machine: Path) -> None:
    builtin = _select()
    assert builtin != SPEC
    assert _keep() == machine
    assert saved.find(PROBLEM, (MASK,), SMS) == SPEC
    assert _select() == SPEC
    assert pick.pick("sm_90", PROBLEM, (MASK,), SMS) == builtin
    (row,) = json.loads(machine.read_text())["choices"]
    assert row["machine"] == {"device": "Fake H100", "driver": "13.0", "nvrtc": "12.9"}
    assert row["digest"] == source.load("attention_fwd_sm90.cu").digest
    assert (row["spec"]["bc"], row["measured"]) == (160, {"ms": 1.5})
    # the same class, other sizes within it
    assert (
        _select(replace(PROBLEM, q_len=290, k_len=310, q_heads=6, kv_heads=6), oc.random(310, 4)[:290, :])
        == SPEC
    )


@pytest.mark.parametrize(
    ("problem", "mask"),
    [
        (replace(PROBLEM, dtype="float16"), MASK),
        (replace(PROBLEM, head_dim=128, value_dim=None), MASK),
        (PROBLEM, oc.causal(300)),
        (PROBLEM, oc.full(300)),
        (replace(PROBLEM, batch=500), MASK),
        (replace(PROBLEM, q_len=60), MASK[:60, :]),
    ],
)
def test_another_class_keeps_the_table(problem: Problem, mask: oc.Mask) -> None:
    _keep()
    assert _select(problem, mask) == pick.pick("sm_90", problem, (mask,), SMS)


def test_a_later_choice_replaces_that_of_its_class_alone(machine: Path) -> None:
    other = replace(SPEC, bc=96)
    causal = classes.class_of(PROBLEM, (oc.causal(300),), SMS)
    _keep()
    saved.keep(HERE, causal, other, {})
    _keep(replace(SPEC, stages=1))
    assert len(json.loads(machine.read_text())["choices"]) == saved.count() == 2
    assert _select() == replace(SPEC, stages=1)
    assert _select(mask=oc.causal(300)) == other


def test_kernels_that_are_not_served_or_cannot_run_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _keep()
    builtin = pick.pick("sm_90", PROBLEM, (MASK,), SMS, mappable=False)
    assert builtin.kernel == "sm80"
    assert _select(mappable=False) == builtin
    monkeypatch.setattr(pick, "SERVED", frozenset({"sm80"}))
    with pytest.raises(oc.UnsupportedError, match="kernel 'sm90' would serve this call"):
        _select()
    sm80 = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=96)
    _keep(sm80)
    assert _select() == sm80


def test_the_table_alone_serves_while_choices_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _keep()
    builtin = pick.pick("sm_90", PROBLEM, (MASK,), SMS)
    with pick.serve_every_kernel():
        assert _select() == builtin
    assert _select() == SPEC
    monkeypatch.setattr(cache, "_override", object())  # cubins from elsewhere: the table's
    assert _select() == builtin


def test_the_file_is_read_once(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _keep()
    reads = []
    real = trust.read_trusted
    monkeypatch.setattr(trust, "read_trusted", lambda path: reads.append(path) or real(path))
    for _ in range(5):
        assert _select(mask=oc.random(300, 1)) == SPEC
    assert reads.count(machine) == 1
    machine.unlink()
    assert _select() == SPEC


def _call(config: AttnSpec | None = None) -> Any:
    bf16 = np.dtype(ml_dtypes.bfloat16)
    q = fake_device.ndarray((2, 4, 300, 64), bf16)
    k, v = (fake_device.ndarray((2, 2, 300, 64), bf16) for _ in range(2))

    def call() -> None:
        oc.attention(q, k, v, MASK, config=config)

    return call


def test_calls_use_the_choice_and_config_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake_device.install(monkeypatch)
    MASK._device.clear()
    explicit = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64)
    _keep()
    asked = []
    real = saved.find
    monkeypatch.setattr(saved, "find", lambda *given, **named: asked.append(1) or real(*given, **named))
    call = _call()
    call()
    call()
    _call(explicit)()
    assert device.kernels == [SPEC, explicit]
    assert len(device.launches) == 3
    assert len(asked) == 1  # warm calls do not ask, and calls with a config never do
    MASK._device.clear()


def _warned(call: Any, times: int = 3) -> str:
    """The text of the one warning that several calls give."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(times):
            assert call() == pick.pick("sm_90", PROBLEM, (MASK,), SMS)
    (one,) = seen
    assert one.category is RuntimeWarning
    return str(one.message)


ROW = {
    "machine": vars(HERE),
    "problem": {"dtype": "bfloat16", "head_dim": 64, "mask": "full", "shape": "x"},
    "spec": {"arch": "sm_90", "kernel": "sm80", "dtype": "bfloat16", "head_dim": 64, "br": 64, "bc": 64},
    "digest": "d",
    "measured": {},
}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 3, "choices": []}',
        '{"schema": 1}',
        '{"schema": 1, "choices": [{}]}',
        json.dumps({"schema": 1, "choices": [{**ROW, "spec": {**ROW["spec"], "bc": 7}}]}),  # type: ignore[dict-item]
        json.dumps({"schema": 1, "choices": [{**ROW, "spec": {**ROW["spec"], "speed": 9}}]}),  # type: ignore[dict-item]
        json.dumps({"schema": 1, "choices": [{**ROW, "spec": {**ROW["spec"], "dtype": "float16"}}]}),  # type: ignore[dict-item]
        json.dumps({"schema": 2, "choices": [ROW]}),  # without the width of values
    ],
)
def test_a_corrupt_file_costs_one_warning_and_is_replaced(machine: Path, content: str) -> None:
    machine.parent.mkdir()
    machine.write_text(content)
    assert saved.count() == 0
    text = _warned(_select)
    assert text.startswith(f"the tuned choices in {machine} are ignored: it is not a file of `tune` (")
    assert text.endswith("; run `python cli.py tune` again or delete the file")
    _keep()
    assert _select() == SPEC


def test_a_file_that_cannot_be_read_costs_one_warning(machine: Path) -> None:
    machine.mkdir(parents=True)
    assert "are ignored: it cannot be read (" in _warned(_select)


@pytest.mark.parametrize("other", [replace(HERE, driver="12.8"), replace(HERE, nvrtc="13.0")])
def test_choices_of_another_driver_or_nvrtc_are_stale(other: Machine) -> None:
    _keep(at=other)
    assert "were made with another driver or NVRTC than 13.0 and 12.9, and are not used" in _warned(_select)
    _keep()
    assert _select() == SPEC


def test_choices_of_other_devices_are_no_matter(recwarn: pytest.WarningsRecorder) -> None:
    _keep(at=replace(HERE, device="Fake A100"))
    assert _select() == pick.pick("sm_90", PROBLEM, (MASK,), SMS)
    assert not recwarn.list


def test_choices_of_other_sources_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    _keep()
    monkeypatch.setattr(saved, "_digest_of", lambda name: "another")
    assert "were made with another attention_fwd_sm90.cu, and are not used" in _warned(_select)


def test_a_failed_write_says_so_and_leaves_the_old_file(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _keep()
    before = machine.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"tuned choices cannot be kept in .*No space left.*OMNICUPY_CACHE_DIR"):
        _keep(replace(SPEC, bc=96))
    assert machine.read_bytes() == before
    assert [one.name for one in machine.parent.iterdir() if one.name.endswith(".tmp")] == []
    assert _select() == SPEC


def test_writers_at_the_same_time_lose_nothing(machine: Path) -> None:
    problems = [replace(PROBLEM, head_dim=16 * n, value_dim=None) for n in range(1, 9)]
    specs = [
        AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=one.head_dim, br=64, bc=64)
        for one in problems
    ]
    threads = [
        threading.Thread(target=_keep, args=(spec, problem))
        for spec, problem in zip(specs, problems, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(machine.read_text())["choices"]) == len(problems)
    assert [_select(problem) for problem in problems] == specs


@pytest.mark.gpu
def test_the_machine_of_a_gpu() -> None:
    found = saved._machine(0)
    assert found.device
    assert float(found.driver) >= 12


def test_kinds_of_caches_have_choices_of_their_own(machine: Path) -> None:
    _keep()
    for kind in classes.CACHES[1:]:
        assert saved.find(PROBLEM, (MASK,), SMS, cache=kind) is None
        saved.keep(HERE, classes.class_of(PROBLEM, (MASK,), SMS, cache=kind), replace(SPEC, stages=1), {})
        assert saved.find(PROBLEM, (MASK,), SMS, cache=kind) == replace(SPEC, stages=1)
    assert saved.find(PROBLEM, (MASK,), SMS) == SPEC
    content = json.loads(machine.read_text())
    for row in content["choices"]:
        del row["problem"]["cache"]  # as files were before there were kinds
    content["choices"] = content["choices"][:1]
    machine.write_text(json.dumps(content))
    saved.forget()
    assert saved.find(PROBLEM, (MASK,), SMS) == SPEC
