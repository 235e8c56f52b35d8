"""gpu/plan.py for the Hopper kernel: tensor maps, work counters, persistent grids, what falls to sm80."""

from __future__ import annotations

from typing import Any

import fake_device
import ml_dtypes
import numpy as np
import pytest
from fake_device import ndarray

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import table
from omnicupy.errors import UnsupportedError
from omnicupy.gpu import plan
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.workspace import Need
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule import grid

BF16 = np.dtype(ml_dtypes.bfloat16)
SPEC = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=128, bc=128, stages=2, warps=12
)
ROWS = {"q_map": SPEC.br, "k_map": SPEC.bc, "v_map": SPEC.bc}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _inputs(q_len: int = 5000, heads: int = 8, kv_heads: int = 2) -> list[ndarray]:
    shape = (2, kv_heads, q_len, 128)
    return [ndarray((2, heads, q_len, 128), BF16), ndarray(shape, BF16), ndarray(shape, BF16)]


def _map_fields(of: Any) -> dict[str, list[int]]:
    """What fake_device's tensor maps say that they were made of."""
    words = [int(word) for word in of.astype(np.int64)]
    return {"pointer": words[:1], "shape": words[1:5], "strides": words[5:9], "box": words[9:11]}


def test_the_parameters_of_a_hopper_call(device: fake_device.Device) -> None:
    q, k, v = _inputs()
    out = oc.attention(q, k, v, oc.causal(5000))
    (launched,), (spec,) = device.launches, device.kernels
    assert (spec.kernel, spec.arch) == ("sm90", "sm_90a")
    p = launched["params"]
    for name, array, rows in (("q_map", q, spec.br), ("k_map", k, spec.bc), ("v_map", v, spec.bc)):
        assert _map_fields(p[name]) == {
            "pointer": [array.data.ptr],
            "shape": list(array.shape),
            "strides": list(array.strides),
            "box": [rows, 1],
        }
    assert [int(p[name]) for name in ("q", "k", "v", "out", "lse")] == [
        *(x.data.ptr for x in (q, k, v, out)),
        0,
    ]
    assert p["counter"] == memory_of(0, device.streams[0]).counters != 0
    assert p["work_items"] == 2 * 8 * -(-5000 // spec.br)
    assert list(p["out_strides"]) == [stride // 2 for stride in out.strides[:3]]
    assert launched["block"] == (spec.threads, 1, 1)
    assert launched["smem"] == spec.smem_bytes


@pytest.mark.parametrize(("q_len", "items"), [(5000, 640), (128 * 132, 2112), (1, 16)])
def test_a_persistent_grid_is_the_lesser_of_items_and_multiprocessors(
    device: fake_device.Device, q_len: int, items: int
) -> None:
    q, k, v = _inputs(q_len)
    oc.attention(q, k, v, oc.causal(q_len), config=SPEC)
    p = device.launches[0]["params"]
    assert p["work_items"] == items
    assert device.launches[0]["grid"] == (min(items, 132), 1, 1)
    assert [int(p[name]) for name in ("partials", "arrivals", "n_slots", "n_split_rows")] == [0, 0, 0, 0]


def test_few_rows_are_split_and_get_a_workspace(device: fake_device.Device) -> None:
    q, k, v = (ndarray((1, 4, n, 128), BF16) for n in (200, 9000, 9000))
    oc.attention(q, k, v, config=SPEC)
    p = device.launches[0]["params"]
    assert p["n_split_rows"] == 2
    assert p["n_slots"] > 2
    assert p["work_items"] == 4 * p["n_slots"]
    space = memory_of(0, device.streams[0]).workspace(Need(1, 1))
    assert (p["partials"], p["arrivals"]) == (space.partials, space.arrivals)
    assert device.launches[0]["grid"][0] > 8


def test_what_a_split_launch_needs(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    needs: list[Any] = []
    monkeypatch.setattr(plan.stream_memory, "prepare", lambda of, need: needs.append(need))
    q, k, v = (ndarray((1, 4, n, 128), BF16) for n in (200, 9000, 9000))
    oc.attention(q, k, v, config=SPEC)
    p = device.launches[0]["params"]
    rows, lanes = 128, 4  # O and, for each lane that shares a row, a quarter of a vector of row_max and sums
    assert needs[0].partial_bytes == 4 * int(p["n_slots"]) * rows * (128 * 4 + lanes * 8)
    assert needs[0].arrivals == 4 * int(p["n_split_rows"]) * rows // 16
    assert needs[0].partial_bytes <= grid.MOST_PARTIAL_BYTES


@pytest.mark.parametrize("kernel", ["naive", "sm80"])
def test_only_hopper_splits_rows(device: fake_device.Device, kernel: str) -> None:
    config = AttnSpec(arch="sm_90", kernel=kernel, dtype="bfloat16", head_dim=128, br=64, bc=64)
    q, k, v = (ndarray((1, 4, n, 128), BF16) for n in (200, 9000, 9000))
    oc.attention(q, k, v, config=config)
    (uploaded,) = plan_sizes(device)
    assert uploaded == 4


def plan_sizes(device: fake_device.Device) -> list[int]:
    """Parts of each mask's copy, by where the arrays behind them start."""
    p = device.launches[0]["params"]
    return [(int(p["bit_tiles"]) - int(p["parts"])) // (2 * 16)]  # parts and splits


def test_maps_are_made_for_new_addresses_and_reused(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counting(pointer: int, *rest: Any) -> bytes:
        made.append(pointer)
        return fake_device._tensor_map(pointer, *rest)

    monkeypatch.setattr(plan, "tensor_map", counting)
    mask, first, second = oc.causal(5000), _inputs(), _inputs()
    for arrays in (first, first, second, first, [first[0], *second[1:]]):
        oc.attention(*arrays, mask)
        p = device.launches[-1]["params"]
        assert [int(p[name][0]) for name in ROWS] == [x.data.ptr for x in arrays]
    assert len(device.kernels) == 1
    assert made == [x.data.ptr for x in (*first, *second, first[0], *second[1:])]


def test_a_plan_keeps_a_bounded_number_of_maps(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_MAPS", 3)
    mask = oc.causal(5000)
    for _ in range(8):
        arrays = _inputs()
        oc.attention(*arrays, mask)
        assert device.launches[-1]["params"]["q_map"][0] == arrays[0].data.ptr
    (kept,) = mask._device.values()
    (only,) = kept.plans.values()
    assert 1 <= len(only._maps) <= 3


def test_the_counters_are_those_of_the_stream(device: fake_device.Device) -> None:
    mask, arrays = oc.causal(5000), _inputs()
    oc.attention(*arrays, mask)
    device.streams[0] = fake_device.Stream(48)
    for _ in range(2):
        oc.attention(*arrays, mask)
    counters = [int(launched["params"]["counter"]) for launched in device.launches]
    assert counters[0] != counters[1] == counters[2]
    assert counters[1] == memory_of(0, fake_device.Stream(48)).counters


def _zero_stride(array: ndarray, axis: int) -> ndarray:
    strides = list(array.strides)
    strides[axis] = 0
    array.strides = tuple(strides)
    return array


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("which", [1, 2])
def test_arrays_that_no_map_holds_fall_to_sm80(device: fake_device.Device, which: int, axis: int) -> None:
    arrays = _inputs()
    strides = _zero_stride(arrays[which], axis).strides
    oc.attention(*arrays)
    assert (device.kernels[0].kernel, device.kernels[0].arch) == ("sm80", "sm_90")
    name = "qkv"[which]
    assert list(device.launches[0]["params"][f"{name}_strides"]) == [stride // 2 for stride in strides[:3]]


def test_negative_strides_reach_the_sm80_kernel(device: fake_device.Device) -> None:
    q, k, v = _inputs()
    k.strides = (0, -k.strides[1], -k.strides[2], 2)
    oc.attention(q, k, v)
    assert device.kernels[0].kernel == "sm80"
    assert list(device.launches[0]["params"]["k_strides"]) == [0, k.strides[1] // 2, -128]


def test_a_stride_that_is_never_stepped_along_does_not_count(device: fake_device.Device) -> None:
    arrays = _inputs(kv_heads=1)
    for array in arrays[1:]:
        _zero_stride(array, 1)
    oc.attention(*arrays)
    assert device.kernels[0].kernel == "sm90"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_explicit_hopper_config_never_falls_back(device: fake_device.Device, which: int) -> None:
    arrays = _inputs()
    strides = (-arrays[which].strides[0], *arrays[which].strides[1:])
    arrays[which].strides = strides
    with pytest.raises(UnsupportedError) as error:
        oc.attention(*arrays, config=SPEC)
    assert str(error.value) == (
        f"{'qkv'[which]}: kernel 'sm90' needs positive strides, got {strides} (bytes) for shape "
        f"{arrays[which].shape}; copy the array or pass config=AttnSpec(kernel='sm80', ...)"
    )
    assert device.launches == []


def test_an_explicit_sm80_config_overrides_the_table(device: fake_device.Device) -> None:
    config = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=128, br=64, bc=64)
    oc.attention(*_inputs(), config=config)
    assert device.kernels == [config]


def test_an_explicit_hopper_config_needs_hopper(device: fake_device.Device) -> None:
    arrays = [ndarray(x.shape, BF16, 1) for x in _inputs()]
    with pytest.raises(ValueError) as error:
        oc.attention(*arrays, config=SPEC)
    assert str(error.value) == (
        "config: code for sm_90a does not run on this device (compute capability 8.6); use arch='sm_86'"
    )


def test_every_kernel_kind_has_a_plan() -> None:
    assert plan.PLANS["sm90"] is plan.Sm90Plan
    assert {row.kernel for row in table.TABLE} <= set(plan.PLANS)


def test_few_rows_of_a_group_share_tiles(device: fake_device.Device) -> None:
    """Two heads of 64 rows to a tile: a box holds both, and they are one work item."""
    q, k, v = _inputs(64)
    k_len = 5000
    k, v = (ndarray((2, 2, k_len, 128), BF16) for _ in range(2))
    oc.attention(q, k, v, oc.full(64, k_len))
    (launched,), (spec,) = device.launches, device.kernels
    assert (spec.br, spec.warps, spec.heads) == (64, 12, 2)
    p = launched["params"]
    assert _map_fields(p["q_map"])["box"] == [64, 2]
    assert _map_fields(p["k_map"])["box"] == [spec.bc, 1]
    problem = Problem(2, 8, 2, 64, k_len, 128, "bfloat16")
    found = grid.Grid.of(spec, problem, 1, sm_count=132, l2_bytes=50 << 20)
    assert found.workers.heads == 2 * 8 // 2
    assert int(p["work_items"]) % found.workers.heads == 0
    assert grid.part_bytes(spec, problem) == grid.part_bytes(SPEC, problem)


def test_heads_that_fill_no_tiles_are_refused(device: fake_device.Device) -> None:
    spec = AttnSpec(
        arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=64, bc=128, stages=2, warps=12
    )
    q, k, v = _inputs(64, heads=6)
    with pytest.raises(ValueError) as error:
        oc.attention(q, k, v, config=spec)
    assert str(error.value) == (
        "config: br=64 with warps=12 puts 2 query heads of one group into a tile, but a group has 3; take warps=8"
    )


def test_one_row_of_a_group_is_packed(device: fake_device.Device) -> None:
    """A box holds all heads of a group; tokens of the tile beyond q_len are outside of the tensor."""
    q, k, v = (ndarray((3, heads, n, 128), BF16) for heads, n in ((14, 1), (2, 9000), (2, 9000)))
    oc.attention(q, k, v)
    (launched,), (spec,) = device.launches, device.kernels
    assert spec.pack
    p = launched["params"]
    words = [int(word) for word in p["q_map"].astype(np.int64)]
    assert (words[:5], words[5:9], words[9:12]) == ([q.data.ptr, *q.shape], list(q.strides), [7, 9, 7])
    assert _map_fields(p["k_map"])["box"] == [spec.bc, 1]
    assert [int(p[name]) for name in ("pack_heads", "pack_tokens", "packs", "part_rows")] == [7, 9, 1, 8]
    assert int(p["work_items"]) % (3 * 2) == 0
    assert int(p["n_slots"]) > 1


def test_a_split_is_part_of_the_plan(device: fake_device.Device) -> None:
    mask = oc.full(1, 9000)
    q, k, v = (ndarray((3, heads, n, 128), BF16) for heads, n in ((14, 1), (2, 9000), (2, 9000)))
    slots = []
    for split in (384, 1536, None, 384):
        oc.attention(q, k, v, mask, split=split)
        slots.append(int(device.launches[-1]["params"]["n_slots"]))
    assert slots[0] == slots[3] == 24  # of 9000 keys
    assert slots[1] == 6
    assert slots[2] not in (24, 6)
    with pytest.raises(ValueError, match="split must be a multiple of 128"):
        oc.attention(q, k, v, mask, split=32)
