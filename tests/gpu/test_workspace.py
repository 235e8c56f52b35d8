"""gpu/workspace.py: memory that nobody uses, its counters zero; who gets it next comes after who had it."""

from __future__ import annotations

import fake_device
import pytest
from fake_device import Allocating, Event, Stream

from omnicupy.gpu import workspace
from omnicupy.gpu.workspace import COUNTER_BYTES, Need, Pool, Workspace

SMALL, LARGE = Need(1000, 10), Need(1 << 20, 700)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Allocating:
    return fake_device.install(monkeypatch).allocating


def test_counters_are_zero_and_waited_for_and_rows_follow_them(memory: Allocating) -> None:
    made = Workspace(LARGE)
    assert len(memory.waited) == 1
    (buffer,) = memory.buffers.values()
    assert not buffer[: 4 * LARGE.arrivals].any()
    assert buffer[-LARGE.partial_bytes :].all()  # the rows are left as they are
    assert made.arrivals == buffer.data.ptr
    assert made.partials >= made.arrivals + 4 * LARGE.arrivals
    assert made.partials % 16 == 0
    assert made.partials + LARGE.partial_bytes <= buffer.data.ptr + buffer.nbytes


def test_all_memory_is_of_one_stream(memory: Allocating) -> None:
    """CuPy hands freed memory to the stream that had it: with a stream each, none would come back."""
    for _ in range(3):
        Workspace(SMALL)
    assert len(set(memory.waited)) == 1


@pytest.mark.parametrize(
    ("need", "wanted"),
    [
        (Need(1, 1), Need(1 << 16, 256)),
        (Need(1 << 16, 256), Need(1 << 16, 256)),
        (Need((1 << 16) + 1, 257), Need(1 << 17, 512)),
        (Need(32 << 20, 1000), Need(32 << 20, 1024)),
        (Need((32 << 20) + 1, 1), Need(64 << 20, 256)),
        (Need((64 << 20) + 1, 1), Need(96 << 20, 256)),
        (Need(1000 << 20, 1), Need(1024 << 20, 256)),
    ],
)
def test_sizes_are_powers_of_two_and_large_ones_multiples(need: Need, wanted: Need) -> None:
    assert need.rounded() == wanted
    assert need.within(wanted)


@pytest.mark.parametrize(
    ("need", "inside"), [(Need(10, 5), True), (Need(10, 6), False), (Need(11, 5), False)]
)
def test_rows_and_arrivals_must_both_fit(need: Need, inside: bool) -> None:
    assert need.within(Need(10, 5)) == inside


def test_counters_are_all_different_and_zero(memory: Allocating) -> None:
    pool = Pool()
    taken = [pool.take_counters() for _ in range(2 * workspace._SETS + 1)]
    assert len({address // COUNTER_BYTES for address in taken}) == len(taken)
    assert memory.made == 3
    assert not any(buffer.any() for buffer in memory.buffers.values())
    for address in taken:
        assert any(
            at <= address <= at + buffer.nbytes - COUNTER_BYTES for at, buffer in memory.buffers.items()
        )


def test_counters_come_back_when_their_last_launch_has_ended(memory: Allocating) -> None:
    pool = Pool()
    rest = [pool.take_counters() for _ in range(workspace._SETS)]
    pool.give_back(rest[7], [], Event(disable_timing=True))
    other = pool.take_counters()
    assert other not in rest
    Event.done = True
    found = [pool.take_counters() for _ in range(workspace._SETS)]
    assert rest[7] in found
    assert len({*found, *rest, other}) == 2 * workspace._SETS


def test_the_next_stream_waits_for_the_one_before(memory: Allocating) -> None:
    pool, last, stream = Pool(), Event(disable_timing=True), Stream(8)
    kept = pool.take_workspace(LARGE, stream)
    pool.give_back(None, [kept], last)
    assert pool.take_workspace(SMALL, stream) is kept
    assert stream.waited == [last]


def test_a_capture_gets_nothing_that_may_be_in_use(memory: Allocating) -> None:
    pool, last = Pool(), Event(disable_timing=True)
    kept = pool.take_workspace(LARGE, None)
    pool.give_back(None, [kept], last)
    assert pool.take_workspace(LARGE, None) is not kept
    Event.done = True
    assert pool.take_workspace(LARGE, None) is kept


def test_what_is_too_small_is_passed_over(memory: Allocating) -> None:
    pool = Pool()
    pool.give_back(None, [small := pool.take_workspace(SMALL, None)], None)
    large = pool.take_workspace(LARGE, None)
    assert LARGE.within(large.need)
    assert pool.take_workspace(SMALL, None) is small


def test_prepared_memory_is_ready_and_made_once(memory: Allocating) -> None:
    pool = Pool()
    for _ in range(3):
        pool.prepare(LARGE)
        pool.prepare(SMALL)
        pool.prepare(None)
    made = memory.made
    assert made == 2  # counters and a workspace
    assert LARGE.within(pool.take_workspace(LARGE, None).need)
    pool.take_counters()
    assert memory.made == made


def test_large_memory_is_made_when_it_is_taken(memory: Allocating) -> None:
    """A spare of it would double what a backward pass with copies takes."""
    pool, large = Pool(), Need(workspace.MOST_SPARE_BYTES + 1, 1)
    pool.prepare(large)
    assert memory.made == 1  # counters
    taken = pool.take_workspace(large, None)
    assert large.within(taken.need)
    pool.give_back(None, [taken], None)
    assert pool.take_workspace(large, None) is taken


def test_what_is_prepared_serves_all_that_was_asked_for(memory: Allocating) -> None:
    pool, wide, many = Pool(), Need(1 << 20, 1), Need(1, 5000)
    for need in (wide, many, wide, many):
        pool.prepare(need)
    assert memory.made == 3
    assert wide.joined(many).within(pool.take_workspace(many, None).need)


def test_idle_workspaces_are_freed_but_for_the_largest(memory: Allocating) -> None:
    pool = Pool()
    taken = [pool.take_workspace(Need(1 << bits, 1), None) for bits in (18, 22, 20, 19)]
    sizes = [one.nbytes for one in taken]
    assert memory.nbytes == sum(sizes)
    pool.give_back(None, taken, None)
    del taken
    assert memory.nbytes == pool.nbytes == max(sizes)


def test_workspaces_in_use_are_freed_when_that_has_ended(memory: Allocating) -> None:
    pool = Pool()
    pool.give_back(None, [pool.take_workspace(LARGE, None) for _ in range(4)], Event(disable_timing=True))
    assert len(memory.buffers) == 4
    Event.done = True
    pool.prepare(None)
    assert sum(buffer.nbytes > workspace._SETS * COUNTER_BYTES for buffer in memory.buffers.values()) == 1
