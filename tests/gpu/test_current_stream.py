"""streams.using, and that no call leaves another stream current than its caller had; on a fake device, whose streams
become current and are forgotten as CuPy's are.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest
from fake_device import BF16, Stream, ndarray

import omnicupy as oc
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.streams import external_stream, using
from omnicupy.gpu.workspace import Need

INT32 = np.dtype(np.int32)
OMNICUPY = Path(oc.__file__).parent


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_backward.install(monkeypatch)


def _cache(at: int) -> tuple[ndarray, Any]:
    k, v = (ndarray((3, 2, 1000, 64), BF16, at) for _ in "kv")
    return ndarray((3, 8, 1, 64), BF16, at), oc.CachedKV(k, v, ndarray((3,), INT32, at))


def _prefill(at: int) -> None:
    """Few rows against many keys, so that rows are split, and their parts need a workspace."""
    q, k, v = fake_device.inputs(1, 8, 128, 65_536, device=at)
    oc.attention(q, k, v)


def _backward(at: int) -> None:
    call = fake_backward.Call(device=at)
    oc.attention_backward(*call.arrays)


def _decode(at: int) -> None:
    q, kv = _cache(at)
    oc.attention(q, kv, mask=oc.cached())


def _plan(at: int) -> None:
    q, kv = _cache(at)
    oc.attention(q, kv, mask=oc.plan(q, kv, oc.cached()))


def _append(at: int) -> None:
    _, kv = _cache(at)
    oc.append(kv, *(ndarray((3, 2, 1, 64), BF16, at) for _ in "kv"))


def _prepare(at: int) -> None:
    oc.prepare(*fake_device.inputs(device=at), gradients=True)
    q, kv = _cache(at)
    oc.prepare(q, kv, mask=oc.cached(), max_length=1000)


CALLS = {
    "prefill": _prefill,
    "backward": _backward,
    "decode": _decode,
    "plan": _plan,
    "append": _append,
    "prepare": _prepare,
}


@pytest.fixture(params=CALLS.values(), ids=CALLS)
def call(request: Any) -> Callable[[int], None]:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("handle", [0, 1, 2, 48])
def test_a_stream_that_is_in_use_stays_current(
    device: fake_device.Device, call: Callable[[int], None], handle: int, at: int
) -> None:
    """Also the legacy stream, the per-thread one, and one of a device that is not current."""
    device.current = at
    stream, other = Stream(handle, -1 if handle < 3 else at).use(), device.streams[1 - at]
    device.current = 0
    for _ in range(2):
        call(at)
    assert device.streams == {at: stream, 1 - at: other}
    assert device.current == 0
    assert {launched["stream"] for launched in device.launches} <= {stream}


def test_so_does_one_that_took_the_place_of_a_with_statement_s(
    device: fake_device.Device, call: Callable[[int], None]
) -> None:
    outer, inner = Stream(48), Stream(64)
    with outer:
        call(0)
        assert device.streams[0] is outer
        inner.use()
        call(0)
        assert device.streams[0] is inner


def test_so_does_one_that_is_captured(device: fake_device.Device, call: Callable[[int], None]) -> None:
    """The second of two in one capture takes memory that was not made ahead."""
    streams = [Stream(48), Stream(64)]
    call(0)
    device.driver.begin(*streams)
    for stream in streams:
        stream.use()
        call(0)
        assert device.streams[0] is stream


def test_so_does_one_during_calls_that_fail(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise MemoryError

    stream = Stream(48).use()
    q, kv = _cache(0)
    oc.prepare(q, kv, mask=oc.cached(), max_length=1000)
    monkeypatch.setattr(device.allocating, "empty", out_of_memory)
    with pytest.raises(MemoryError):
        memory_of(0, stream).workspace(Need(1 << 24, 1000))
    assert device.streams[0] is stream


def test_using_nests_and_changes_nothing_where_it_need_not(device: fake_device.Device) -> None:
    first, second, same = Stream(16), Stream(32), Stream(32)
    default = device.streams[0]
    with using(first) as entered:
        assert entered is device.streams[0] is first
        with using(second), using(same), using(None) as nothing:
            assert nothing is None
            assert device.streams[0] is second, "the same stream by another name"
        assert device.streams[0] is first
    assert device.streams[0] is default
    assert (first.used, second.used, same.used) == (2, 1, 0)


def test_using_ends_with_an_error_and_on_the_device_it_began_on(device: fake_device.Device) -> None:
    before = dict(device.streams)
    with contextlib.suppress(KeyError), using(Stream(16, 0)):
        device.current = 1
        raise KeyError
    assert device.streams == before
    assert device.current == 1
    with pytest.raises(RuntimeError, match="does not match"), using(Stream(16, 0)):
        raise AssertionError
    assert device.streams == before


def test_the_stream_of_another_library_is_of_its_device(device: fake_device.Device) -> None:
    """Not of the one that is current where it is first met."""
    stream = external_stream(1, 48)
    assert (stream.device_id, device.current) == (1, 0)
    assert external_stream(1, 48) is stream is not external_stream(0, 48)


def test_nothing_makes_a_stream_current_in_another_way() -> None:
    """A with statement of a stream forgets what use() chose. Tools stand where a user's code does."""
    found = [
        f"{path.relative_to(OMNICUPY)}: with {ast.unparse(item)}"
        for path in OMNICUPY.rglob("*.py")
        if path.relative_to(OMNICUPY).parts[0] != "tools"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.With)
        for item in node.items
        if "stream" in ast.unparse(getattr(item.context_expr, "func", item.context_expr))
    ]
    assert found == []
