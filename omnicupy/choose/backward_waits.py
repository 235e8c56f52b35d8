"""By how much the kernel that adds to dQ in one order takes longer than additions in any order would.

Who waits for whom follows from the ranks (schedule/ordered_lists.py). They are those of a schedule in which all tiles
take as long. Here the launch is played with what tiles take, and with the time that an addition needs. A consumer
warpgroup hands its tile of dQ over and goes on; it waits where its last one, two tiles ago, has not been added yet. The
next item is taken when all additions of the one at hand have had their turn.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from omnicupy.masks.block_mask import FULL, KIND
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.ordered_lists import PLAYED_ITEM, OrderedLists
from omnicupy.schedule.parts import MASKED, Workers, number_in_run
from omnicupy.schedule.ranks import LAST_ADDITION

ADDITION = (
    0.6  # from the beginning of an addition until the next one may begin, in FULL tiles (docs/kernels.md)
)
MOST_STEPS = 600_000  # tiles that are played: a second or two
_NEXT_ITEM = -1  # whose turn it is where no tile is done, but the next item may be taken

Step = tuple[int, int, float]  # the sum that a tile adds to, how many add to it before, what the tile takes
Waits = Callable[[BlockLists, Workers, int], float]  # waited_share, or what answers as it does


def waited_share(lists: BlockLists, workers: Workers, warpgroups: int = 2) -> float:
    """The time that waits add, over the time without them. lists: of ordered_lists.  warpgroups: that take turns with
    tiles of dQ, or where one of its own makes dQ the buffers from which it is added.

    As many whole sections of heads are played as MOST_STEPS allow, the query heads of a group as one where not even one
    section of them would be. Of masks with more tiles than that, whose waits are short beside them, nothing is played.
    """
    tiles = int(lists.array("parts")[: lists.n_parts, 3].sum())
    if not tiles:
        return 0.0
    repeats = workers.repeats if tiles * lists.section * workers.repeats <= MOST_STEPS else 1
    sections = MOST_STEPS // (tiles * lists.section * repeats)
    heads = min(workers.heads, lists.section * sections)
    if not heads:
        return 0.0
    items = items_of(lists, heads, repeats)
    of_group = workers.repeats / repeats  # steps that are played as one
    item, addition = PLAYED_ITEM / of_group, ADDITION / of_group
    free = Play(items, workers.sm_count, item, None, warpgroups).end()
    return Play(items, workers.sm_count, item, addition, warpgroups).end() / free - 1


class PlayedOnce:
    """Answers as waited_share, and keeps the answers: many records have the same calls, and playing one takes a second
    or two.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, float] = {}

    def __call__(self, lists: BlockLists, workers: Workers, warpgroups: int = 2) -> float:
        """As waited_share. Lists are the same where all that they hold is."""
        rest = {name: value for name, value in vars(lists).items() if name != "buffer"}
        key = hashlib.sha256(lists.buffer).digest(), repr(rest), workers, warpgroups
        if key not in self._known:
            self._known[key] = waited_share(lists, workers, warpgroups)
        return self._known[key]


def items_of(lists: BlockLists, heads: int, repeats: int) -> list[list[Step]]:
    """The steps of each work item, in the order in which items are taken.

    heads: of keys.  repeats: query heads of each.
    """
    entries, parts, ranks = lists.array("entries"), lists.array("parts"), lists.array("ranks")
    tiles = -(-(entries[:, 0] >> 8) // np.int32(lists.br))
    before = np.append(0, np.cumsum(tiles))
    entry = np.repeat(np.arange(len(entries)), tiles)  # of each tile, as they are walked
    ahead = (
        tiles[entry] - 1 - number_in_run(tiles.astype(np.int64))
    )  # an entry is walked from its last tile on
    query = (entries[entry, 2] // lists.br + ahead).tolist()
    apart = lists.head_ranks if isinstance(lists, OrderedLists) else 0  # head by head where it is not 0
    own = entries[entry, 3] + ahead
    rank = [(ranks[own + i * apart] & ~LAST_ADDITION).tolist() for i in range(repeats)]
    cost = np.where(entries[entry, 0] & KIND == FULL, 1.0, MASKED).tolist()
    first = before[np.minimum(parts[:, 2], len(entries))].tolist()
    queries = max(query, default=0) + 1
    counts = parts[:, 3].tolist()
    found = []
    additions = np.bincount(query, minlength=queries).tolist()  # to each sum of a head
    turn_heads = lists.turn_heads if isinstance(lists, OrderedLists) else heads
    for part, head in taken(lists, heads):
        turn, place = divmod(head, turn_heads)  # a sum has its place behind those of the turns before
        sums = [(place * repeats + i) * queries for i in range(repeats)]
        walked = range(first[part], first[part] + counts[part])
        steps = [
            [(of + query[at], turn * additions[query[at]] + ranks[at], cost[at]) for at in walked]
            for of, ranks in zip(sums, rank, strict=True)
        ]
        found.append([step for group in (steps if apart else zip(*steps, strict=True)) for step in group])
    return found


def taken(lists: BlockLists, heads: int) -> Iterator[tuple[int, int]]:
    """Part and head of each work item, in the order in which items are taken: work_in_turn.cuh."""
    turn_heads = lists.turn_heads if isinstance(lists, OrderedLists) else heads
    early = min(lists.early_heads, heads) if isinstance(lists, OrderedLists) else 0
    yield from _of_sections(range(lists.n_parts), range(early), lists.section)
    second_half = lists.n_parts if early else 0
    for turn in range(early, heads, turn_heads):
        first = 0
        for end in lists.tiers:
            parts = range(second_half + first, second_half + end)
            yield from _of_sections(parts, range(turn, min(turn + turn_heads, heads)), lists.section)
            first = end


def _of_sections(parts: range, heads: range, section: int) -> Iterator[tuple[int, int]]:
    """All of these parts for some heads side by side, then for the next ones."""
    for first in range(0, len(heads), section):
        for part in parts:
            yield from ((part, head) for head in heads[first : first + section])


@dataclass
class _Worker:
    """A multiprocessor. free_at: when each of the last tiles of dQ was taken, None while it waits for its turn."""

    free_at: list[float | None]
    steps: Iterator[Step] = field(default_factory=lambda: iter(()))
    turn: int = 0
    held: tuple[float, Step] | None = None  # when it could have gone on, and with what
    wants: float | None = (
        None  # since when it could take the next item, but for additions that wait for their turn
    )


class Play:
    """A launch that is played. items: as items_of.  item: what an item takes beside its tiles.  addition: from its
    beginning until the next one to the same sum may begin; None where sums have no order.  warpgroups: as waited_share.
    """

    def __init__(
        self, items: list[list[Step]], sm_count: int, item: float, addition: float | None, warpgroups: int = 2
    ) -> None:
        self._items, self._item, self._addition = iter(items), item, addition
        self._workers = [_Worker([0.0] * warpgroups) for _ in range(sm_count)]
        self._done: list[
            tuple[float, int, int, Step]
        ] = []  # tiles that will be done: when, by whom, whose turn
        self._next: dict[int, int] = {}  # additions that a sum has had
        self._ready: dict[int, float] = {}  # when the next one may begin
        self._waiting: dict[tuple[int, int], tuple[float, int, int]] = {}
        self._last = 0.0

    def end(self) -> float:
        """When the last tile is done, or added."""
        for number in range(len(self._workers)):
            self._go_on(number, 0.0)
        while self._done:
            time, number, turn, (place, rank, _) = heapq.heappop(self._done)
            if turn == _NEXT_ITEM:
                self._go_on(number, time)
                continue
            self._last = max(self._last, time)
            if self._addition is not None:
                self._workers[number].free_at[turn] = None
                if self._next.get(place, 0) == rank:
                    self._add(place, rank, (time, number, turn))
                else:
                    self._waiting[place, rank] = (time, number, turn)
            self._go_on(number, time)
        if self._waiting:
            raise AssertionError(f"{len(self._waiting)} additions wait for ever")
        return self._last

    def _go_on(self, number: int, time: float) -> None:
        """The next tile of a multiprocessor that is free at a time, or of its next item."""
        worker = self._workers[number]
        step = next(worker.steps, None)
        if step is None and self._addition is not None and None in worker.free_at:
            worker.wants = time
            return
        while step is None:
            item = next(self._items, None)
            if item is None:
                return
            worker.steps, time = iter(item), time + self._item
            step = next(worker.steps, None)
        self._work(number, time, step)

    def _work(self, number: int, time: float, step: Step) -> None:
        worker = self._workers[number]
        free_at = worker.free_at[worker.turn]
        if free_at is None:
            worker.held = time, step
            return
        heapq.heappush(self._done, (max(time, free_at) + step[2], number, worker.turn, step))
        worker.turn = (worker.turn + 1) % len(worker.free_at)

    def _add(self, place: int, rank: int, who: tuple[float, int, int]) -> None:
        """This addition, and those that wait for it."""
        found: tuple[float, int, int] | None = who
        while found is not None:
            time, number, turn = found
            begin = max(time, self._ready.get(place, 0.0))
            self._ready[place] = begin + (self._addition or 0.0)
            self._last = max(self._last, begin)
            rank += 1
            self._next[place] = rank
            worker = self._workers[number]
            worker.free_at[turn] = begin
            if worker.held is not None and worker.turn == turn:
                held, worker.held = worker.held, None
                self._work(number, *held)
            elif worker.wants is not None and None not in worker.free_at:
                wants, worker.wants = worker.wants, None
                heapq.heappush(self._done, (max(wants, begin), number, _NEXT_ITEM, (0, 0, 0.0)))
            found = self._waiting.pop((place, rank), None)
