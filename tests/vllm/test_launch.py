"""Steps with images on a fake device: what is planned and launched, for which rows, and what layers share."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

import fake_tensor  # noqa: E402 - needs torch
from vllm_steps import Request, Step  # noqa: E402

from omnicupy.jit.plan_spec import PlanSpec  # noqa: E402
from omnicupy.torch import state  # noqa: E402
from omnicupy.vllm import attend  # noqa: E402
from omnicupy.vllm.batch import Batch  # noqa: E402

IMAGES = ((3, 12), (20, 29))
STEP = [Request(1, 37), Request(1, 20), Request(40, 40, IMAGES), Request(40, 47, IMAGES), Request(23, 23)]
SETTINGS: dict[str, Any] = {"heads": (8, 4), "head_size": 64, "dtype": torch.bfloat16}
OF_DEVICE = ("query", "output", "new_keys", "new_values", "kv_cache", "block_table", "seq_lens")
OF_DEVICE += ("query_start_loc", "slots")


class Viewed(fake_tensor.Cuda):
    """A tensor of a fake device at its own address, and so are its views."""

    index = 0

    @property
    def address(self) -> int:
        return torch.Tensor.data_ptr(self)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = fake_tensor.install(monkeypatch)
    monkeypatch.setattr(state, "PLAIN", (Viewed,))
    monkeypatch.setattr(Viewed, "empties", fake.empties)
    none = torch.zeros((1, 1), dtype=torch.int32).as_subclass(Viewed)
    monkeypatch.setattr(attend, "_unread", lambda _: (none, none[0]))
    with torch.inference_mode():
        yield fake


def _step(requests: list[Request] = STEP) -> tuple[Step, Batch, tuple[Any, Any]]:
    step = Step(requests, **SETTINGS)
    for name in OF_DEVICE:
        setattr(step, name, getattr(step, name).as_subclass(Viewed))
    of_device = step.query_start_loc, step.seq_lens, step.block_table
    batch = Batch(step.tokens, *of_device, step.starts, step.bounds, step.ranges)
    return step, batch, attend.pools_of(step.kv_cache, step.head_size)


def _launched(device: Any) -> tuple[list[Any], list[Any]]:
    """Parameters of planners and of kernels since the last time."""
    planners, kernels = [], []
    for one in device.launches:
        (planners if isinstance(one["spec"], PlanSpec) else kernels).append(one["params"])
    device.launches.clear()
    return planners, kernels


def test_calls_read_and_write_what_is_their_own(device: Any) -> None:
    step, batch, pools = _step()
    attend.attend(batch, attend.Layer(0.125, 12), step.query, pools, step.output)
    planners, kernels = _launched(device)
    assert [(part.first, part.stop) for part in batch.parts(12, False)] == [(0, 2), (2, 4), (4, 5)]
    firsts = [0, 2, 4]
    assert [int(one["lengths"]) for one in planners] == [step.seq_lens[i:].data_ptr() for i in firsts]
    tables = [step.block_table[i:].data_ptr() for i in firsts]
    assert [int(one["page_table"]) for one in kernels] == tables
    images = step.starts[2]
    assert [int(one["q"]) for one in kernels] == [
        step.query.data_ptr(),
        step.query[images:].data_ptr(),
        step.query.data_ptr(),
    ]
    assert [int(one["out"]) for one in kernels] == [
        step.output.data_ptr(),
        step.output[images:].data_ptr(),
        step.output.data_ptr(),
    ]
    assert {int(one["k"]) for one in kernels} == {pools[0].data_ptr()}
    assert {int(one["v"]) for one in kernels} == {pools[1].data_ptr()}
    assert device.empties == []


def test_layers_share_lists_and_steps_share_masks(device: Any) -> None:
    step, batch, pools = _step()
    layers = [attend.Layer(0.125, 12), attend.Layer(0.125)]
    for layer in layers * 2:
        attend.attend(batch, layer, step.query, pools, step.output)
    planners, kernels = _launched(device)
    assert (len(planners), len(kernels)) == (6, 12)
    assert [int(one["entries"]) for one in kernels[:6]] == [int(one["entries"]) for one in kernels[6:]]
    made, uploads = len(device.kernels), len(device.uploads)
    assert uploads == 2  # a mask for each kind of layer
    step, batch, pools = _step()
    for layer in layers:
        attend.attend(batch, layer, step.query, pools, step.output)
    planners, kernels = _launched(device)
    assert (len(planners), len(kernels)) == (6, 6)
    assert (len(device.kernels), len(device.uploads)) == (made, uploads)


def test_sinks_and_softcaps_share_lists_as_well(device: Any) -> None:
    step, batch, pools = _step()
    sinks = torch.zeros(8).as_subclass(Viewed)
    for _ in range(2):
        layer = attend.Layer(0.125, 12, softcap=30.0)
        attend.attend(batch, layer, step.query, pools, step.output, sinks)
    planners, kernels = _launched(device)
    assert (len(planners), len(kernels)) == (3, 6)
    assert {int(one["sink_logits"]) for one in kernels} == {sinks.data_ptr()}


def test_new_keys_are_one_launch(device: Any) -> None:
    step, _, pools = _step()
    attend.append(pools, step.new_keys, step.new_values, step.slots)
    (launched,) = device.launches
    params = launched["params"]
    assert int(params["slots"]) == step.slots.data_ptr()
    assert int(params["k"]) == pools[0].data_ptr()
