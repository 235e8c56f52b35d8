"""gpu/backward_planning.py: which arrays are copied before gradients are computed, and who reads the copies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import backward_specs
import fake_backward
import fake_device
import pytest
from fake_backward import Call, map_of, with_strides

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.choose import backward_table
from omnicupy.gpu import backward_plan
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows

NAIVE = backward_table.naive("sm_90", "bfloat16", 64)
SM80 = BackwardSpec(**backward_specs.SM80)
CONFIGS = {"sm90": None, "sm80": SM80, "naive": NAIVE}
COPIES = ("q", "dout", "k", "v")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    check_masks._full.cache_clear()
    return fake_backward.install(monkeypatch)


def _dout(*strides: int | None) -> Callable[[Call], None]:
    return lambda call: with_strides(call.dout, *strides) and None  # type: ignore[func-returns-value,return-value]


def _of(name: str, *strides: int | None) -> Callable[[Call], None]:
    return lambda call: with_strides(getattr(call, name), *strides) and None  # type: ignore[func-returns-value,return-value]


def _unaligned(call: Call) -> None:
    call.dout.data.ptr += 2


def _nothing(call: Call) -> None:
    pass


# Masks are made in each test: what they keep belongs to its device.
def _both() -> Any:
    return oc.ranges([(20, 300, 0, 250)], 300, 300)


def _causal() -> Any:
    return oc.causal(300)


# Mask, change of a call, and what is copied for the Hopper kernels and for the others.
CASES: dict[str, tuple[Callable[[], Any], Callable[[Call], None], str, str]] = {
    "nothing": (_causal, _nothing, "", ""),
    "no mask": (lambda: None, _nothing, "", ""),
    "dead rows": (lambda: oc.causal(300, 200), _nothing, "q dout", "q dout"),
    "dead keys": (lambda: oc.ranges([(0, 300, 0, 250)], 300, 300), _nothing, "k v", "k v"),
    "both": (_both, _nothing, "q dout k v", "q dout k v"),
    "one mask of two": (lambda: [_causal(), _both()], _nothing, "q dout k v", "q dout k v"),
    "all zero strides of dout": (_causal, _dout(0, 0, 0, 0), "dout", "dout"),
    "broadcast heads of dout": (_causal, _dout(None, 0, None, None), "dout", ""),
    "broadcast columns of dout": (_causal, _dout(None, None, None, 0), "dout", "dout"),
    "columns of dout apart": (_causal, _dout(None, None, 2, 600), "dout", "dout"),
    "rows of dout off 16 bytes": (_causal, _dout(None, None, 132, None), "dout", "dout"),
    "reversed columns of dout": (_causal, _dout(None, None, None, -2), "dout", "dout"),
    "reversed rows of dout": (_causal, _dout(None, None, -128, None), "dout", ""),
    "dout unaligned": (_causal, _unaligned, "dout", "dout"),
    "dout transposed": (_causal, _dout(300 * 512, 128, 512, None), "", ""),
    "broadcast keys": (_causal, _of("k", 0, None, None, None), "k", ""),
    "broadcast heads of v": (_causal, _of("v", None, 0, None, None), "v", ""),
    "reversed q": (_causal, _of("q", None, None, -128, None), "q", ""),
    "transposed q, k": (_causal, _of("k", 300 * 256, 128, 256, None), "", ""),
    "zero stride of out": (_causal, _of("out", 0, None, None, None), "", ""),
}


def _sizes() -> dict[str, int]:
    return {"q": 2 * 4 * 300 * 64 * 2, "dout": 2 * 4 * 300 * 64 * 2} | dict.fromkeys(
        "kv", 2 * 2 * 300 * 64 * 2
    )


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("what", CASES)
def test_copies_are_made_exactly_where_they_are_needed(
    device: fake_device.Device, what: str, config: str
) -> None:
    make, change, for_hopper, for_others = CASES[what]
    mask = make()
    wanted = (for_hopper if config == "sm90" else for_others).split()
    call = Call(k_len=mask.shape[1] if hasattr(mask, "shape") else 300)
    change(call)
    oc.attention_backward(*call.arrays, mask, config=CONFIGS[config])
    prepare, *others = device.launches
    p = prepare["params"]
    assert [name for name in COPIES if p[f"{name}_copy"]] == wanted
    _check_places(device, p, wanted)
    _check_prepare(prepare, call, mask, wanted)
    for launched in others:
        for name in COPIES:
            _check_read(launched, name, getattr(call, name), int(p[f"{name}_copy"]))


def _check_places(device: Any, p: Any, wanted: list[str]) -> None:
    """Statistics and copies lie apart in the call's work memory, copies on multiples of 256 bytes."""
    (scratch,) = device.scratch
    rows = 2 * 4 * padded_rows(300)
    sizes = {"lse2": 4 * rows, "delta": 4 * rows}
    sizes |= {f"{name}_copy": 2 * _elements(p, name) for name in wanted}
    places = sorted((int(p[name]), size) for name, size in sizes.items())
    assert places[0][0] == scratch.data.ptr
    for (first, size), (after, _) in pairwise(places):
        assert first + size <= after
    assert sum(places[-1]) <= scratch.data.ptr + scratch.nbytes
    assert not any(int(p[f"{name}_copy"]) % 256 for name in wanted)


def _elements(p: Any, name: str) -> int:
    heads, tokens = (p["kv_heads"], p["k_len"]) if name in "kv" else (p["q_heads"], p["q_len"])
    return int(p["batch"]) * int(heads) * int(tokens) * int(p["head_dim"])


def _check_prepare(launched: dict[str, Any], call: Call, mask: Any, wanted: list[str]) -> None:
    """The launch that copies reads the arrays as they are, and knows what is dead."""
    p = launched["params"]
    for name, array in (("q", call.q), ("k", call.k), ("v", call.v), ("out", call.out), ("dout", call.dout)):
        assert p[name] == array.data.ptr
        assert list(p[f"{name}_strides"]) == [stride // 2 for stride in array.strides[:3]]
    assert p["dout_column"] == call.dout.strides[3] // 2
    masks = [one for one in (mask if isinstance(mask, list) else [mask]) if one is not None]
    dense = [one.to_dense() for one in masks]
    assert (p["dead_rows"] != 0) == any(not one.any(axis=1).all() for one in dense)
    assert (p["dead"] != 0) == any(not one.any(axis=0).all() for one in dense)
    rows = launched["spec"].prepared_rows
    blocks = 2 * 4 * -(-padded_rows(300) // rows)
    if {"k", "v"} & set(wanted):
        blocks += 2 * 2 * -(-int(p["k_len"]) // rows)
    assert launched["grid"] == (blocks, 1, 1)


def _check_read(launched: dict[str, Any], name: str, array: Any, copy: int) -> None:
    """The kernels of gradients read the copy, which is contiguous, or the array."""
    p = launched["params"]
    strides = array.strides
    if copy:
        _, heads, tokens, head_dim = array.shape
        strides = (2 * heads * tokens * head_dim, 2 * tokens * head_dim, 2 * head_dim, 2)
    assert p[name] == (copy or array.data.ptr)
    assert list(p[f"{name}_strides"]) == [stride // 2 for stride in strides[:3]]
    if name == "dout":
        assert p["dout_column"] == 1
    if launched["spec"].params == "bwd_sm90":
        found = map_of(launched, f"{name}_map")
        assert (found["pointer"], found["strides"]) == (copy or array.data.ptr, list(strides))


def test_the_kernels_of_gradients_know_nothing_of_dead_rows(device: fake_device.Device) -> None:
    """They see zeros there."""
    oc.attention_backward(*Call().arrays, _both())
    assert len(device.launches) == 3
    for launched in device.launches[1:]:
        p = launched["params"]
        assert list(p["q_strides"]) == [4 * 300 * 64, 300 * 64, 64]
        assert list(p["out_strides"]) == [4 * 300 * 64, 300 * 64, 64]


def test_an_axis_of_length_one_needs_no_copy(device: fake_device.Device) -> None:
    call = Call(batch=1, heads=1, kv_heads=1)
    for array in (call.q, call.k, call.v):
        with_strides(array, 0, 0, None, None)
    oc.attention_backward(*call.arrays, _causal())
    assert [int(device.launches[0]["params"][f"{name}_copy"]) for name in COPIES] == [0] * 4
    assert device.launches[1]["spec"].kernel == "sm90"


def test_work_memory_grows_with_the_call_and_goes_back(device: Any) -> None:
    """To CuPy's pool, for what the stream is given next; in a capture it stays with the graph."""
    small, large, mask = Call(), Call(heads=32, kv_heads=32), _both()
    for call in (small, large, small):
        oc.attention_backward(*call.arrays, mask)
        assert device.launches[-1]["params"]["lse2"] == device.scratch[-1].data.ptr
    first, second, third = (array.nbytes for array in device.scratch)
    assert first == third
    assert second >= 4 * 2 * 32 * 300 * 64 * 2 > first
    device.streams[0] = stream = fake_device.Stream(16)
    device.driver.begin(stream)
    oc.attention_backward(*small.arrays, mask)
    assert len(device.scratch) == 3
    space = memory_of(0, stream).workspace(Need(1, 0))
    assert device.launches[-1]["params"]["lse2"] == space.partials
    assert first <= space.need.partial_bytes


def test_small_work_memory_stays_with_the_stream(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small call allocates its gradients alone; one that is larger by a byte takes memory and gives it back."""
    call = Call()
    size = 2 * 4 * 2 * 4 * padded_rows(300)  # lse2 and delta
    for most, brought in ((size, 0), (size - 1, 1)):
        monkeypatch.setattr(backward_plan, "OWN_BYTES", most)
        mask = _causal()
        for _ in range(2):
            oc.attention_backward(*call.arrays, mask)
        assert len(device.scratch) == 2 * brought
    own = memory_of(0, device.streams[0]).workspace(Need(1, 0))
    kept = [launched["params"] for launched in device.launches[:6]]
    assert {int(p["lse2"]) for p in kept} == {own.partials}
    assert {int(p["delta"]) for p in kept} == {own.partials + size // 2}
    assert size <= own.need.partial_bytes
    assert int(device.launches[-1]["params"]["lse2"]) == device.scratch[-1].data.ptr


def test_structs_follow_counters_that_moved(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of the default stream do, whose number stays, where another stream took over what it had."""
    monkeypatch.setattr(backward_plan, "OWN_BYTES", 1 << 20)
    call, mask = Call(), _causal()
    memory = memory_of(0, device.streams[0])
    before = memory.counters
    for counters in (before, before + 16, before):
        memory.counters = counters
        first = len(device.launches)
        oc.attention_backward(*call.arrays, mask)
        launched = [one["params"] for one in device.launches[first:]]
        named = {int(p["counter"]) for p in launched if "counter" in p.dtype.names}
        assert counters in named
        assert named - {counters} <= {memory.workspace(Need(1, 0)).arrivals}
