"""A warm call does what a cold one does: whatever changes between two calls, the second is launched, or refused, as if
no call had been made before it. On a fake device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import fake_backward
import fake_device
import ml_dtypes
import numpy as np
import pytest
from fake_device import BF16, Memory, ndarray

import omnicupy as oc
from omnicupy.gpu import append as gpu_append
from omnicupy.gpu import attention as gpu_attention
from omnicupy.gpu import backward, backward_plan
from omnicupy.gpu import cached as gpu_cached

BATCH, CAPACITY, PAGES, SIZE, MOST, TOTAL = 3, 320, 50, 16, 20, 40
INT32, INT64, FLOAT = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float32)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
# What else an argument may be, of the same shape.
DTYPES = {BF16: np.dtype(np.float16), INT32: INT64, INT64: INT32, FLOAT: INT32, E4M3: np.dtype(np.uint8)}


@dataclass
class Call:
    """A call that is served. arrays: by the names of arguments.  options: numbers, each with what to put in its place;
    a number of the same value among them may be refused all the same.  copied: arrays that a call may copy.
    """

    run: Callable[..., Any]
    arrays: dict[str, ndarray]
    options: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    copied: frozenset[str] = frozenset()

    def outcome(self, device: fake_device.Device, **changes: Any) -> Any:
        """The launches, or the error. New outputs are nobody's to compare."""
        given = {name: choices[0] for name, choices in self.options.items()} | self.arrays | changes
        device.launches.clear()
        try:
            self.run(**given)
        except (TypeError, ValueError, oc.UnsupportedError) as error:
            return type(error), str(error)
        new = ({"out", "lse"} - set(given)) | self.copied
        return [
            (one["spec"], one["grid"], one["device"], _fields(one["params"], new)) for one in device.launches
        ]


def _fields(params: Any, without: set[str]) -> dict[str, Any]:
    return {name: params[name].tolist() for name in params.dtype.names if name not in without}


def _of_tokens(heads: int, width: int, dtype: Any = BF16) -> ndarray:
    return ndarray((BATCH, heads, CAPACITY, width), dtype)


def _cached(**more: Any) -> Call:
    """On a CachedKV. more: other arrays."""

    def run(
        q: Any, k: Any, v: Any, lengths: Any, k_scale: Any = None, v_scale: Any = None, **given: Any
    ) -> Any:
        kv = oc.CachedKV(k, v, lengths, k_scale=k_scale, v_scale=v_scale)
        return oc.attention(q, kv, mask=oc.cached(window=100), **given)

    q, out = (ndarray((BATCH, 8, 1, 64), BF16) for _ in range(2))
    arrays = {"q": q, "k": _of_tokens(2, 64), "v": _of_tokens(2, 64), "lengths": ndarray((BATCH,), INT32)}
    options = {"scale": (1.0, True, 1, np.True_, 0.5), "softcap": (None, 1.0), "split": (384, 384.0, 128)}
    return Call(run, {**arrays, "out": out, "sink_logits": ndarray((8,), FLOAT), **more}, options)


def _cached_e4m3() -> Call:
    pools = {name: _of_tokens(2, 64, E4M3) for name in "kv"}
    return _cached(**pools, k_scale=ndarray((BATCH, CAPACITY, 2), FLOAT), v_scale=ndarray((2,), FLOAT))


def _paged(**more: Any) -> Call:
    """On a PagedKV, without `out`."""

    def run(q: Any, lengths: Any, k_scale: Any = None, v_scale: Any = None, **given: Any) -> Any:
        pools = (given.pop(name) for name in ("k_pages", "v_pages", "page_table"))
        kv = oc.PagedKV(*pools, lengths, k_scale=k_scale, v_scale=v_scale)
        return oc.attention(q, kv, mask=oc.cached(), **given)

    pools = {name: ndarray((PAGES, SIZE, 2, 64), BF16) for name in ("k_pages", "v_pages")}
    numbers = {"page_table": ndarray((BATCH, MOST), INT32), "lengths": ndarray((BATCH,), INT32)}
    return Call(run, {"q": ndarray((BATCH, 8, 1, 64), BF16), **pools, **numbers, **more})


def _ragged() -> Call:
    """Rows of their own, into `out`."""
    call = _paged(**{name: ndarray((TOTAL, 8, 64), BF16) for name in ("q", "out")})
    call.arrays["rows"] = ndarray((BATCH + 1,), INT32)
    call.options = {"max_rows": (1, True, 1.0, Fraction(1), 2)}
    return call


def _ragged_e4m3() -> Call:
    call, scales = _ragged(), {"k_scale": ndarray((PAGES, SIZE, 2), FLOAT), "v_scale": ndarray((), FLOAT)}
    pools = {name: ndarray((PAGES, SIZE, 2, 64), E4M3) for name in ("k_pages", "v_pages")}
    call.arrays |= scales | pools
    return call


def _numbers_e4m3() -> Call:
    """Scales that are numbers."""
    call = _paged(**{name: ndarray((PAGES, SIZE, 2, 64), E4M3) for name in ("k_pages", "v_pages")})
    call.options = {"k_scale": (1.0, True, 1, 0.5, None), "v_scale": (None, 1.0)}
    return call


def _prefill() -> Call:
    q, k, v = fake_device.inputs(BATCH, 8, 100, CAPACITY)
    arrays = {"q": q, "k": k, "v": v, "out": ndarray(q.shape, BF16), "sink_logits": ndarray((8,), FLOAT)}
    options = {"scale": (1.0, True, 1, np.True_, 0.5), "softcap": (1.0, True, None), "split": (384, 384.0)}
    return Call(oc.attention, arrays, options)


def _append(dtype: Any = BF16, **scales: Any) -> Call:
    def run(k: Any, v: Any, lengths: Any, k_new: Any, v_new: Any, **scales: Any) -> None:
        oc.append(oc.CachedKV(k, v, lengths, **scales), k_new, v_new)

    arrays = {
        "k": _of_tokens(2, 64, dtype),
        "v": _of_tokens(2, 64, dtype),
        "lengths": ndarray((BATCH,), INT32),
    }
    new = {name: ndarray((BATCH, 2, 5, 64), BF16) for name in ("k_new", "v_new")}
    return Call(run, arrays | new | scales)


def _append_e4m3() -> Call:
    return _append(E4M3, k_scale=ndarray((BATCH, CAPACITY, 2), FLOAT), v_scale=ndarray((2,), FLOAT))


def _append_e4m3_tokens() -> Call:
    return _append(E4M3, **{name: ndarray((BATCH, CAPACITY, 2), FLOAT) for name in ("k_scale", "v_scale")})


def _append_slots(of_slots: Any = INT64) -> Call:
    def run(lengths: Any, k_new: Any, v_new: Any, slots: Any, **pools: Any) -> None:
        oc.append(oc.PagedKV(lengths=lengths, **pools), k_new, v_new, slots)

    arrays = {name: ndarray((PAGES, SIZE, 2, 64), BF16) for name in ("k_pages", "v_pages")}
    arrays |= {name: ndarray((5, 2, 64), BF16) for name in ("k_new", "v_new")}
    numbers = {"page_table": ndarray((BATCH, MOST), INT32), "lengths": ndarray((BATCH,), INT32)}
    return Call(run, arrays | numbers | {"slots": ndarray((5,), of_slots)})


def _append_int32_slots() -> Call:
    return _append_slots(INT32)


def _backward() -> Call:
    def run(dq: Any, dk: Any, dv: Any, **given: Any) -> None:
        oc.attention_backward(**given, out_grads=(dq, dk, dv))

    call = fake_backward.Call(batch=BATCH, heads=8, q_len=100, k_len=CAPACITY)
    arrays = dict(zip(("dout", "q", "k", "v", "out", "lse"), call.arrays, strict=True))
    arrays |= dict(zip(("dq", "dk", "dv"), call.targets(), strict=True))
    options = {
        "scale": (1.0, True, 1, np.True_, 0.5),
        "softcap": (1.0, True, None),
        "deterministic": (True, 1),
    }
    arrays |= {"dlse": call.dlse(), "sink_logits": ndarray((8,), FLOAT)}
    return Call(run, arrays, options, frozenset({"lse", "dlse"}))


CALLS = [
    *(_cached, _cached_e4m3, _paged, _ragged, _ragged_e4m3, _numbers_e4m3, _prefill, _backward),
    *(_append, _append_e4m3, _append_e4m3_tokens, _append_slots, _append_int32_slots),
]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    fake = fake_backward.install(monkeypatch)
    monkeypatch.setattr(backward_plan, "OWN_BYTES", 1 << 30)  # the same work memory for all calls
    return fake


def _at(like: ndarray, address: int, device: int = 0, **changes: Any) -> ndarray:
    """An array like another one, elsewhere."""
    shape, strides = changes.get("shape", like.shape), changes.get("strides", like.strides)
    made = ndarray(shape, changes.get("dtype", like.dtype), device, strides)
    made.data = Memory(address, device)
    return made


def _others(name: str, arrays: dict[str, ndarray]) -> Iterator[tuple[str, ndarray]]:
    """What may stand in the place of an array: elsewhere, of another layout, and in the memory of the others."""
    array = arrays[name]
    at, item = array.data.ptr, array.dtype.itemsize
    yield "elsewhere", _at(array, at + (1 << 40))
    for step in (1, 2, 4, 8, 16):
        yield f"{step} bytes on", _at(array, at + step)
    for axis, length in enumerate(array.shape):
        longer = (*array.shape[:axis], length + 1, *array.shape[axis + 1 :])
        yield f"axis {axis} longer", _at(array, at, shape=longer)
        for step in (-array.strides[axis], 0, item, 4, 2 * array.strides[axis], array.strides[axis] + 16):
            strides = (*array.strides[:axis], step, *array.strides[axis + 1 :])
            yield f"axis {axis} in steps of {step}", _at(array, at, strides=strides)
    yield "another dtype", _at(array, at, dtype=DTYPES[array.dtype])
    yield "another device", _at(array, at, 1)
    for other, there in arrays.items():
        if other != name:
            for place in (
                there.data.ptr,
                there.data.ptr + there.nbytes - 16,
                there.data.ptr - array.nbytes + 16,
            ):
                yield f"in {other} at {place - there.data.ptr}", _at(array, place)


def _forget() -> None:
    for plans in (gpu_cached._plans, gpu_append._plans, gpu_attention._unmasked, backward._unmasked):
        plans.clear()


@pytest.mark.in_turn(3)
@pytest.mark.parametrize("made", CALLS)
def test_a_warm_call_does_what_a_cold_one_does(device: fake_device.Device, made: Callable[[], Call]) -> None:
    call, seen = made(), set()
    assert isinstance(call.outcome(device), list)
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"{name} {how}", {name: other}) for name in call.arrays for how, other in _others(name, call.arrays)
    ]
    changes += [
        (f"{name} is {value!r}", {name: value}) for name, values in call.options.items() for value in values
    ]
    for what, change in changes:
        warm = [call.outcome(device, **change) for _ in range(2)]
        back = call.outcome(device)
        _forget()
        cold = call.outcome(device, **change)
        assert warm == [cold, cold], what
        _forget()
        assert call.outcome(device) == back, f"after {what}"
        seen.add(isinstance(cold, list))
    assert seen == {True, False}, "some are served and some are refused"
