"""Runs the planner of cached calls on the CPU, and reads what its lists mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cuda_on_cpu
import numpy as np
from cuda_on_cpu import aligned
from numpy.typing import NDArray

from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.masks.block_mask import DEAD, FULL, KIND, PARTIAL
from omnicupy.schedule.cached_lists import CachedLists, tail_arrays
from omnicupy.schedule.order import LAST, LAZY
from omnicupy.schedule.pieces import LAZY_KEYS

SPEC = PlanSpec(arch="sm_80")
RAGGED = PlanSpec(arch="sm_80", ragged=True)
POISON = 0x5A  # what the buffer holds before
GUARD = 4096  # bytes around each array that nobody may write
_WIDTH = {"entries": 4, "parts": 4, "splits": 4, "row_ranges": 2}


@dataclass
class Planned:
    """What the planner wrote. buffer: all arrays of `lists`."""

    lists: CachedLists
    buffer: NDArray[np.uint8]

    def array(self, name: str) -> NDArray[Any]:
        kind = np.uint32 if name in ("bit_tiles", "dead") else np.int32
        width = _WIDTH.get(name, 1)
        at = self.lists.offsets[name]
        found = self.buffer[at : at + 4 * width * self.lists.shapes[name]].view(kind)
        return found.reshape(-1, width) if width > 1 else found

    @property
    def parts(self) -> NDArray[np.int32]:
        return self.array("parts")[: self.array("n_parts")[0]]

    @property
    def splits(self) -> NDArray[np.int32]:
        return self.array("splits")[: len(self.parts)]

    @property
    def bits(self) -> NDArray[np.uint32]:
        lists = self.lists
        return self.array("bit_tiles").reshape(-1, lists.br, lists.bc // 32)

    @property
    def dead(self) -> NDArray[np.bool_]:
        words = self.array("dead").reshape(self.lists.batch, -1)
        return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)


def build(*, ragged: bool = False) -> Any:
    return cuda_on_cpu.build(RAGGED if ragged else SPEC)


def run(
    library: Any,
    lists: CachedLists,
    lengths: NDArray[np.int32],
    row_starts: NDArray[np.int32] | None = None,
) -> Planned:
    buffer = aligned(lists.nbytes, np.uint8)
    buffer.fill(POISON)
    params = lists.params()
    held: dict[str, NDArray[Any]] = {"lengths": lengths}
    if row_starts is not None:
        held["row_starts"] = row_starts
    if lists.rule.tail is not None:
        held |= tail_arrays(lists.rule.tail, lists.q_len, lists.br)
    for name, array in held.items():
        params[name] = array.ctypes.data
    apart: dict[str, NDArray[np.uint8]] = {}
    for name, count in lists.shapes.items():
        apart[name] = aligned(4 * _WIDTH.get(name, 1) * count + 2 * GUARD, np.uint8)
        apart[name].fill(POISON)
        params[name] = apart[name].ctypes.data + GUARD
    spec = SPEC if row_starts is None else RAGGED
    cuda_on_cpu.run(library, spec, params, (lists.thread_blocks, 1), (), late=False)
    for name, array in apart.items():
        assert (array[:GUARD] == POISON).all(), f"{name}: written before its begin"
        assert (array[-GUARD:] == POISON).all(), f"{name}: written past its end"
        buffer[lists.offsets[name] :][: len(array) - 2 * GUARD] = array[GUARD:-GUARD]
    return Planned(lists, buffer)


def entries_of(planned: Planned, first: int, tiles: int) -> list[tuple[int, int, int, int]]:
    """The entries of a part, as the kernels' walk takes them: up to the last one."""
    found: list[tuple[int, int, int, int]] = []
    while tiles and (not found or not found[-1][0] & LAST):
        entry = tuple(map(int, planned.array("entries")[first + len(found)]))
        found.append(entry)  # type: ignore[arg-type]
        assert len(found) <= planned.lists.most_entries
    return found


def counts(planned: Planned, sequence: int, lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """How often the lists let each row of a sequence see each key, (q_len, capacity); checks what a list may hold."""
    lists = planned.lists
    length = int(lengths[sequence])
    keys = length if 0 <= length <= lists.capacity else 0
    padded = -(-lists.capacity // lists.bc) * lists.bc
    count = np.zeros((lists.q_blocks * lists.br, padded), np.int64)
    for row, mask, first, tiles in planned.parts:
        if mask != sequence:
            continue
        assert row % lists.br == 0
        seen = 0
        full_keys = 0
        for flags, payload, start, unskipped in entries_of(planned, first, tiles):
            kind, held = flags & KIND, flags >> 8
            assert start % lists.bc == 0
            assert unskipped == tiles
            assert bool(flags & LAZY) == (full_keys >= LAZY_KEYS)
            assert not flags & 0b111000, "no tile is skipped"
            seen += -(-held // lists.bc)
            here = count[row : row + lists.br, start : start + max(held, lists.bc)]
            if kind == FULL:
                assert held % lists.bc == 0
                assert start + held <= keys
                assert not flags & DEAD
                full_keys += held
                here += 1
                continue
            assert kind == PARTIAL
            assert held == min(lists.bc, keys - start) > 0
            block = sequence * lists.q_blocks + row // lists.br
            assert block * lists.most_partial <= payload < (block + 1) * lists.most_partial
            tile = np.unpackbits(planned.bits[payload].view(np.uint8), axis=1, bitorder="little")
            here += tile
            dead = planned.dead[sequence, start : start + lists.bc]
            assert bool(flags & DEAD) == dead.any()
        assert seen == tiles
    assert not count[:, lists.capacity :].any()
    rest = count[lists.q_len :]
    assert (rest == rest.max(axis=0, initial=0)).all()
    return count[: lists.q_len, : lists.capacity]


def dead_where_looked_at(planned: Planned, sequence: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Keys of a sequence's PARTIAL tiles, and whether each is said to be dead."""
    lists = planned.lists
    keys = [
        np.arange(start, start + lists.bc)
        for _, mask, first, tiles in planned.parts
        if mask == sequence
        for flags, _, start, _ in entries_of(planned, first, tiles)
        if flags & KIND == PARTIAL
    ]
    found = np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.int64)
    return found, planned.dead[sequence, found]
