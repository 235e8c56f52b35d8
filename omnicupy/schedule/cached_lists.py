"""Block lists of calls on caches: how large they may become, where they lie, and what the planner is launched with.

The lists themselves are written on the device (kernels/attention_plan_cached.cu), from lengths that nobody else knows:
here are the bounds, which follow from the capacity alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.params import PLAN_PARAMS, RAGGED_PLAN_PARAMS
from omnicupy.jit.plan_spec import MOST_ROWS, THREADS
from omnicupy.jit.spec import AttnSpec, round_up
from omnicupy.masks.mask import Mask
from omnicupy.schedule.block_lists import ALIGN_BYTES, KEY_PAD
from omnicupy.schedule.grid import Grid
from omnicupy.schedule.parts import ITEM, LEAST_TILES, LEAVE, MOST_PARTS
from omnicupy.schedule.pieces import MOST_KEYS
from omnicupy.serving.rule import CachedRule

MOST_SEQUENCES = 1024
MOST_BYTES = 1 << 30  # of all lists
_WARPS = THREADS // 32
# What the planner writes: bytes of an element.
_BYTES = {
    "row_offsets": 4,
    "entries": 16,
    "parts": 16,
    "splits": 16,
    "bit_tiles": 4,
    "dead": 4,
    "row_ranges": 8,
    "n_parts": 16,
}


def grid_of(
    spec: AttnSpec, problem: Problem, *, sm_count: int, l2_bytes: int, split: int | None = None
) -> Grid:
    """The grid of a call on caches, each sequence with a mask of its own; arguments and errors as of `Grid.of`.

    Raises UnsupportedError where the kernel for few rows is given more.
    """
    if isinstance(spec, FewRowsSpec):
        spec.check(problem.group, problem.q_len, problem.head_dim)
    return Grid.of(spec, problem, problem.batch, sm_count=sm_count, l2_bytes=l2_bytes, split=split)


@dataclass(frozen=True)
class CachedLists:
    """The block lists of a call on a cache, for any lengths up to its capacity.

    rule: which keys rows see.  batch, q_len, capacity: sequences, rows and keys of each.  br, bc: the kernel's tile,
    in tokens.
    heads: of a sequence that work on each part; those that share a tile count as one.  sm_count: multiprocessors.
    item: what a part costs beside its tiles, in tiles.  leave: what one of a split row costs besides.
    most_cuts: parts of a row, at most.
    split_slots: parts of split rows that the merge has memory for; 0: rows are not split.  split_tiles: tiles of each
    part but the last one of a row, whatever else there is to do; 0: the planner cuts as it sees fit.  in_order: parts
    are whole rows, in their order, as the plain kernel takes them.  total_rows: of all sequences, where each has a
    number of its own, of which q_len is the most; None where all have q_len.
    Raises UnsupportedError for more sequences, keys, parts or bytes than the lists can hold.
    """

    rule: CachedRule
    batch: int
    q_len: int
    capacity: int
    br: int
    bc: int
    heads: int
    sm_count: int
    leave: float = LEAVE
    item: float = ITEM
    most_cuts: int = MOST_PARTS
    split_slots: int = 0
    split_tiles: int = 0
    in_order: bool = False
    total_rows: int | None = None

    def __post_init__(self) -> None:
        if self.batch > MOST_SEQUENCES:
            raise UnsupportedError(
                f"k: a CachedKV of {self.batch} sequences exceeds the {MOST_SEQUENCES} that are planned at once; split "
                "the batch"
            )
        if self.capacity > MOST_KEYS // 2:
            raise UnsupportedError(
                f"k: a CachedKV of {self.capacity} keys exceeds {MOST_KEYS // 2}; make it shorter"
            )
        if self.keeps_order and not self.in_order and self.most_parts_of_row > 1:
            raise UnsupportedError(
                f"split: {self.rows} blocks of {self.br} rows exceed the {MOST_ROWS} that can be cut; give fewer rows "
                "or sequences at a time, or leave split out"
            )
        if self.batch * self.heads * self.slots >= 1 << 31:
            raise UnsupportedError(
                f"split: {self.slots} parts of {self.batch} sequences, {self.heads} heads each, cannot be counted in "
                "32 bits; take a larger split"
            )
        if self.nbytes > MOST_BYTES:
            raise UnsupportedError(
                f"q: {self.q_len} rows of {self.batch} sequences need {self.nbytes} bytes of block lists, more than "
                f"{MOST_BYTES}; give fewer rows at a time"
            )

    @property
    def q_blocks(self) -> int:
        """Blocks of rows of a sequence."""
        return -(-self.q_len // self.br)

    @property
    def rows(self) -> int:
        """Blocks of rows of all sequences."""
        return self.batch * self.q_blocks

    @property
    def keeps_order(self) -> bool:
        """Whether parts are whole rows, in their order: where there are too many to put them in another one, too."""
        return self.in_order or self.rows > MOST_ROWS

    @property
    def slots(self) -> int:
        """Parts of split rows that there may be."""
        if self.keeps_order:
            return 0
        if not self.split_tiles:
            return self.split_slots
        most = self.most_parts_of_row
        return self.rows * most if most > 1 else 0

    @property
    def most_parts_of_row(self) -> int:
        """Parts of `split_tiles` tiles that a block of rows may be cut into, 1 where the planner is free."""
        if not self.split_tiles:
            return 1
        tiles = -(-self.capacity // self.bc)
        if self.window:
            own = min(self.br, self.q_len) if self.rule.tail is None else self.q_len
            tiles = min(tiles, (self.window + own) // self.bc + 2 + -(-self.rule.sink // self.bc))
        return -(-tiles // self.split_tiles)

    @property
    def most_parts(self) -> int:
        """Parts that there may be: of unsplit rows, and of split ones."""
        return self.rows + self.slots

    @property
    def window(self) -> int:
        """Keys of the window; 0 where it hides nothing."""
        width = self.rule.window
        return 0 if width is None or width >= self.capacity else width

    @cached_property
    def most_partial(self) -> int:
        """Tiles of a block of rows that may be PARTIAL.

        Without a tail: those that the diagonal crosses; behind a window also those that its edge and the sink's end
        cross. With one: those that hold the last keys, and these edges.
        """
        crossed = -(-min(self.br, self.q_len) // self.bc)
        edges = 2 * crossed + 5 if self.window else 0
        if self.rule.tail is None:
            return crossed + 2 + edges
        return -(-self.q_len // self.bc) + 2 + edges

    @property
    def most_entries(self) -> int:
        """Entries of a part: two runs of FULL tiles, one of them cut where rescaling turns lazy, and single tiles."""
        return self.most_partial + 3

    @property
    def k_padded(self) -> int:
        """Keys that have a bit in `dead`, of each sequence."""
        return round_up(round_up(self.capacity, self.bc), KEY_PAD)

    @cached_property
    def shapes(self) -> dict[str, int]:
        """Elements of each array that the planner writes."""
        ragged = {} if self.total_rows is None else {"row_ranges": self.batch}
        return {
            "row_offsets": self.rows + 1,
            "entries": self.most_parts * self.most_entries,
            "parts": self.most_parts,
            "splits": self.most_parts,
            "bit_tiles": self.rows * self.most_partial * self.br * (self.bc // 32),
            "dead": self.batch * (self.k_padded // 32),
            **ragged,
            "n_parts": 1,
        }

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each array lies in one buffer, in bytes."""
        found, at = {}, 0
        for name, count in self.shapes.items():
            found[name] = at
            at += round_up(count * _BYTES[name], ALIGN_BYTES)
        return found

    @cached_property
    def nbytes(self) -> int:
        """Of the buffer."""
        return self.offsets["n_parts"] + _BYTES["n_parts"]

    @property
    def thread_blocks(self) -> int:
        """Of the planner: a warp for each row that is cut into parts, and one for its bits; in order the same one."""
        return min(-(-self.rows // _WARPS), self.sm_count) * (1 if self.keeps_order else 2)

    def params(self) -> NDArray[np.void]:
        """The planner's struct, with null pointers."""
        tail = self.rule.tail
        record = np.zeros(1, PLAN_PARAMS if self.total_rows is None else RAGGED_PLAN_PARAMS)
        values = {
            "leave": self.leave,
            "of_key": 1 / self.bc,
            "window": self.window,
            "sink": min(self.rule.sink, self.capacity),
            "tail_masks": len(tail or ()),
            "tail_words": tail_words(self.q_len),
            "in_order": self.keeps_order,
            "split_slots": self.slots,
            "least_tiles": LEAST_TILES,
            "total": self.total_rows,
        }
        for name in record.dtype.names or ():
            if name in values or hasattr(self, name):
                record[name] = values[name] if name in values else getattr(self, name)
        return record


def tail_words(q_len: int) -> int:
    """Words of 32 keys of a row of a tail."""
    return -(-q_len // 32)


def tail_arrays(masks: Sequence[Mask], q_len: int, br: int) -> dict[str, NDArray[np.uint32]]:
    """A tail's masks as the planner reads them: "tail", "tail_any" and "tail_all" of PlanParams."""
    words, blocks = tail_words(q_len), -(-q_len // br)
    rows = np.zeros((len(masks), q_len, words), np.uint32)
    seen = np.zeros((len(masks), blocks + 1, words), np.uint32)
    whole = np.zeros((len(masks), blocks, words), np.uint32)
    for i, mask in enumerate(masks):
        for q0 in range(0, q_len, br):
            q1 = min(q0 + br, q_len)
            dense = np.zeros((q1 - q0, 32 * words), np.bool_)
            dense[:, :q_len] = mask.dense(q0, q1, 0, q_len)
            rows[i, q0:q1] = _packed(dense)
            seen[i, q0 // br] = _packed(np.logical_or.reduce(dense, axis=0))
            whole[i, q0 // br] = _packed(np.logical_and.reduce(dense, axis=0))
        seen[i, blocks] = np.bitwise_or.reduce(seen[i, :blocks], axis=0)
    return {"tail": rows, "tail_any": seen, "tail_all": whole}


def _packed(dense: NDArray[np.bool_]) -> NDArray[np.uint32]:
    return np.packbits(dense, axis=-1, bitorder="little").view("<u4")
