"""counters.py: every (device, stream) has work counters of its own, zero before anybody gets them."""

from __future__ import annotations

import threading

import pytest
from fake_device import Allocating, Stream

from omnicupy import counters


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Allocating:
    fake = Allocating()
    monkeypatch.setattr(counters, "cupy", fake)
    monkeypatch.setattr(counters, "_blocks", {})
    monkeypatch.setattr(counters, "_addresses", {})
    return fake


def test_preparing_waits_once_a_device(cupy: Allocating) -> None:
    for device in (0, 0, 1, 0, 1):
        counters.prepare(device)
    assert (len(cupy.made), len(cupy.waited)) == (2, 2)
    assert not any(array.any() for array in cupy.made)


def test_a_stream_keeps_its_counters(cupy: Allocating) -> None:
    counters.prepare(0)
    first, second = Stream(16), Stream(32)
    addresses = [counters.address(0, stream) for stream in (first, second, first, Stream(32))]
    start = cupy.made[0].data.ptr
    assert addresses == [start, start + 16, start, start + 16]


def test_devices_share_no_counters(cupy: Allocating) -> None:
    for device in (0, 1):
        counters.prepare(device)
    assert [counters.address(device, Stream(16)) for device in (0, 1)] == [x.data.ptr for x in cupy.made]


def test_more_streams_get_more_counters(cupy: Allocating) -> None:
    counters.prepare(0)
    addresses = [counters.address(0, Stream(16 * i + 16)) for i in range(2 * counters._STREAMS + 1)]
    assert len(set(addresses)) == len(addresses)
    assert (len(cupy.made), len(cupy.waited)) == (3, 3)
    for address, array in ((addresses[0], 0), (addresses[counters._STREAMS], 1), (addresses[-1], 2)):
        assert address == cupy.made[array].data.ptr
    last = addresses[counters._STREAMS - 1] + counters.BYTES
    assert last == cupy.made[0].data.ptr + cupy.made[0].nbytes


def test_each_thread_s_own_stream_is_another_stream(cupy: Allocating) -> None:
    counters.prepare(0)
    found: list[int] = []
    gate = threading.Barrier(3)

    def ask() -> None:
        found.append(counters.address(0, Stream(2)))
        gate.wait()  # a thread that ended may pass its identity on

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3
