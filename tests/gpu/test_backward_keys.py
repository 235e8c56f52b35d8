"""gpu/backward.py: what decides a plan is in its key, what an equal key leaves open is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call, parts, run, with_strides
from fake_device import ndarray

import omnicupy as oc
from omnicupy.choose import backward_table

NAIVE = backward_table.naive("sm_90", "bfloat16", 64)
WIDE = (2 * 4 * 300 * 64 * 2, 4 * 300 * 64, 128, 2)  # of q: batch elements twice as far apart


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_backward.device(monkeypatch)


def _strided(name: str) -> Call:
    call = Call()
    array = getattr(call, name)
    with_strides(array, 2 * array.strides[0], *[None] * (len(array.strides) - 1))
    return call


def _of_dtype(dtype: Any) -> Call:
    call = Call()
    for name in ("q", "k", "v", "dout", "out"):
        setattr(call, name, ndarray(getattr(call, name).shape, dtype))
    return call


def _shifted() -> Call:
    call = Call()
    call.dout.data.ptr += 4
    return call


def _wide_target(which: int) -> dict[str, Any]:
    targets: list[Any] = [None] * 3
    targets[which] = Call().targets()[which]
    with_strides(targets[which], 2 * targets[which].strides[0], None, None, None)
    return {"out_grads": targets}


OTHERS: dict[str, Callable[[], tuple[Call, dict[str, Any]]]] = {
    "batch": lambda: (Call(batch=3), {}),
    "heads": lambda: (Call(heads=8), {}),
    "heads of keys": lambda: (Call(kv_heads=4), {}),
    "head_dim": lambda: (Call(head_dim=128), {}),
    **{
        f"strides of {name}": (lambda name=name: (_strided(name), {}))  # type: ignore[misc]
        for name in ("dout", "q", "k", "v", "out")
    },
    "dtype": lambda: (_of_dtype(np.float16), {}),
    "alignment of dout": lambda: (_shifted(), {}),
    "wanted": lambda: (Call(), {"wanted": ("q", "v")}),
    "scale": lambda: (Call(), {"scale": 0.25}),
    "config": lambda: (Call(), {"config": NAIVE}),
    **{
        f"strides of {name}": (lambda i=i: (Call(), _wide_target(i)))
        for i, name in enumerate(("dq", "dk", "dv"))
    },  # type: ignore[misc]
    "device": lambda: (Call(device=1), {}),
}


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("what", OTHERS)
def test_whatever_decides_a_launch_is_in_the_key(
    device: fake_device.Device, what: str, with_mask: bool
) -> None:
    mask = oc.causal(300) if with_mask else None
    run(Call(), mask)
    before = len(device.kernels)
    for times in (1, 1):
        call, options = OTHERS[what]()
        run(call, mask, **options)
        assert before < len(device.kernels) <= before + 3 * times
        p = device.launches[-1]["params"]
        for name, array in zip(("q", "k", "v", "out"), (call.q, call.k, call.v, call.out), strict=True):
            assert list(p[f"{name}_strides"]) == [stride // 2 for stride in array.strides[:3]]
    run(Call(), mask)
    assert len(device.kernels) <= before + 3


def test_a_list_of_one_mask_is_another_key(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    run(Call(batch=1), [mask])
    run(Call(batch=1), mask)
    assert len(device.kernels) == 6
    assert len(device.uploads) == 2


def test_a_list_that_repeats_one_mask_shares_its_copies(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    for given in (mask, [mask, mask], [mask, mask]):
        run(Call(), given)
    assert (len(device.kernels), len(device.uploads)) == (6, 2)
    assert {int(launched["params"]["mask_batch"]) for launched in device.launches} == {1}


def test_as_many_other_gradients_are_another_plan(device: fake_device.Device) -> None:
    mask = oc.causal(300)
    for wanted in (("q",), ("v",), ("k",), ("q", "v"), ("v", "k")):
        device.launches.clear()
        made = run(Call(), mask, wanted=wanted)
        assert [array is not None for array in made] == [name in wanted for name in "qkv"]
        assert ("dq" in parts(device.launches)) == ("q" in wanted)
        assert ("dkdv" in parts(device.launches)) == bool({"k", "v"} & set(wanted))


def test_another_order_of_sums_is_another_plan(device: fake_device.Device) -> None:
    call, mask = Call(), oc.causal(300)
    for deterministic in (True, False, False, True):
        run(call, mask, deterministic=deterministic)
    assert parts(device.launches[:3]) == parts(device.launches[9:]) == ["prepare", "dkdv", "dq"]
    assert parts(device.launches[3:6]) == parts(device.launches[6:9]) == ["prepare", "fused", "convert"]
    assert len(device.kernels) == 6


def _moved(name: str, by: int) -> Callable[[Call], dict[str, Any]]:
    def change(call: Call) -> dict[str, Any]:
        getattr(call, name).data.ptr += by
        return {}

    return change


def _over(name: str) -> Callable[[Call], dict[str, Any]]:
    def change(call: Call) -> dict[str, Any]:
        targets = call.targets()
        targets[0].data.ptr = getattr(call, name).data.ptr + 16
        return {"out_grads": targets}

    return change


def _over_dlse(call: Call) -> dict[str, Any]:
    targets, dlse = call.targets(), call.dlse()
    targets[2].data.ptr = dlse.data.ptr + 16
    return {"out_grads": targets, "dlse": dlse}


def _over_each_other(call: Call) -> dict[str, Any]:
    targets = call.targets()
    targets[2].data.ptr = targets[0].data.ptr + 16
    return {"out_grads": targets}


def _unaligned_target(call: Call) -> dict[str, Any]:
    targets = call.targets()
    targets[1].data.ptr += 8
    return {"out_grads": targets}


def _target_of_float16(call: Call) -> dict[str, Any]:
    return {"out_grads": (None, ndarray(call.k.shape, np.float16), None)}


def _short_dlse(call: Call) -> dict[str, Any]:
    return {"dlse": ndarray((2, 4, 299), np.float32)}


def _dlse_of_float16(call: Call) -> dict[str, Any]:
    return {"dlse": ndarray(call.lse.shape, np.float16)}


def _shifted_dlse(call: Call) -> dict[str, Any]:
    dlse = call.dlse()
    dlse.data.ptr += 2
    return {"dlse": dlse}


def _shifted_sinks(call: Call) -> dict[str, Any]:
    sinks = _sinks(call)
    sinks.data.ptr += 2
    return {"sink_logits": sinks}


def _sinks(call: Call) -> ndarray:
    return ndarray((call.q.shape[1],), np.float32)


REFUSED: list[tuple[Any, str]] = [
    *((_moved(name, 2), f"{name} must start on a multiple of 16 bytes") for name in ("q", "k", "v", "out")),
    *(
        (_moved(name, 1), f"{name} must have an address and strides that are multiples")
        for name in ("dout", "lse")
    ),
    *(
        (_over(name), rf"out_grads\[0\] must not overlap {name}")
        for name in ("dout", "q", "k", "v", "out", "lse")
    ),
    (_over_dlse, r"out_grads\[2\] must not overlap dlse"),
    (_over_each_other, r"out_grads\[2\] must not overlap out_grads\[0\]"),
    (_unaligned_target, r"out_grads\[1\] must start on a multiple of 16 bytes"),
    (_target_of_float16, r"out_grads\[1\] must have the dtype of k"),
    (_short_dlse, "dlse must have the shape"),
    (_dlse_of_float16, "dlse must be float32 where q is bfloat16"),
    (_shifted_dlse, "dlse must have an address and strides that are multiples"),
    (_shifted_sinks, "sink_logits must start on a multiple of 4 bytes"),
    (lambda _: {"dlse": 1.0}, "dlse must be a CuPy"),
    (lambda _: {"wanted": "qkv"}, "wanted must be a list or tuple of names"),
    (lambda _: {"wanted": {"q": 1, "k": 1, "v": 1}}, "wanted must be a list or tuple of names"),
    (lambda _: {"deterministic": 1}, "deterministic must be"),
    (lambda _: {"softcap": 0.0}, "softcap must be finite"),
    (lambda _: {"softcap": "50"}, "softcap must be a number"),
    (lambda _: {"sink_logits": np.zeros(4)}, "sink_logits must be a CuPy"),
    (lambda _: {"sink_logits": []}, "sink_logits must be a CuPy"),
    (lambda _: {"wanted": ("sink_logits",)}, "wanted must not name sink_logits"),
    (lambda _: {"out_grads": (None, None)}, "out_grads must hold three"),
    (lambda _: {"out_grads": 3}, "out_grads must be None or a tuple"),
    (lambda call: {"out_grads": {1: None, 2: None, 3: None}}, "out_grads must be None or a tuple"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_warm_call_refuses_what_a_first_one_does(device: fake_device.Device, number: int) -> None:
    change, message = REFUSED[number]
    mask, call = oc.causal(300), Call()
    run(call, mask)
    run(call, mask, out_grads=call.targets(), dlse=call.dlse())
    run(call, mask, sink_logits=_sinks(call))
    device.launches.clear()
    options = change(call)
    with pytest.raises((TypeError, ValueError, oc.UnsupportedError), match=message):
        run(call, mask, **options)
    assert device.launches == []


def test_a_warm_call_refuses_gradients_that_are_not_wanted(device: fake_device.Device) -> None:
    mask, call = oc.causal(300), Call()
    dq, _, _ = call.targets()
    run(call, mask, wanted=("k", "v"))
    with pytest.raises(ValueError, match=r"out_grads\[0\] must be None, got"):
        run(call, mask, wanted=("k", "v"), out_grads=(dq, None, None))


def test_ranges_that_meet_without_an_element_in_common(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q and dq as the halves of each row of one buffer: the cheap test cannot tell, the full check can."""
    call = Call()
    with_strides(call.q, 2 * 4 * 300 * 128, 2 * 300 * 128, 2 * 128, 2)
    dq, dk, dv = call.targets()
    with_strides(dq, *call.q.strides)
    dq.data.ptr = call.q.data.ptr + 2 * 64
    for other in (dk, dv, *call.arrays):
        if other is not call.q:
            other.data.ptr += 64 << 20
    mask = oc.causal(300)
    for _ in range(2):
        run(call, mask, out_grads=(dq, dk, dv))
    assert len(device.kernels) == 3
    assert device.launches[-1]["params"]["dq"] == dq.data.ptr
