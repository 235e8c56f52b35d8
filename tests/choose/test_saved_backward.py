"""choose/saved.py and choose/backward_table.py: choices for the backward pass, and files of the schema before them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, classes, pick, saved
from omnicupy.choose.classes import BACKWARD, FORWARD
from omnicupy.choose.saved import Machine
from omnicupy.jit import source
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec

SMS = 132
HERE = Machine("Fake H100", "13.0", "12.9")
PROBLEM = Problem(2, 4, 2, 300, 300, 64, "bfloat16")
MASK = oc.random(300, 1)
FORWARD_SPEC = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=64, bc=160, stages=2, warps=8
)
BUILTIN, BUILTIN_IN_ANY_ORDER = (
    backward_table.chosen_for("sm_90", PROBLEM, (MASK,), deterministic=order) for order in (True, False)
)
SPEC = replace(backward_table.pick("sm_90", "bfloat16", 64), dq=TileShape(128, 64, 4, 12))


@pytest.fixture(autouse=True)
def machine(isolated_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU of a known name and an empty folder; the path of its file."""
    monkeypatch.setattr(saved, "current_machine", lambda: HERE)
    return isolated_cache / "tuned.json"


def _class(passed: str = BACKWARD, **options: bool) -> classes.ProblemClass:
    return classes.class_of(PROBLEM, (MASK,), SMS, passed, **options)


def _keep(spec: BackwardSpec = SPEC, at: Machine = HERE, **options: bool) -> Path:
    return saved.keep(at, _class(**options), spec, {"ms": 1.5})


def _select(**options: bool) -> BackwardSpec:
    return backward_table.select("sm_90", PROBLEM, (MASK,), SMS, **options)


def test_without_a_file_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "current_machine", lambda: pytest.fail("asked for the device"))
    monkeypatch.setattr(classes, "mask_class", lambda masks: pytest.fail("looked at the mask"))
    assert _select() == BUILTIN


def test_a_kept_choice_is_found_and_selected(machine: Path) -> None:
    assert SPEC != BUILTIN
    assert _keep() == machine
    assert saved.find_backward(PROBLEM, (MASK,), SMS, deterministic=True) == SPEC
    assert _select() == SPEC
    assert backward_table.chosen_for("sm_90", PROBLEM, (MASK,)) == BUILTIN
    assert saved.find(PROBLEM, (MASK,), SMS) is None  # the forward pass has its own
    content = json.loads(machine.read_text())
    assert content["schema"] == 2
    (row,) = content["choices"]
    assert (row["problem"]["passed"], row["problem"]["deterministic"]) == ("backward", True)
    assert (row["problem"]["head_dim"], row["problem"]["value_dim"]) == (64, 64)
    assert row["spec"]["dq"] == [128, 64, 4, 12]
    names = dict.fromkeys(kernel.source for kernel in SPEC.kernels().values())
    assert row["digest"] == " ".join(source.load(name).digest for name in names)
    assert len(names) == 5  # prepare, dkdv, dq, fused, convert


def test_calls_whose_sums_may_have_any_order_have_choices_of_their_own() -> None:
    other = replace(BUILTIN, fused=TileShape(64, 128, 2, 12))
    _keep(other, deterministic=False)
    assert (_select(), _select(deterministic=False)) == (BUILTIN, other)
    _keep()
    assert (_select(), _select(deterministic=False)) == (SPEC, other)
    saved.drop(HERE, _class(deterministic=False))
    assert (_select(), _select(deterministic=False)) == (SPEC, BUILTIN_IN_ANY_ORDER)


def test_without_a_fused_kernel_the_choice_is_read_too() -> None:
    _keep(replace(SPEC, fused=None))
    assert _select() == replace(SPEC, fused=None)


def test_the_passes_do_not_replace_each_other(machine: Path) -> None:
    saved.keep(HERE, _class(FORWARD), FORWARD_SPEC, {})
    _keep()
    assert saved.count() == 2
    assert saved.find(PROBLEM, (MASK,), SMS) == FORWARD_SPEC
    assert _select() == SPEC


def test_a_choice_of_the_other_pass_is_refused() -> None:
    for problem, spec in ((_class(FORWARD), SPEC), (_class(), FORWARD_SPEC)):
        with pytest.raises(
            TypeError, match="spec: expected an AttnSpec for forward, a BackwardSpec for backward"
        ):
            saved.keep(HERE, problem, spec, {})


def test_a_kernel_that_is_not_served_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _keep()
    monkeypatch.setattr(backward_table, "SERVED", frozenset({"sm80"}))
    assert _select().kernel == "sm80"


def test_the_table_alone_serves_while_choices_are_ignored() -> None:
    _keep()
    with pick.serve_every_kernel():
        assert _select() == BUILTIN
    assert _select() == SPEC


def test_choices_of_another_driver_or_other_sources_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    _keep(at=replace(HERE, driver="12.8"))
    with pytest.warns(RuntimeWarning, match="were made with another driver or NVRTC than 13.0 and 12.9"):
        assert _select() == BUILTIN
    _keep()
    real = saved._digest_of
    monkeypatch.setattr(saved, "_digest_of", lambda name: "x" if name.endswith("_dq_sm90.cu") else real(name))
    with pytest.warns(
        RuntimeWarning, match="were made with another attention_bwd_delta.cu or .*are not used"
    ):
        assert _select() == BUILTIN


OLD = {
    "machine": vars(HERE),
    "problem": {
        name: value
        for name, value in asdict(_class(FORWARD)).items()
        if name in ("dtype", "head_dim", "mask", "shape")
    },
    "spec": asdict(FORWARD_SPEC),
    "digest": source.load(FORWARD_SPEC.source).digest,
    "measured": {"ms": 2.5},
}


def test_files_of_the_old_schema_hold_choices_of_the_forward_pass(machine: Path) -> None:
    machine.parent.mkdir(exist_ok=True)
    machine.write_text(json.dumps({"schema": 1, "choices": [OLD]}))
    assert saved.find(PROBLEM, (MASK,), SMS) == FORWARD_SPEC
    assert _select() == BUILTIN
    _keep()
    content = json.loads(machine.read_text())
    assert content["schema"] == 2
    old, new = content["choices"]
    assert old == {**OLD, "problem": asdict(_class(FORWARD))}
    assert new["problem"]["passed"] == "backward"
    assert (saved.find(PROBLEM, (MASK,), SMS), _select()) == (FORWARD_SPEC, SPEC)
    saved.keep(HERE, _class(FORWARD), replace(FORWARD_SPEC, bc=96), {})  # in its place, not beside it
    assert saved.count() == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"passed": "sideways"},
        {"passed": FORWARD, "deterministic": False},
        {"passed": BACKWARD, "deterministic": 1},
    ],
)
def test_classes_that_cannot_be_raise(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(passed|deterministic): expected"):
        replace(_class(FORWARD), **fields)


def test_a_row_whose_spec_is_of_the_other_pass_spoils_the_file(machine: Path) -> None:
    _keep()
    content = json.loads(machine.read_text())
    content["choices"][0]["spec"] = asdict(FORWARD_SPEC)
    machine.write_text(json.dumps(content))
    saved.forget()
    with pytest.warns(RuntimeWarning, match="are ignored: it is not a file of `tune`"):
        assert _select() == BUILTIN
