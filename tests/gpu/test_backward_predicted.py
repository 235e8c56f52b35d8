"""The cost model of the backward pass describes the launches that calls make; on a fake device."""

from __future__ import annotations

import pickle
from itertools import product
from typing import Any

import fake_backward
import pytest
from fake_backward import Call, parts

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_prediction, backward_table
from omnicupy.choose.backward_prediction import KernelWork
from omnicupy.choose.ceilings import Device
from omnicupy.gpu import backward_planning
from omnicupy.masks.mask import Mask
from omnicupy.schedule import backward_grid

pytestmark = pytest.mark.usefixtures("one_kernel")

TIERS = 4
MASKS = {
    "causal": oc.causal(1100),
    "full": oc.full(900, 130),
    "mixed": oc.segments([("text", 500), ("image", 450), ("noise", 250)]),
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_backward.device(monkeypatch)


def _launched(device: Any, mask: Mask, head_dim: int, batch: int = 2, **how: Any) -> list[Any]:
    device.launches.clear()
    call = Call(head_dim=head_dim, q_len=mask.shape[0], k_len=mask.shape[1], batch=batch)
    oc.attention_backward(*call.arrays, mask, **how)
    return [launched for launched in device.launches if launched["spec"].part not in ("prepare", "convert")]


def _work(mask: Mask, head_dim: int, batch: int = 2, **how: Any) -> tuple[KernelWork, ...]:
    info = backward_planning.device_info(0)
    problem = Problem(batch, 4, 2, *mask.shape, head_dim, "bfloat16")
    spec = backward_table.pick("sm_90", "bfloat16", head_dim)
    at = Device("Fake", info.sm_count, info.l2_bytes)
    return backward_prediction.work_of(spec, problem, mask, at, **how).kernels


def _taken(launched: Any) -> list[int]:
    """The part of each work item as kernels/omni/work.cuh finds it, or sm90/backward/work_in_turn.cuh."""
    params = launched["params"]
    n_parts = int(params["tiers"][-1])
    of_all = int(params["work_items"]) // n_parts
    early = int(params["early_heads"]) if launched["spec"].finishes == "background" else 0
    turn = int(params["turn_heads"]) if launched["spec"].part == "ordered" else of_all
    tiers, section = [int(end) for end in params["tiers"]], int(params["section"])
    found = [
        part
        for first in range(0, early, section)
        for part in range(n_parts)
        for _ in range(min(section, early - first))
    ]
    of_all, second_half = of_all - early, n_parts if early else 0
    for item in range(int(params["work_items"]) - len(found)):
        before, index = item // (turn * n_parts) * turn, item % (turn * n_parts)
        heads = min(turn, of_all - before)
        first, end = 0, tiers[0]
        for i in range(TIERS - 1):
            if index >= heads * tiers[i]:
                first, end = tiers[i], tiers[i + 1]
        rest = index - heads * first
        width = min(section, heads - rest // ((end - first) * section) * section)
        rest %= (end - first) * section
        found.append(second_half + first + rest // width)
    return found


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("head_dim", "deterministic"), [*product((64, 128), (True, False)), (256, True)])
@pytest.mark.parametrize("sharing", [False, True])
def test_items_are_those_of_the_launch_in_its_order(
    device: Any, name: str, head_dim: int, deterministic: bool, sharing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sharing: sums have places for the heads of a group."""
    mask = pickle.loads(pickle.dumps(MASKS[name]))  # without a plan
    if sharing:
        of_head = -(-mask.shape[0] // 64) * 64 * 4 * head_dim
        monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", 3 * of_head)
    launches = _launched(device, mask, head_dim, deterministic=deterministic)
    work = _work(mask, head_dim, deterministic=deterministic)
    assert [one.kernel for one in work] == [launched["spec"] for launched in launches]
    for one, launched in zip(work, launches, strict=True):
        assert len(one.order) == int(launched["params"]["work_items"])
        assert one.order.tolist() == _taken(launched)


def test_heads_come_before_the_tiers_of_others(device: Any) -> None:
    mask = oc.causal(1100)
    (launched,) = _launched(device, mask, 128, batch=64)
    (work,) = _work(mask, 128, batch=64)
    assert launched["params"]["early_heads"] == 45
    assert work.order.tolist() == _taken(launched)
    assert len(work.charges) == 2 * 9


@pytest.mark.parametrize("wanted", [("q",), ("k",), ("v",), ("k", "v"), ("q", "k"), ("q", "v")])
@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_those_of_the_call_whatever_is_wanted(
    device: Any, wanted: tuple[str, ...], deterministic: bool
) -> None:
    for head_dim in (64, 128, 256):
        how = {"wanted": wanted, "deterministic": deterministic}
        launches = _launched(device, MASKS["mixed"], head_dim, **how)
        assert [one.kernel.part for one in _work(MASKS["mixed"], head_dim, **how)] == parts(launches)
