"""gpu/cached.py: sinks, soft caps and splits of calls on caches, on a fake device."""

from __future__ import annotations

from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.spec import AttnSpec

BATCH, CAPACITY = 3, 1000
SM80 = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _inputs() -> tuple[ndarray, oc.CachedKV]:
    k, v = (ndarray((BATCH, 2, CAPACITY, 64), BF16) for _ in "kv")
    return ndarray((BATCH, 8, 1, 64), BF16), oc.CachedKV(k, v, ndarray((BATCH,), np.dtype(np.int32)))


def _pair(device: fake_device.Device) -> tuple[Any, Any]:
    """The launches of the planner and of the kernel behind it."""
    planner, kernel = device.launches[-2:]
    assert isinstance(planner["spec"], PlanSpec)
    return planner, kernel


def test_a_step_brings_its_split(device: fake_device.Device) -> None:
    q, kv = _inputs()
    step = oc.plan(q, kv, oc.cached(), split=384)
    oc.attention(q, kv, mask=step)
    oc.attention(q, kv, mask=step, split=384)
    assert len(device.launches) == 3
    with pytest.raises(ValueError, match="the step was made for another kernel, split or device"):
        oc.attention(q, kv, mask=step, split=768)


def test_sinks_and_a_soft_cap_reach_the_kernel(device: fake_device.Device) -> None:
    q, kv = _inputs()
    sinks = ndarray((8,), np.dtype(np.float32))
    scores: dict[str, Any] = {"scale": 0.25, "softcap": 50.0, "sink_logits": sinks}
    oc.attention(q, kv, mask=oc.cached(), **scores)
    step = oc.plan(q, kv, oc.cached(), softcap=50.0)
    oc.attention(q, kv, mask=step, **scores)
    oc.attention(q, kv, mask=step, softcap=50.0)
    with pytest.raises(
        ValueError, match=r"^softcap must be that of the step, 50.0, got None; name it in each layer"
    ):
        oc.attention(q, kv, mask=step)
    oc.attention(q, kv, mask=oc.plan(q, kv, oc.cached()))
    capped, behind, alone, plain = (one for one in device.launches if not isinstance(one["spec"], PlanSpec))
    for one in (capped, behind):
        assert one["spec"] == CachedSpec.of(one["spec"])
        assert one["spec"].softcap
        assert one["params"]["sink_logits"] == sinks.data.ptr
        assert np.isclose(one["params"]["tanh_scale"], 0.25 / 50)
        assert one["params"]["scale"] == 50
    assert alone["params"]["sink_logits"] == plain["params"]["sink_logits"] == 0
    assert not plain["spec"].softcap
    assert plain["params"]["tanh_scale"] == 0
    for bad, message in (
        (ndarray((7,), np.dtype(np.float32)), "sink_logits must have the shape"),
        (ndarray((8,), BF16), "sink_logits must be float32"),
        (ndarray((8,), np.dtype(np.float32), 1), "sink_logits must be on the device of q"),
        (np.zeros(8, np.float32), "sink_logits must be a CuPy array like q"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            oc.attention(q, kv, mask=oc.cached(), sink_logits=bad)


@pytest.mark.parametrize("rule", [oc.cached(), oc.cached(window=300, sink=4)], ids=["all", "window"])
def test_a_split_is_of_so_many_keys(device: fake_device.Device, rule: oc.CachedRule) -> None:
    q, kv = _inputs()
    oc.attention(q, kv, mask=rule, split=384)
    planner, kernel = _pair(device)
    p = planner["params"]
    assert p["split_tiles"] * p["bc"] == 384
    most = -(-CAPACITY // 384) if rule.window is None else 2
    assert p["split_slots"] == kernel["params"]["n_slots"] == BATCH * most
    oc.attention(q, kv, mask=rule)
    assert _pair(device)[0]["params"]["split_tiles"] == 0
    oc.attention(q, kv, mask=rule, split=1152)  # more than there are keys
    planner, kernel = _pair(device)
    assert planner["params"]["split_slots"] == kernel["params"]["n_slots"] == 0
    oc.attention(q, kv, mask=rule, split=384, config=SM80)  # which cuts no rows
    assert _pair(device)[0]["params"]["split_tiles"] == 0


def test_what_a_split_cannot_be(device: fake_device.Device) -> None:
    with pytest.raises(ValueError, match="split must be a multiple of 128, the keys of a tile of the kernel"):
        oc.attention(*_inputs(), mask=oc.cached(), split=96)
    shape = (60, 8, 8192, 64)
    q, kv = ndarray(shape, BF16), oc.CachedKV(*(ndarray((60, 2, 8192, 64), BF16) for _ in "kv"), None)
    kv.lengths = ndarray((60,), np.dtype(np.int32))
    with pytest.raises(
        oc.UnsupportedError, match=r"split: 2\d{3} blocks of \d+ rows exceed the 2048 that can"
    ):
        oc.attention(q, kv, mask=oc.cached(), split=768)
    q = ndarray((32, 8, 64, 256), BF16)
    kv = oc.CachedKV(*(ndarray((32, 8, 131_072, 256), BF16) for _ in "kv"), None)
    kv.lengths = ndarray((32,), np.dtype(np.int32))
    with pytest.raises(
        oc.UnsupportedError, match=r"split: parts of 384 keys of 32 sequences .* a larger split"
    ):
        oc.attention(q, kv, mask=oc.cached(), split=384)
