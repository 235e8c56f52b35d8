"""gpu/backward.py: which plan a call finds, what every launch is given, copies, order; on a fake device."""

from __future__ import annotations

import math
from typing import Any

import backward_specs
import fake_backward
import fake_device
import numpy as np
import pytest
from fake_backward import Call, map_of, parts, run, with_strides
from fake_device import BF16

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.choose import backward_table
from omnicupy.errors import UnsupportedError
from omnicupy.gpu import backward_plan
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_kernel import PARTS
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows

SM80 = BackwardSpec(**backward_specs.SM80)
NAIVE = backward_table.naive("sm_90", "bfloat16", 64)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    check_masks._full.cache_clear()
    return fake_backward.install(monkeypatch)


def _work(device: Any) -> int:
    """Where the work memory of the last call begins."""
    return int(device.scratch[-1].data.ptr)


def test_three_launches_in_order(device: fake_device.Device) -> None:
    call, mask = Call(), oc.causal(300)
    dq, dk, dv = run(call, mask, scale=0.5)
    prepare, dkdv, of_q = device.launches
    assert parts(device.launches) == ["prepare", "dkdv", "dq"]
    for made, of in ((dq, call.q), (dk, call.k), (dv, call.v)):
        assert (made.shape, made.dtype, made.flags.c_contiguous) == (of.shape, BF16, True)
    spec = backward_table.pick("sm_90", "bfloat16", 64)
    assert [launched["spec"] for launched in device.launches] == [spec.part(part) for part in PARTS]
    for launched in device.launches:
        kernel = launched["spec"]
        assert (launched["block"], launched["smem"]) == ((kernel.threads, 1, 1), kernel.smem_bytes)
        assert launched["stream"] is device.streams[0]
        p = launched["params"]
        for name, value in (
            *(("q_len", 300), ("k_len", 300), ("head_dim", 64), ("batch", 2), ("q_heads", 4), ("group", 2)),
            *(("kv_heads", 2), ("mask_batch", 1), ("diagonal", 0), ("n_spans", 1), ("k_padded", 512)),
            *(("scale", 0.5), ("scale_log2", np.float32(0.5 * math.log2(math.e)))),
            *(("q_padded", padded_rows(300)), ("dout_column", 1), ("dead", 0), ("dead_rows", 0)),
        ):
            if name == "dead" and kernel.part == "dq":
                continue  # the forward's lists, which have it always
            assert p[name] == value, (kernel.part, name)
    mask_blocks = {launched["params"]["row_offsets"] for launched in device.launches}
    assert prepare["params"]["row_offsets"] == dkdv["params"]["row_offsets"]
    assert len(mask_blocks) == len(device.uploads) == 2
    assert dkdv["params"]["q_blocks"] == -(-300 // spec.dkdv.bc)
    assert of_q["params"]["q_blocks"] == -(-300 // spec.dq.br)


@pytest.mark.parametrize("config", [None, SM80, NAIVE], ids=["sm90", "sm80", "naive"])
def test_every_launch_gets_the_addresses(device: fake_device.Device, config: BackwardSpec | None) -> None:
    call = Call()
    dlse = call.dlse()
    made = run(call, oc.causal(300), dlse=dlse, config=config)
    start, rows = _work(device), 2 * 4 * padded_rows(300)
    for launched in device.launches:
        p = launched["params"]
        for name, array in zip(("dout", "q", "k", "v", "out", "lse"), call.arrays, strict=True):
            assert p[name] == array.data.ptr, name
        assert p["dlse"] == dlse.data.ptr
        assert (p["lse2"], p["delta"]) == (start, start + 4 * rows)
        assert [p[name] for name in ("dq", "dk", "dv")] == [array.data.ptr for array in made]
        assert [p[f"{name}_copy"] for name in ("q", "dout", "k", "v")] == [0] * 4
        for name, array in (("q", call.q), ("k", call.k), ("v", call.v), ("out", call.out)):
            assert list(p[f"{name}_strides"]) == [stride // 2 for stride in array.strides[:3]]
        for name, array in zip(("dq", "dk", "dv", "dout"), (*made, call.dout), strict=True):
            assert list(p[f"{name}_strides"]) == [stride // 2 for stride in array.strides[:3]]


def test_tensor_maps_are_of_tiles(device: fake_device.Device) -> None:
    call = Call()
    run(call, oc.causal(300))
    arrays = {"q_map": call.q, "dout_map": call.dout, "k_map": call.k, "v_map": call.v}
    _, *mapped = device.launches
    for launched in mapped:
        kernel = launched["spec"]
        for name, array in arrays.items():
            assert map_of(launched, name) == {
                "pointer": array.data.ptr,
                "shape": list(array.shape),
                "strides": list(array.strides),
                "box": [kernel.br if name in ("q_map", "dout_map") else kernel.bc, 1],
            }
        items = int(launched["params"]["work_items"])
        assert launched["grid"] == (min(132, items), 1, 1)
        heads = 2 if kernel.part == "dkdv" else 4
        owned = kernel.bc if kernel.part == "dkdv" else kernel.br
        assert items == 2 * heads * -(-300 // owned)


def test_kernels_that_run_side_by_side_have_counters_of_their_own(device: fake_device.Device) -> None:
    """That of dQ may come up while that of dK and dV ends."""
    run(Call(), oc.causal(300))
    memory = memory_of(0, device.streams[0])
    space = memory.workspace(Need(1, 0))
    _, dkdv, of_q = (launched["params"] for launched in device.launches)
    assert (dkdv["counter"], of_q["counter"]) == (memory.counters, space.arrivals)
    assert dkdv["arrivals"] == of_q["arrivals"] == space.arrivals + 16


@pytest.mark.parametrize(
    ("options", "early"),
    [
        ({}, ["dkdv", "dq"]),
        ({"wanted": ("k",)}, ["dkdv"]),
        ({"wanted": ("q",)}, []),  # nothing ahead has waited for the launch that prepares
        ({"deterministic": False}, ["fused"]),
        ({"config": SM80}, []),
        ({"config": NAIVE}, []),
    ],
    ids=str,
)
def test_what_may_come_up_while_the_kernel_ahead_runs(
    device: fake_device.Device, options: dict[str, Any], early: list[str]
) -> None:
    """Those that wait by themselves: the first launch of a call never does."""
    run(Call(), oc.causal(300), **options)
    assert parts([launched for launched in device.launches if launched.get("early")]) == early


def test_maps_are_kept_by_addresses(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counting(pointer: int, *rest: Any) -> bytes:
        made.append(pointer)
        return fake_device._tensor_map(pointer, *rest)

    monkeypatch.setattr(backward_plan, "tensor_map", counting)
    monkeypatch.setattr(backward_plan, "MAX_MAPS", 3)
    mask, calls = oc.causal(300), [Call() for _ in range(5)]
    for call in (calls[0], calls[0], *calls, *calls):
        run(call, mask)
        for launched in device.launches[-2:]:
            assert map_of(launched, "dout_map")["pointer"] == call.dout.data.ptr
    assert made[:4] == [x.data.ptr for x in (calls[0].q, calls[0].dout, calls[0].k, calls[0].v)]
    assert len(made) == 2 * 4 * 10  # of two launches; the first call's are found twice
    (kept,) = mask._device.values()
    (plan,) = kept.plans.values()
    assert all(len(launch.maps) <= 3 for launch in plan._launches)


@pytest.mark.parametrize(
    ("wanted", "launched"),
    [
        (("q",), ["prepare", "dq"]),
        (("k",), ["prepare", "dkdv"]),
        (("v",), ["prepare", "dkdv"]),
        (("v", "k"), ["prepare", "dkdv"]),
        (["q", "v"], ["prepare", "dkdv", "dq"]),
    ],
)
def test_what_is_not_wanted_is_not_computed(
    device: fake_device.Device, wanted: Any, launched: list[str]
) -> None:
    made = run(Call(), oc.causal(300), wanted=wanted)
    assert parts(device.launches) == launched
    for name, array in zip("qkv", made, strict=True):
        assert (array is not None) == (name in wanted)
        for launch in device.launches:
            assert launch["params"][f"d{name}"] == (0 if array is None else array.data.ptr)


def test_no_dlse_is_a_null_pointer_in_the_same_plan(device: fake_device.Device) -> None:
    call, mask = Call(), oc.causal(300)
    run(call, mask)
    run(call, mask, dlse=call.dlse())
    run(call, mask)
    assert len(device.kernels) == 3
    found = [int(launched["params"]["dlse"]) for launched in device.launches]
    assert (found[:3], found[6:]) == ([0] * 3, [0] * 3)
    assert found[3] == found[4] == found[5] != 0


def test_lse_and_dlse_in_any_layout_are_made_compact(device: fake_device.Device) -> None:
    call = Call()
    with_strides(call.lse, 4, 8, 32)
    dlse = call.dlse(strides=(0, 0, 0))
    run(call, oc.causal(300), dlse=dlse)
    (_, lse), (_, of_dlse) = device.copied  # type: ignore[attr-defined]
    assert [array for array, _ in device.copied] == [call.lse, dlse]  # type: ignore[attr-defined]
    for launched in device.launches:
        assert launched["params"]["lse"] == lse.data.ptr
        assert launched["params"]["dlse"] == of_dlse.data.ptr


@pytest.mark.parametrize("name", ["lse", "dlse"])
def test_a_capture_refuses_to_make_them_compact(device: fake_device.Device, name: str) -> None:
    """The copy's memory would be somebody else's when the graph runs."""
    device.streams[0] = fake_device.Stream(16)
    call, mask = Call(), oc.causal(300)
    oc.prepare(call.q, call.k, call.v, mask, gradients=True)
    options = {"dlse": call.dlse()} if name == "dlse" else {}
    with_strides(options.get("dlse", call.lse), 0, 0, 0)
    device.driver.begin(device.streams[0])
    with pytest.raises(UnsupportedError) as raised:
        run(call, mask, **options)
    assert str(raised.value) == (
        f"{name} must be contiguous while the stream is captured, got strides (0, 0, 0) (bytes) for shape (2, 4, 300): "
        "a copy would be freed before the graph runs; copy it with cupy.ascontiguousarray"
    )
    assert device.launches == []


def test_given_gradients_are_written_in_their_layout(device: fake_device.Device) -> None:
    call, mask = Call(), oc.causal(300)
    dq, dk, _ = call.targets()
    with_strides(dk, 2 * 300 * 128, 128, 2 * 128, 2)  # (batch, tokens, heads, head_dim), seen transposed
    got = run(call, mask, out_grads=(dq, dk, None))
    assert got[0] is dq
    assert got[1] is dk
    for launched in device.launches:
        p = launched["params"]
        assert [p[name] for name in ("dq", "dk", "dv")] == [array.data.ptr for array in got]
        assert list(p["dk_strides"]) == [300 * 128, 64, 128]


def test_config_for_another_architecture_is_refused(device: fake_device.Device) -> None:
    config = backward_table.naive("sm_120", "bfloat16", 64)
    with pytest.raises(ValueError) as raised:
        run(Call(), config=config)
    assert str(raised.value) == (
        "config: code for sm_120 does not run on this device (compute capability 9.0); use arch='sm_90'"
    )
