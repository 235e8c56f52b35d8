"""The kernel that moves rows between GPUs of a host, its own source run on the CPU: each rank is a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cuda_on_cpu
import host_peers
import numpy as np
import pytest
from numpy.typing import NDArray

from omnicupy.jit.exchange_spec import CHANNELS, HEADER_BYTES, MOST_PARTS, MOST_RANKS
from omnicupy.jit.params import EXCHANGE_PARAMS

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)

BATCH, HEADS, WIDTHS = 2, 2, (8, 24)  # columns of 16 bits
ROW = BATCH * HEADS * sum(WIDTHS)
LIMIT_S = 60.0
RECEIVES = (
    2 + MOST_RANKS
) * CHANNELS  # where among the numbers of a rank those of calls that have come begin


class Ranks:
    """Several of them, and their memory."""

    def __init__(self, folder: Path, count: int, rows: int) -> None:
        self.count, self.slot_bytes = count, 2 * ROW * rows
        self.devices = [host_peers.Device(folder, str(rank), apart=True) for rank in range(count)]
        made = [one.allocate(HEADER_BYTES + 2 * self.slot_bytes) for one in self.devices]
        self.memory = [
            [made[one][0] if one == rank else self.devices[rank].map(made[one][1]) for one in range(count)]
            for rank in range(count)
        ]

    def flags(self, rank: int) -> NDArray[np.uint32]:
        raw = (np.ctypeslib.ctypes.c_uint32 * (HEADER_BYTES // 4)).from_address(self.memory[rank][rank])
        return np.frombuffer(raw, np.uint32)

    def record(self, rank: int, call: Call, **options: Any) -> Any:
        traffic, k, v = call.traffic, *call.given[rank]
        record = np.zeros(1, EXCHANGE_PARAMS)[0]
        record["given"] = k.ctypes.data, v.ctypes.data
        for name, one in (("first_strides", k), ("second_strides", v)):
            record[name] = [step // 16 for step in one.strides[:3]]
        places = call.places[rank]
        if call.as_runs:
            record["first_row"] = places[0] if len(places) else 0
        else:
            record["places"] = places.ctypes.data
        record["out"] = call.out[rank].ctypes.data
        record["memory"][: self.count] = self.memory[rank]
        record["slot_bytes"], record["late"] = self.slot_bytes, self.devices[rank].late_address
        record["limit_ns"] = int(options.pop("limit", LIMIT_S) * 1e9)
        record["chunks"], record["batch"], record["heads"] = [one // 8 for one in WIDTHS], BATCH, HEADS
        record["own_first"], record["own_rows"] = call.own[rank][0], call.own[rank][1] - call.own[rank][0]
        record["sent"][: self.count], record["received"][: self.count] = traffic[rank], traffic[:, rank]
        record["there"][: self.count] = traffic[:rank].sum(axis=0)
        record["rank"], record["ranks"] = rank, self.count
        record["part_rows"], record["blocks"] = 1, CHANNELS
        for name, value in options.items():
            record[name] = value
        return record

    def run(self, rank: int, call: Call, others: int = 2, **options: Any) -> None:
        record = self.record(rank, call, **options)
        self.devices[rank].launch(bytearray(record.tobytes()), 2 * int(record["blocks"]) + others, 0)

    def every(self, jobs: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(self.count) as pool:
            list(pool.map(jobs, range(self.count)))


class Call:
    """Random keys of each rank, which of them travel, and what must come of it."""

    def __init__(self, count: int, seed: int, most: int, least: int = 0, as_runs: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.as_runs = as_runs
        self.traffic = rng.integers(least, most + 1, (count, count))
        np.fill_diagonal(self.traffic, 0)
        if seed % 3 == 1:
            self.traffic[rng.integers(count)] = 0  # a rank that sends nothing
        self.given, self.places, self.own, self.out, self.expected = [], [], [], [], []
        for rank in range(count):
            total = int(self.traffic[rank].sum())
            keys = int(rng.integers(1, 30)) + (total if as_runs else most)
            self.given.append([_keys(rng, keys, width, rng.random() < 0.5) for width in WIDTHS])
            if as_runs:
                first = int(rng.integers(0, keys - total + 1))
                self.places.append(np.arange(first, first + total, dtype=np.int32))
            else:
                each = [np.sort(rng.choice(keys, n, replace=False)) for n in self.traffic[rank]]
                self.places.append(np.concatenate(each).astype(np.int32))
            low = int(rng.integers(0, keys))
            self.own.append((low, int(rng.integers(low, keys + 1))))
        for rank in range(count):
            rows = [_rows(self.given[rank], np.arange(*self.own[rank]))]
            for peer in range(count):
                begin = int(self.traffic[peer, :rank].sum())
                places = self.places[peer][begin : begin + int(self.traffic[peer, rank])]
                rows.append(_rows(self.given[peer], places))
            self.expected.append(np.concatenate(rows))
            out = cuda_on_cpu.aligned((len(self.expected[-1]) + 1, *self.expected[-1].shape[1:]), np.uint16)
            out[...] = 0x7FC1
            self.out.append(out)

    def check(self, rank: int) -> None:
        assert (self.out[rank][:-1] == self.expected[rank]).all()
        assert (self.out[rank][-1] == 0x7FC1).all()


def _keys(rng: Any, keys: int, width: int, tokens_first: bool) -> NDArray[Any]:
    """(batch, heads, keys, columns) in either layout."""
    shape = (BATCH, keys, HEADS, width) if tokens_first else (BATCH, HEADS, keys, width)
    found = cuda_on_cpu.aligned(shape, np.uint16)
    found[...] = rng.integers(0, 1 << 16, shape)
    return found.swapaxes(1, 2) if tokens_first else found


def _rows(given: list[NDArray[Any]], places: Any) -> NDArray[Any]:
    return np.concatenate([one[:, :, places].transpose(2, 0, 1, 3) for one in given], axis=3)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_rows_arrive_in_their_places_call_after_call(count: int, tmp_path: Path) -> None:
    """Other sizes at each call, in both slots, in one part and in several; ranks that come late; a rank alone that is
    ahead of the others by as much as the slots allow.
    """
    calls = [Call(count, seed, (300, 3, 40, 0)[seed % 4], as_runs=seed % 5 == 4) for seed in range(6)]
    ranks = Ranks(tmp_path, count, count * 301)

    def job(rank: int) -> None:
        for number, call in enumerate(calls):
            if number % count == rank:
                time.sleep(0.05)
            ranks.run(rank, call, blocks=(CHANNELS, 5)[(number + rank) % 2])
            call.check(rank)

    ranks.every(job)
    for first in (0, RECEIVES):
        assert (ranks.flags(0)[first : first + CHANNELS] == len(calls)).all()
    assert all(not one.late() for one in ranks.devices)


def test_a_rank_may_be_ahead_by_no_more_than_the_slots(tmp_path: Path) -> None:
    """Rank 0 runs on while rank 1 sleeps: it ends the first call, whose rows are there, and waits in the second."""
    calls = [Call(2, seed, 40) for seed in (0, 2, 3)]
    for call in calls:
        call.traffic[1] = 0  # rank 0 waits for no row
    calls = [_again(call) for call in calls]
    ranks, ended = Ranks(tmp_path, 2, 200), []

    def first() -> None:
        for call in calls:
            ranks.run(0, call)
            ended.append(time.monotonic())

    thread = threading.Thread(target=first)
    thread.start()
    time.sleep(1.0)
    assert len(ended) == 2  # a third one would write to a slot that is not read yet
    for call in calls:
        ranks.run(1, call)
        call.check(1)
    thread.join()
    for call in calls:
        call.check(0)


def _again(call: Call) -> Call:
    """With what must come of its traffic."""
    for rank in range(2):
        call.places[rank] = call.places[rank][: int(call.traffic[rank].sum())]
        rows = [_rows(call.given[rank], np.arange(*call.own[rank]))]
        if call.traffic[1 - rank, rank]:
            rows.append(_rows(call.given[1 - rank], call.places[1 - rank]))
        call.expected[rank] = np.concatenate(rows)
        call.out[rank] = call.out[rank][: len(call.expected[rank]) + 1]
    return call


def test_a_rank_that_never_comes_is_told_in_time(tmp_path: Path) -> None:
    """The others get what each other sends; NaN stands for its rows, and the host reads which rank it is."""
    call = Call(3, 2, 90, CHANNELS)
    ranks = Ranks(tmp_path, 3, 200)
    begin = time.monotonic()

    def job(rank: int) -> None:
        if rank != 1:
            ranks.run(rank, call, limit=0.5, part_rows=4)

    ranks.every(job)
    assert 0.5 < time.monotonic() - begin < 20
    for rank in (0, 2):
        assert ranks.devices[rank].late() == 2
        own, received = call.own[rank][1] - call.own[rank][0], call.traffic[:, rank]
        begins = own + np.append(0, np.cumsum(received))
        for peer in range(3):
            rows = slice(begins[peer], begins[peer + 1])
            expected = 0xFFFF if peer == 1 else call.expected[rank][rows]
            assert (call.out[rank][rows] == expected).all()
        assert (call.out[rank][:own] == call.expected[rank][:own]).all()
    assert ranks.devices[1].late() == 0


def test_gradients_of_one_array_alone(tmp_path: Path) -> None:
    """One side, as where no gradient of v is wanted: rows are as wide as it."""
    call = Call(2, 0, 30)
    ranks = Ranks(tmp_path, 2, 60)

    def job(rank: int) -> None:
        ranks.run(rank, call, chunks=[WIDTHS[0] // 8, 0])

    ranks.every(job)
    for rank in range(2):
        count = len(call.expected[rank])
        found = call.out[rank].reshape(-1)[: count * BATCH * HEADS * WIDTHS[0]]
        assert (found == call.expected[rank][..., : WIDTHS[0]].reshape(-1)).all()


def test_shares_of_own_keys_are_counted_in_64_bits(tmp_path: Path) -> None:
    """Own keys times the thread blocks that copy them are more than 2^31, as 16 million keys on a GPU are."""
    keys, others = 70_000, 1 << 15
    call, rng = Call(2, 0, 0), np.random.default_rng(0)
    call.given[0] = [_keys(rng, keys, width, True) for width in WIDTHS]
    call.own[0], call.expected[0] = (0, keys), _rows(call.given[0], slice(None))
    call.out[0] = cuda_on_cpu.aligned((keys + 1, *call.expected[0].shape[1:]), np.uint16)
    call.out[0][...] = 0x7FC1
    Ranks(tmp_path, 2, 1).run(0, call, others)
    call.check(0)


def test_counts_go_round(tmp_path: Path) -> None:
    """Flags are counted in 32 bits, and calls do not end with them."""
    ranks = Ranks(tmp_path, 2, 100)
    near = (1 << 32) // MOST_PARTS - 2
    for rank in range(2):
        header = ranks.flags(rank)
        header[:CHANNELS] = header[RECEIVES : RECEIVES + CHANNELS] = near
        header[2 * CHANNELS :].reshape(-1)[: 16 * CHANNELS] = ((near - 1) * MOST_PARTS + 1) % (1 << 32)
    for seed in range(5):
        call = Call(2, seed, 40)
        ranks.every(lambda rank, call=call: ranks.run(rank, call))
        for rank in range(2):
            call.check(rank)
    assert not any(one.late() for one in ranks.devices)
