"""The words that count additions in any order (tickets.cuh), as a model under random schedules."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from omnicupy.jit.source import kernels_dir

FOLDER = kernels_dir() / "omni/sm90/backward"
BEGUN = 1 << int(re.findall(r"kBegun = 1 << (\d+)", (FOLDER / "tickets.cuh").read_text())[0])
STORED = BEGUN + (
    1 << int(re.findall(r"kStored = kBegun \+ \(1 << (\d+)\)", (FOLDER / "tickets.cuh").read_text())[0])
)
LAST = 1 << int(re.findall(r"kLastAddition = 1 << (\d+)", (FOLDER / "finish.cuh").read_text())[0])
MOST_ADDITIONS = 1 << 22


@dataclass
class _Sum:
    """of: additions.  turn: its word.  value: what lies there, None for what was there before the launch."""

    of: int
    first: int
    turn: int
    value: int | None = None
    landed: int = 0
    log: list[str] = field(default_factory=list)


def _adder(one: _Sum) -> Iterator[None]:
    """A thread that makes one addition: it stops wherever another one may come in between."""
    before, one.turn = one.turn, one.turn | BEGUN
    yield
    if before & BEGUN:
        while before < STORED:
            before = one.turn
            yield
        assert one.value is not None, "added to what was there before"
        one.value += 1
        more = 1
    else:
        assert one.value is None, "stored twice"
        one.value = 1
        more = LAST - (one.first + BEGUN) - (one.of - 1)
    yield
    one.landed += 1
    one.turn += more
    assert one.turn < 1 << 31
    assert (one.turn >= LAST) == (one.landed == one.of)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("seed", range(40))
def test_a_sum_is_done_when_all_have_landed_whoever_is_last(seed: int, first: int) -> None:
    rng = random.Random(seed)
    one = _Sum(rng.choice([1, 2, 3, 9, 40]), first, first)
    threads = [_adder(one) for _ in range(one.of)]
    while threads:
        thread = rng.choice(threads)
        if next(thread, "ended") == "ended":
            threads.remove(thread)
    assert (one.value, one.turn) == (one.of, LAST)


def test_words_have_room_for_as_many_additions_as_there_are_tiles() -> None:
    assert STORED <= LAST - (MOST_ADDITIONS - 1)
    assert BEGUN + 1 < STORED
    assert (LAST - MOST_ADDITIONS) & BEGUN  # who comes later sees that somebody came
