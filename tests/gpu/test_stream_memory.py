"""stream_memory.py: no two of (stream, capture) share an address, and all comes back; on a fake device and driver."""

from __future__ import annotations

import gc
import itertools
import random
import threading
from collections.abc import Iterator
from typing import Any

import fake_device
import pytest
from fake_device import Event, Stream

import omnicupy as oc
from omnicupy.gpu import stream_memory
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.gpu.workspace import COUNTER_BYTES, Need
from omnicupy.schedule.grid import MOST_PARTIAL_BYTES

NEED, LARGE = Need(1 << 20, 300), Need(1 << 22, 3000)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_device.Device]:
    fake = fake_device.install(monkeypatch)
    gc.disable()  # whatever dies in these tests dies by its last reference
    yield fake
    gc.enable()


def _ranges(memory: Any, need: Need) -> list[tuple[int, int]]:
    """The bytes that a launch may write beside its outputs."""
    space = memory.workspace(need)
    return [
        (memory.counters, memory.counters + COUNTER_BYTES),
        (space.arrivals, space.arrivals + 4 * need.arrivals),
        (space.partials, space.partials + need.partial_bytes),
    ]


def _are_apart(ranges: list[tuple[int, int]]) -> bool:
    return all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(ranges)))


def test_no_two_streams_and_captures_share_an_address(device: fake_device.Device) -> None:
    """Eager on 6 streams of two devices, and three captures that hold several of them: 18 users at once."""
    streams = [(0, Stream(16 * i + 16)) for i in range(4)] + [(0, Stream(0)), (1, Stream(160))]
    ranges = [bytes_ for at, stream in streams for bytes_ in _ranges(memory_of(at, stream), NEED)]
    for _ in range(3):
        capturing = [(at, stream) for at, stream in streams if stream.ptr]
        graph = device.driver.begin(*(stream for _, stream in capturing))
        for at, stream in capturing:
            device.current = at
            ranges += _ranges(memory_of(at, stream), NEED)
        device.current = 0
        device.driver.end(graph)
    assert len(ranges) == 3 * (6 + 3 * 5)
    assert _are_apart(ranges)


def test_a_stream_keeps_its_memory_and_so_does_a_capture(device: fake_device.Device) -> None:
    first, second = Stream(16), Stream(32)
    assert memory_of(0, first) is memory_of(0, Stream(16))
    assert memory_of(0, first) is not memory_of(0, second)
    eager = memory_of(0, first)
    graph = device.driver.begin(first, second)
    captured = memory_of(0, first)
    assert captured is memory_of(0, first)
    assert len({id(eager), id(captured), id(memory_of(0, second))}) == 3
    device.driver.end(graph)
    assert memory_of(0, first) is eager


def test_the_legacy_stream_has_two_handles_and_one_memory_a_device(device: fake_device.Device) -> None:
    assert memory_of(0, Stream(0)) is memory_of(0, Stream(1))
    assert memory_of(0, Stream(0)) is not memory_of(1, Stream(0))


def test_a_new_stream_with_the_handle_of_a_destroyed_one_has_other_memory(device: fake_device.Device) -> None:
    """What the destroyed one was given may still run."""
    ranges = []
    for _ in range(10):
        ranges += _ranges(memory_of(0, Stream(16)), NEED)
        device.driver.destroy(16)
    assert _are_apart(ranges)


def test_each_thread_s_own_stream_is_another_stream(device: fake_device.Device) -> None:
    found: list[int] = []
    gate = threading.Barrier(3)

    def ask() -> None:
        found.append(memory_of(0, Stream(2)).counters)
        gate.wait()  # a thread that ended may pass its identity on

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3


def test_a_larger_need_gets_a_larger_workspace(device: fake_device.Device) -> None:
    memory = memory_of(0, Stream(16))
    small = memory.workspace(NEED)
    large = memory.workspace(LARGE)
    assert large is not small
    assert LARGE.within(large.need)
    assert memory.workspace(NEED) is large


def test_needs_that_hold_each_other_not_are_joined(device: fake_device.Device) -> None:
    for captured in (False, True):
        stream = Stream(16)
        if captured:
            device.driver.begin(stream)
        memory = memory_of(0, stream)
        for need in (wide := Need(1 << 22, 1), many := Need(1, 5000)):
            memory.workspace(need)
        made = device.allocating.made
        assert memory.workspace(wide) is memory.workspace(many)
        assert device.allocating.made == made


def test_another_stream_takes_over_what_one_replaced_after_its_work(device: fake_device.Device) -> None:
    first, second = Stream(16), Stream(32)
    small = memory_of(0, first).workspace(NEED)
    memory_of(0, first).workspace(LARGE)
    pool = stream_memory._pools[0]
    pool._workspaces = [kept for kept in pool._workspaces if kept[0] is small]
    assert memory_of(0, second).workspace(NEED) is small
    (waited,) = second.waited
    assert waited.recorded is first


def test_a_capture_keeps_the_workspaces_that_became_too_small(device: fake_device.Device) -> None:
    stream = Stream(16)
    device.driver.begin(stream)
    small = memory_of(0, stream).workspace(NEED)
    large = memory_of(0, stream).workspace(LARGE)
    for other in (Stream(32), Stream(48)):
        assert memory_of(0, other).workspace(NEED) not in (small, large)


def test_a_prepared_capture_allocates_nothing(device: fake_device.Device) -> None:
    stream_memory.prepare(0, LARGE)
    made, stream = device.allocating.made, Stream(16)
    device.driver.begin(stream)
    memory_of(0, stream).workspace(LARGE)
    assert device.allocating.made == made


def test_a_call_leaves_memory_for_a_capture_on_any_other_stream(device: fake_device.Device) -> None:
    memory_of(0, Stream(16)).workspace(LARGE)
    made, stream = device.allocating.made, Stream(32)
    device.driver.begin(stream)
    memory_of(0, stream).workspace(LARGE)
    assert device.allocating.made == made


def test_every_further_capture_is_served(device: fake_device.Device) -> None:
    """On whichever stream; the fake allocates only where a capture permits it."""
    memory_of(0, Stream(16)).workspace(LARGE)
    spaces = []
    for handle in (32, 48, 64, 16):
        stream = Stream(handle)
        device.driver.begin(stream)
        spaces.append(memory_of(0, stream).workspace(LARGE))
    assert len({space.arrivals for space in spaces}) == 4


def test_a_thousand_dropped_captures_give_their_memory_back(device: fake_device.Device) -> None:
    stream = Stream(16)
    memory_of(0, stream).workspace(LARGE)
    sizes, seen = set(), set()
    for _ in range(1000):
        graph = device.driver.begin(stream)
        space = memory_of(0, stream).workspace(LARGE)
        seen.add(space.arrivals)
        device.driver.end(graph)
        graph.end()
        sizes.add(device.allocating.nbytes)
    assert len(seen) <= 2
    assert len(sizes) <= 2
    assert len(stream_memory._captures) == 1


def test_a_hundred_captures_at_once_give_their_memory_back(device: fake_device.Device) -> None:
    stream = Stream(16)
    memory_of(0, stream).workspace(LARGE)
    before, graphs, ranges = device.allocating.nbytes, [], []
    for _ in range(100):
        graphs.append(device.driver.begin(stream))
        ranges += _ranges(memory_of(0, stream), LARGE)
        device.driver.end(graphs[-1])
    assert _are_apart(ranges)
    assert device.allocating.nbytes > 90 * LARGE.partial_bytes
    for graph in graphs:
        graph.end()
    stream_memory.prepare(0, None)
    assert device.allocating.nbytes == before
    assert stream_memory._captures == {}


def test_what_a_living_graph_uses_is_given_to_nobody(device: fake_device.Device) -> None:
    """Captures begin and end in any order, streams come and go: whoever lives has memory of its own."""
    rng = random.Random(3)
    graphs: dict[Any, list[tuple[int, int]]] = {}
    for step in range(400):
        Event.done = rng.random() < 0.5
        if graphs and rng.random() < 0.45:
            graph = rng.choice(list(graphs))
            graph.end()
            del graphs[graph]
        stream = Stream(16 * rng.randint(1, 20))
        need = Need(rng.randint(1, 1 << 20), rng.randint(1, 4000))
        if rng.random() < 0.3:
            device.driver.destroy(stream.ptr)
        graph = device.driver.begin(stream)
        graphs[graph] = _ranges(memory_of(0, stream), need)
        device.driver.end(graph)
        eager = _ranges(memory_of(0, stream), need)
        assert _are_apart([*eager, *itertools.chain(*graphs.values())]), step


def test_streams_are_bounded_and_hand_on_what_they_had(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_memory, "MAX_STREAMS", 4)
    streams = [Stream(16 * i + 16) for i in range(200)]
    for stream in streams:
        memory_of(0, stream).workspace(NEED)
    assert len(stream_memory._of_stream) == 4
    assert len(device.allocating.buffers) <= 4 + 3
    assert all(stream.waited for stream in streams[8:])


def test_a_captured_stream_is_not_made_to_hand_on(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_memory, "MAX_STREAMS", 2)
    first = Stream(16)
    memory = memory_of(0, first)
    device.driver.begin(first)
    for i in range(5):
        memory_of(0, Stream(16 * i + 32))
    assert not memory.closed
    assert all(event.recorded is not first for event in Event.made)


def test_a_launch_on_a_closed_memory_asks_for_another(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look-up and the launch another thread may have made the stream hand on what it had."""
    mask, arrays = oc.causal(300), fake_device.inputs()
    oc.attention(*arrays, mask)
    old = memory_of(0, device.streams[0])
    found = iter([old])
    monkeypatch.setattr(
        stream_memory, "memory_of", lambda at, stream: next(found, None) or memory_of(at, stream)
    )
    old.close()
    stream_memory._of_stream.clear()
    oc.attention(*arrays, mask)
    assert memory_of(0, device.streams[0]) is not old
    counters = [int(launched["params"]["counter"]) for launched in device.launches]
    assert counters == [old.counters, memory_of(0, device.streams[0]).counters]
    assert counters[0] != counters[1]


def test_a_long_day_of_shapes_stays_within_a_bound(device: fake_device.Device) -> None:
    """Decoding and prefill in all sizes on 8 streams, half of the time with work that still runs."""
    rng = random.Random(1)
    streams = [Stream(16 * i + 16) for i in range(8)]
    largest = Need(MOST_PARTIAL_BYTES, 1 << 14)
    one = MOST_PARTIAL_BYTES + 4 * largest.arrivals
    most = 0
    for _ in range(5000):
        Event.done = rng.random() < 0.5
        need = Need(int(2 ** rng.uniform(4, 25)), int(2 ** rng.uniform(0, 14)))
        memory_of(0, rng.choice(streams)).workspace(need)
        most = max(most, device.allocating.nbytes)
    Event.done = True
    stream_memory.prepare(0, None)
    assert most <= (2 * len(streams) + 2) * one  # half of them replaced while they were in use
    assert device.allocating.nbytes <= (len(streams) + 1) * one + (1 << 16)
