"""bench/turns.py: processes beside each other, and one alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from omnicupy.tools.bench import tiles, turns
from omnicupy.tools.bench.measure import Session
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.turns import NOBODY_ELSE, Turns
from omnicupy.tools.watchdog import Watchdog
from omnicupy.tools.workloads.workload import by_name

ROUNDS, PROCESSES = 4, 4
REST_S = turns.REST_S


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "REST_S", 0.0)


def _work(folder: Path, number: int, seen: Any, together: Any) -> None:
    """Beside others, in steps, then alone; a line for each beginning and end."""
    turns.REST_S = 0.0
    mine = Turns(folder, settle=lambda: None)
    together.wait(60)
    for _ in range(ROUNDS):
        with mine.beside():
            for _ in range(3):
                mine.give_way()
                seen.put(("beside", number, time.monotonic()))
                time.sleep(0.01)
                seen.put(("beside", number, time.monotonic()))
        with mine.alone():
            seen.put(("alone", number, time.monotonic()))
            time.sleep(0.01)
            seen.put(("alone", number, time.monotonic()))
    mine.end()
    seen.put(("end", number, 0.0))


def test_nobody_else_is_there_while_one_is_alone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    seen = context.Queue()
    together = context.Barrier(PROCESSES)
    given = [(tmp_path, number, seen, together) for number in range(PROCESSES)]
    processes = [context.Process(target=_work, args=one) for one in given]
    for process in processes:
        process.start()
    found: dict[tuple[str, int], list[float]] = {}
    ended = 0
    while ended < PROCESSES:
        kind, number, at = seen.get(timeout=60)
        ended += kind == "end"
        found.setdefault((kind, number), []).append(at)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    spans = [
        (kind, number, first, last)
        for (kind, number), times in found.items()
        if kind != "end"
        for first, last in zip(times[::2], times[1::2], strict=True)
    ]
    lone = [one for one in spans if one[0] == "alone"]
    assert len(lone) == ROUNDS * PROCESSES
    for one in lone:
        for other in spans:
            assert other is one or other[3] <= one[2] or one[3] <= other[2]
    beside = [one for one in spans if one[0] == "beside"]
    assert any(a[1] != b[1] and a[2] < b[3] and b[2] < a[3] for a in beside for b in beside)


def test_what_was_given_to_the_device_is_done_before_others_come(tmp_path: Path) -> None:
    settled: list[str] = []
    mine = Turns(tmp_path, settle=lambda: settled.append("settled"))
    with mine.beside():
        assert settled == []
        mine.give_way()
        assert settled == ["settled"]
    assert len(settled) == 2
    mine.give_way()  # beside nobody: there is nothing to give
    assert len(settled) == 2
    with pytest.raises(RuntimeError, match="broken"), mine.alone():
        raise RuntimeError("broken")
    assert len(settled) == 3
    with mine.alone():  # which the failed one has given back
        pass


def test_the_chip_rests_before_what_is_alone_if_there_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        done.append("waits")
        yield

    monkeypatch.setattr(turns, "REST_S", REST_S)
    monkeypatch.setattr(turns.time, "sleep", done.append)
    mine = Turns(tmp_path, settle=lambda: None)
    mine.around_waits = waiting
    with mine.alone():
        assert done == ["waits", turns.REST_S]
    with mine.beside(), NOBODY_ELSE.alone():
        assert done == ["waits", turns.REST_S, "waits"]
    assert turns.REST_S > 0


def test_a_device_that_is_broken_is_given_back(tmp_path: Path) -> None:
    def settle() -> None:
        raise RuntimeError("an illegal address")

    broken, other = Turns(tmp_path, settle=settle), Turns(tmp_path, settle=lambda: None)
    with pytest.raises(RuntimeError, match="an illegal address"), broken.alone():
        pass
    with other.alone():
        pass
    with pytest.raises(RuntimeError, match="an illegal address"), broken.beside():
        broken.give_way()
    with other.alone():
        pass


def test_waits_for_others_are_told(tmp_path: Path) -> None:
    said: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        said.append("waits")
        yield
        said.append("goes on")

    mine = Turns(tmp_path, settle=lambda: None)
    mine.around_waits = waiting
    with mine.alone():
        assert said == ["waits", "goes on"]


def test_a_watchdog_leaves_waits_for_others_alone() -> None:
    said: list[str] = []
    with Watchdog(0.05, said.append) as watchdog:
        watchdog.step("W1: omnicupy")
        with watchdog.waiting():
            time.sleep(0.3)
            assert said == []
        deadline = time.monotonic() + 5
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == ["FAIL  W1: omnicupy: still running after 0 s; the process ends here"]


def test_a_study_of_tiles_tells_its_watchdog_of_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, checked = Turns(tmp_path, settle=lambda: None), []

    def measure(session: Any, workload: Any, systems: Any, batch: int) -> None:
        assert mine.around_waits.__func__ is Watchdog.waiting  # type: ignore[attr-defined]
        checked.append(batch)

    monkeypatch.setattr(tiles, "measure", measure)
    record = Record(None, {})
    tiles._watched(Session(record, "sm_90", 132, 1 << 25, turns=mine), by_name("W1"), ["omnicupy"])
    assert checked == [tiles.CHECKED]


def test_a_job_is_of_the_process_that_asks_first(tmp_path: Path) -> None:
    first, second = Turns(tmp_path, settle=lambda: None), Turns(tmp_path, settle=lambda: None)
    assert [first.claim("a"), second.claim("a"), second.claim("b"), first.claim("b")] == [
        True,
        False,
        True,
        False,
    ]


def test_one_process_takes_no_turns() -> None:
    def settle() -> None:
        raise AssertionError("nothing to wait for")

    mine = Turns(None, settle=settle)
    with mine.beside():
        mine.give_way()
    with mine.alone():
        pass
    mine.end()
    assert mine.claim("a")
    assert mine.claim("a")
    assert NOBODY_ELSE.claim("a")


def test_a_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "fcntl", None)
    with pytest.raises(ValueError, match="--jobs: expected a POSIX system"):
        Turns(tmp_path)
    Turns(None)


@pytest.mark.skipif(os.name != "posix", reason="locks of files")
def test_one_of_two_locks_is_given_back_behind_the_files_of_a_driver(tmp_path: Path) -> None:
    mine = Turns(tmp_path, settle=lambda: None)
    early, late = mine._locks
    assert early < turns._LATE_FILE <= late
    with mine.alone():
        for name in ("lock", "late-lock"):
            with (tmp_path / name).open("r+") as file, pytest.raises(BlockingIOError):
                turns.fcntl.flock(file, turns.fcntl.LOCK_SH | turns.fcntl.LOCK_NB)


@pytest.mark.skipif(os.name != "posix", reason="locks of files")
def test_who_waits_to_be_alone_goes_before_who_gives_way(tmp_path: Path) -> None:
    mine, other = Turns(tmp_path, settle=lambda: None), Turns(tmp_path, settle=lambda: None)
    done: list[str] = []

    def wait() -> None:
        with other.alone():
            done.append("alone")

    waiting = threading.Thread(target=wait)
    with mine.beside(), (tmp_path / "gate").open("r+") as gate:
        waiting.start()
        try:
            while True:  # until the other one holds the gate
                turns.fcntl.flock(gate, turns.fcntl.LOCK_EX | turns.fcntl.LOCK_NB)
                turns.fcntl.flock(gate, turns.fcntl.LOCK_UN)
                time.sleep(0.001)
        except BlockingIOError:
            pass
        mine.give_way()
        done.append("beside again")
    waiting.join()
    assert done == ["alone", "beside again"]
