"""gpu/workspace.py: every (device, stream) has work counters of its own, zero before anybody gets them."""

from __future__ import annotations

import threading

import pytest
from fake_device import Allocating, Stream

from omnicupy.gpu import workspace


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Allocating:
    fake = Allocating()
    monkeypatch.setattr(workspace, "cupy", fake)
    monkeypatch.setattr(workspace, "_counter_arrays", {})
    monkeypatch.setattr(workspace, "_counter_addresses", {})
    return fake


def test_preparing_waits_once_a_device(cupy: Allocating) -> None:
    for device in (0, 0, 1, 0, 1):
        workspace.prepare_counters(device)
    assert (len(cupy.made), len(cupy.waited)) == (2, 2)
    assert not any(array.any() for array in cupy.made)


def test_a_stream_keeps_its_counters(cupy: Allocating) -> None:
    workspace.prepare_counters(0)
    first, second = Stream(16), Stream(32)
    addresses = [workspace.counters_of(0, stream) for stream in (first, second, first, Stream(32))]
    start = cupy.made[0].data.ptr
    assert addresses == [start, start + 16, start, start + 16]


def test_devices_share_no_counters(cupy: Allocating) -> None:
    for device in (0, 1):
        workspace.prepare_counters(device)
    assert [workspace.counters_of(device, Stream(16)) for device in (0, 1)] == [x.data.ptr for x in cupy.made]


def test_more_streams_get_more_counters(cupy: Allocating) -> None:
    workspace.prepare_counters(0)
    addresses = [workspace.counters_of(0, Stream(16 * i + 16)) for i in range(2 * workspace._STREAMS + 1)]
    assert len(set(addresses)) == len(addresses)
    assert (len(cupy.made), len(cupy.waited)) == (3, 3)
    for address, array in ((addresses[0], 0), (addresses[workspace._STREAMS], 1), (addresses[-1], 2)):
        assert address == cupy.made[array].data.ptr
    last = addresses[workspace._STREAMS - 1] + workspace.COUNTER_BYTES
    assert last == cupy.made[0].data.ptr + cupy.made[0].nbytes


def test_each_thread_s_own_stream_is_another_stream(cupy: Allocating) -> None:
    workspace.prepare_counters(0)
    found: list[int] = []
    gate = threading.Barrier(3)

    def ask() -> None:
        found.append(workspace.counters_of(0, Stream(2)))
        gate.wait()  # a thread that ended may pass its identity on

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3
