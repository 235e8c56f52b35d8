"""sink_logits and softcap on their way to a forward launch, on a fake device."""

from __future__ import annotations

import math
from typing import Any

import fake_device
import numpy as np
import pytest
from fake_device import BF16, ndarray
from fake_device import inputs as _inputs

import omnicupy as oc
from omnicupy.gpu import attention as gpu_attention


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _sinks(count: int = 4, **more: Any) -> ndarray:
    return ndarray((count,), np.float32, **more)


def test_the_struct_has_what_changes_scores(device: fake_device.Device) -> None:
    sinks = _sinks()
    oc.attention(*_inputs(), oc.causal(300), scale=0.5, sink_logits=sinks, softcap=20.0)
    p = device.launches[0]["params"]
    assert device.kernels[0].softcap
    assert p["sink_logits"] == sinks.data.ptr
    assert (p["scale"], p["tanh_scale"]) == (20.0, np.float32(0.5 / 20))
    assert p["scale_log2"] == np.float32(20 * math.log2(math.e))
    oc.attention(*_inputs(), oc.causal(300), scale=0.5)
    p = device.launches[1]["params"]
    assert not device.kernels[1].softcap
    assert (p["sink_logits"], p["scale"], p["tanh_scale"]) == (0, 0.5, 0)


def test_a_warm_call_takes_the_new_sinks(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, out = oc.causal(300), ndarray((2, 4, 300, 64), BF16)
    oc.attention(*_inputs(), mask, sink_logits=_sinks(), softcap=20.0, out=out)
    monkeypatch.setattr(gpu_attention, "new_plan", None)
    monkeypatch.setattr(gpu_attention.check, "call", None)
    sinks = _sinks()
    oc.attention(*_inputs(), mask, sink_logits=sinks, softcap=20.0, out=out)
    assert device.launches[1]["params"]["sink_logits"] == sinks.data.ptr


@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 20.0}, {"softcap": 30.0, "sinks": 4}, {"sinks": 4}],
    ids=["neither", "no sinks", "another cap", "no cap"],
)
def test_plans_are_kept_apart(device: fake_device.Device, options: dict[str, Any]) -> None:
    mask = oc.causal(300)
    oc.attention(*_inputs(), mask, sink_logits=_sinks(), softcap=20.0)
    planned = len(device.kernels)
    given = {"sink_logits": _sinks() if "sinks" in options else None, "softcap": options.get("softcap")}
    oc.attention(*_inputs(), mask, **given)
    assert len(device.kernels) == planned + 1


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("sinks", "kind", "message"),
    [
        (lambda: _sinks(3), ValueError, "sink_logits must have the shape"),
        (lambda: ndarray((4,), np.float64), TypeError, "sink_logits must be float32"),
        (lambda: _sinks(device=1), ValueError, "sink_logits must be on the device of q"),
        (lambda: _sinks(strides=(8,)), ValueError, "sink_logits must be contiguous"),
        (lambda: np.zeros(4, np.float32), TypeError, "sink_logits must be a CuPy array like q"),
        (lambda: [0.0] * 4, TypeError, "sink_logits must be a CuPy or NumPy array"),
    ],
    ids=["shape", "dtype", "device", "strides", "numpy", "list"],
)
def test_bad_sinks_are_named(
    device: fake_device.Device, sinks: Any, kind: type[Exception], message: str, warm: bool
) -> None:
    mask = oc.causal(300)
    if warm:
        oc.attention(*_inputs(), mask, sink_logits=_sinks())
    with pytest.raises(kind, match=message):
        oc.attention(*_inputs(), mask, sink_logits=sinks())


@pytest.mark.parametrize("warm", [False, True])
def test_out_over_the_sinks_is_refused(device: fake_device.Device, warm: bool) -> None:
    mask, out = oc.causal(300), ndarray((2, 4, 300, 64), BF16)
    if warm:
        oc.attention(*_inputs(), mask, sink_logits=_sinks(), out=out)
    over = _sinks()
    over.data = type(out.data)(out.data.ptr + 64, 0)
    with pytest.raises(ValueError, match="out must not overlap sink_logits"):
        oc.attention(*_inputs(), mask, sink_logits=over, out=out)


def test_a_config_must_cap_where_the_call_does(device: fake_device.Device) -> None:
    plain = oc.AttnSpec(arch="sm_90", kernel="naive", dtype="bfloat16", head_dim=64, br=64, bc=64)
    with pytest.raises(
        ValueError, match="config must have softcap=True for a call with a softcap, got False"
    ):
        oc.attention(*_inputs(), softcap=20.0, config=plain)
    oc.attention(*_inputs(), config=plain)
