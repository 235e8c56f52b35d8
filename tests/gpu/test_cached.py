"""gpu/cached.py: plans, steps, parameters and captures of calls on caches, on a fake device."""

from __future__ import annotations

from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, Stream, ndarray

import omnicupy as oc
from omnicupy.gpu import cached as gpu_cached
from omnicupy.gpu.cached_plan import CachedPlan
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.spec import AttnSpec

BATCH, CAPACITY = 3, 1000
SM80 = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64)
UNPACKED = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=64, br=128, bc=128, stages=2, warps=12
)
NAIVE = AttnSpec(arch="sm_90", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _inputs(q_len: int = 1, device: int = 0, **changes: Any) -> tuple[ndarray, oc.CachedKV]:
    q = ndarray((BATCH, 8, q_len, 64), BF16, device)
    k, v = (ndarray((BATCH, 2, CAPACITY, 64), BF16, device) for _ in "kv")
    lengths = ndarray((BATCH,), np.dtype(np.int32), device)
    return q, oc.CachedKV(changes.get("k", k), changes.get("v", v), changes.get("lengths", lengths))


def _pair(device: fake_device.Device) -> tuple[Any, Any]:
    """The launches of the planner and of the kernel behind it."""
    planner, kernel = device.launches[-2:]
    assert isinstance(planner["spec"], PlanSpec)
    return planner, kernel


def test_a_call_is_two_launches(device: fake_device.Device) -> None:
    q, kv = _inputs()
    out, lse = oc.attention(q, kv, mask=oc.cached(window=100, sink=4), return_lse=True)
    planner, kernel = _pair(device)
    assert len(device.launches) == 2
    assert isinstance(kernel["spec"], CachedSpec)
    p, of_kernel = planner["params"], kernel["params"]
    assert p["lengths"] == kv.lengths.data.ptr
    assert [int(p[name]) for name in ("batch", "q_len", "capacity", "window", "sink")] == [3, 1, 1000, 100, 4]
    spec = kernel["spec"]
    assert spec.pack
    assert [int(p[name]) for name in ("br", "bc", "q_blocks", "heads")] == [spec.tokens(4), spec.bc, 1, 2]
    assert [int(of_kernel[name]) for name in ("pack_heads", "pack_tokens", "packs", "part_rows")] == [
        4,
        16,
        1,
        4,
    ]
    assert (p["sm_count"], p["in_order"], p["tail"]) == (132, 0, 0)
    for name in ("row_offsets", "entries", "parts", "splits", "bit_tiles", "dead", "n_parts"):
        assert p[name] == of_kernel[name] > 0, name
    assert [int(of_kernel[name]) for name in ("q", "k", "v", "out", "lse")] == [
        x.data.ptr for x in (q, kv.k, kv.v, out, lse)
    ]
    assert [int(of_kernel[name]) for name in ("q_len", "k_len", "batch", "mask_batch", "n_spans")] == [
        1,
        1000,
        3,
        3,
        0,
    ]
    # Where a thread block finds its first part, and that one's first entry, without the number of parts.
    assert (of_kernel["tiers"] == 3 + p["split_slots"]).all()
    assert (of_kernel["section"], of_kernel["most_entries"]) == (p["heads"], p["most_entries"])
    assert of_kernel["k_padded"] == p["k_padded"] == 1024
    assert of_kernel["n_slots"] == p["split_slots"] > 0
    assert of_kernel["partials"] < p["row_offsets"], "lists lie behind the parts of split rows"
    assert planner["stream"] is kernel["stream"] is device.streams[0]


@pytest.mark.parametrize("config", [None, UNPACKED], ids=["packed", "unpacked"])
def test_what_the_workspace_holds(device: fake_device.Device, config: AttnSpec | None) -> None:
    q, kv = _inputs()
    oc.attention(q, kv, mask=oc.cached(), config=config)
    (plan,) = gpu_cached._plans.values()
    planner, kernel = _pair(device)
    # Of four rows that are live, O, row_max and row_sum; of a whole tile, for each warp and lane.
    size = 4 * 4 * (64 + 2) if config is None else 128 // 16 * (64 // 8 + 1) * 32 * 16
    heads = int(planner["params"]["heads"])
    assert planner["params"]["row_offsets"] - kernel["params"]["partials"] >= heads * plan.lists.slots * size
    assert plan._need.partial_bytes == plan._partial_bytes + plan.lists.nbytes
    assert plan._need.arrivals >= heads * BATCH * (1 if config is None else 128 // 16)


@pytest.mark.parametrize("config", [SM80, NAIVE], ids=["sm80", "naive"])
def test_kernels_that_read_no_counts_serve_as_they_are(device: fake_device.Device, config: AttnSpec) -> None:
    q, kv = _inputs(q_len=70)
    oc.attention(q, kv, mask=oc.cached(), config=config)
    planner, kernel = _pair(device)
    assert type(kernel["spec"]) is AttnSpec
    assert planner["params"]["in_order"] == (config is NAIVE)
    assert planner["params"]["split_slots"] == 0
    assert kernel["grid"][0] == (70 * 8 * BATCH if config is NAIVE else 2 * 8 * BATCH)


def test_growing_plans_nothing_anew(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    q, kv = _inputs()
    oc.attention(q, kv, mask=oc.cached(window=64))
    made = len(device.kernels)
    monkeypatch.setattr(gpu_cached, "new_plan", None)
    for _ in range(3):
        q, kv = _inputs()
        oc.attention(q, kv, mask=oc.cached(window=64))
    assert (len(device.kernels), len(device.launches)) == (made, 8)
    with pytest.raises(TypeError, match="NoneType"):
        oc.attention(q, kv, mask=oc.cached(window=65))


def test_a_step_is_planned_once(device: fake_device.Device) -> None:
    q, kv = _inputs()
    step = oc.plan(q, kv, oc.cached())
    assert [type(launched["spec"]) for launched in device.launches] == [PlanSpec]
    for _ in range(3):
        layer = _inputs()
        oc.attention(layer[0], oc.CachedKV(layer[1].k, layer[1].v, kv.lengths), mask=step)
    assert len(device.launches) == 4
    planned, *layers = (launched["params"] for launched in device.launches)
    assert {int(params["entries"]) for params in layers} == {int(planned["entries"])}
    assert len({int(params["k"]) for params in layers}) == 3


def test_a_step_serves_layers_of_other_strides(device: fake_device.Device) -> None:
    """They have plans of their own, which read the lists of the step all the same."""
    q, kv = _inputs()
    step = oc.plan(q, kv, oc.cached())
    oc.attention(q, kv, mask=step)
    k, v = (ndarray(kv.k.shape, BF16, 0, (2 * CAPACITY * 128, 128, 256, 2)) for _ in "kv")
    oc.attention(q, oc.CachedKV(k, v, kv.lengths), mask=step)
    planned, first, second = (launched["params"] for launched in device.launches)
    for name in ("row_offsets", "entries", "parts", "splits", "bit_tiles", "dead", "n_parts"):
        assert int(first[name]) == int(second[name]) == int(planned[name]), name
    assert list(first["k_strides"]) != list(second["k_strides"]) == [CAPACITY * 128, 64, 128]
    assert second["k"] == k.data.ptr


def test_a_step_is_of_its_lengths_shapes_kernel_and_stream(device: fake_device.Device) -> None:
    q, kv = _inputs()
    step = oc.plan(q, kv, oc.cached())
    with pytest.raises(ValueError, match="the step was made of another array of lengths"):
        oc.attention(*_inputs(), mask=step)
    with pytest.raises(ValueError, match="the step was made for q of shape"):
        oc.attention(_inputs(q_len=2)[0], kv, mask=step)
    with pytest.raises(ValueError, match="the step was made for another kernel, split or device"):
        oc.attention(q, kv, mask=step, config=SM80)
    device.streams[0] = Stream(9)
    with pytest.raises(ValueError, match="the step was made on another stream, or outside of this capture"):
        oc.attention(q, kv, mask=step)
    assert len(device.launches) == 1
    host = oc.plan(
        np.zeros((BATCH, 8, 1, 64), np.float16),
        oc.CachedKV(
            *(np.zeros((BATCH, 2, CAPACITY, 64), np.float16) for _ in "kv"), np.ones(BATCH, np.int32)
        ),
        oc.cached(),
    )
    host.lengths = kv.lengths
    with pytest.raises(TypeError, match="the step was made of NumPy arrays"):
        oc.attention(q, kv, mask=host)


def test_a_step_brings_its_config(device: fake_device.Device) -> None:
    q, kv = _inputs()
    oc.attention(q, kv, mask=oc.plan(q, kv, oc.cached(), config=SM80))
    assert [launched["spec"] for launched in device.launches][1] == SM80


def test_what_a_capture_needs(device: fake_device.Device) -> None:
    q, kv = _inputs()
    rule = oc.cached(tail=oc.full(1))
    device.streams[0] = Stream(7)
    graph = device.driver.begin(device.streams[0])
    with pytest.raises(oc.UnsupportedError, match="cannot be copied while the stream is"):
        oc.attention(q, kv, mask=rule)
    device.driver.captured.clear()
    oc.prepare(q, kv, mask=rule, max_length=CAPACITY)
    assert device.launches == []
    graph = device.driver.begin(device.streams[0])
    step = oc.plan(q, kv, rule)
    oc.attention(q, kv, mask=step)
    oc.attention(q, kv, mask=rule)
    assert len(device.launches) == 4
    device.driver.captured.clear()
    with pytest.raises(ValueError, match="outside of this capture"):
        oc.attention(q, kv, mask=step)
    assert graph is not None


def test_a_tail_goes_to_the_device_once(device: fake_device.Device) -> None:
    tails = [oc.causal(3), oc.full(3), oc.full(3)]
    rule = oc.cached(tail=tails)
    for _ in range(2):
        oc.attention(*_inputs(q_len=3), mask=rule)
    (uploaded,) = device.uploads
    planner, _ = _pair(device)
    p = planner["params"]
    assert (p["tail_masks"], p["tail_words"]) == (3, 1)
    assert (p["tail_any"] - p["tail"], p["tail_all"] - p["tail"]) == (256, 512)
    assert uploaded[:36].view(np.uint32).tolist() == [1, 3, 7] + [7] * 6
    assert uploaded[256:280].view(np.uint32).tolist() == [7] * 6
    assert uploaded[512:524].view(np.uint32).tolist() == [1, 7, 7]


def test_other_devices_and_dtypes_of_lengths(device: fake_device.Device) -> None:
    oc.attention(*_inputs(device=1), mask=oc.cached())
    assert device.current == 0
    assert {launched["device"] for launched in device.launches} == {1}
    for lengths, message in (
        (ndarray((BATCH,), np.dtype(np.int64)), "lengths must be int32"),
        (ndarray((BATCH + 1,), np.dtype(np.int32)), "lengths must have one entry per sequence"),
        (ndarray((BATCH,), np.dtype(np.int32), 1), "lengths must be on the device of q"),
        (np.zeros(BATCH, np.int32), "lengths must be a CuPy array like q"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            oc.attention(*_inputs(lengths=lengths), mask=oc.cached())
    with pytest.raises(TypeError, match=r"mask must be a rule of cached\(\) where k is a CachedKV"):
        oc.attention(*_inputs(), mask=oc.full(1, CAPACITY))


def test_more_rows_than_are_sorted_stand_in_order(device: fake_device.Device) -> None:
    q = ndarray((40, 8, 4096, 64), BF16)
    k, v = (ndarray((40, 2, 8192, 64), BF16) for _ in "kv")
    oc.attention(q, oc.CachedKV(k, v, ndarray((40,), np.dtype(np.int32))), mask=oc.cached(), config=SM80)
    planner, kernel = _pair(device)
    assert (planner["params"]["in_order"], kernel["grid"][0]) == (1, 40 * 64 * 8)


def test_plans_are_few(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cached, "MAX_PLANS", 3)
    for window in range(1, 8):
        oc.attention(*_inputs(), mask=oc.cached(window=window))
    assert len(gpu_cached._plans) == 3
    assert all(isinstance(plan, CachedPlan) for plan in gpu_cached._plans.values())
