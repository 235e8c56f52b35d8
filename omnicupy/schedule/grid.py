"""Thread blocks of a launch, sections of heads, and heads that share a tile: asked once, by plans and predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec, round_up
from omnicupy.jit.widths import kernel_widths
from omnicupy.schedule.parts import LEAVE, PACKED_LEAVE, PACKED_UNIT, Workers

MAX_GRID_X = 2**31 - 1
MOST_PARTIAL_BYTES = 32 * 2**20  # of unfinished rows in one launch, unless `split` asks for more
MOST_ROWS = 2**31 - 1  # of all tokens, packed: kernels count them in 32 bits


@dataclass(frozen=True)
class Grid:
    """How the work of a call is laid over a device.

    problem: the call's.  masks: how many there are, 1 or one a batch element.  tile_heads: heads of a batch element,
    those that share a tile counted as one.  tile_group: those of them that share one head of keys.  workers: who works
    on each block row.
    """

    spec: AttnSpec
    problem: Problem
    masks: int
    tile_heads: int
    tile_group: int
    workers: Workers
    l2_bytes: int

    @classmethod
    def of(
        cls,
        spec: AttnSpec,
        problem: Problem,
        masks: int,
        *,
        sm_count: int,
        l2_bytes: int,
        split: int | None = None,
    ) -> Grid:
        """The grid on a device of `sm_count` multiprocessors and an L2 cache of `l2_bytes`.

        split: keys of a part of each row, None where the schedule cuts as it sees fit.
        Raises ValueError where the heads of a group do not fill the tiles of `spec`, where `split` is no whole number
        of tiles, where packed rows cannot be counted, and where `spec` is for other widths.
        """
        if (spec.head_dim, spec.value_dim) != (wanted := kernel_widths(problem.head_dim, problem.value_dim)):
            raise ValueError(
                f"config must have head_dim {wanted[0]} and value_dim {wanted[1]} for q of {problem.head_dim} columns "
                f"and v of {problem.value_dim}, got {spec.head_dim} and {spec.value_dim}"
            )
        sm_count *= spec.blocks
        if split is not None and split % spec.bc:
            raise ValueError(
                f"split must be a multiple of {spec.bc}, the keys of a tile of the kernel that runs ({spec}), "
                f"got {split}"
            )
        if spec.pack and spec.pack_heads(problem.group) * max(problem.q_len, problem.k_len) > MOST_ROWS:
            raise ValueError(
                f"config: pack=True counts at most {MOST_ROWS} rows of heads and tokens, got "
                f"{spec.pack_heads(problem.group)} heads of {max(problem.q_len, problem.k_len)} tokens; "
                "take pack=False"
            )
        if problem.group % spec.heads:
            raise ValueError(
                f"config: br={spec.br} with warps={spec.warps} puts {spec.heads} query heads of one group into a "
                f"tile, but a group has {problem.group}; take warps={spec.br // 16 + 4}"
            )
        heads = problem.kv_heads * spec.packs(problem.group) if spec.pack else problem.q_heads // spec.heads
        tiled = replace(problem, q_heads=heads)
        all_heads = tiled.q_heads * problem.batch
        # Only the Hopper kernel may split rows, as far as the merge may use memory.
        splits = spec.kernel == "sm90"
        slots = MOST_PARTIAL_BYTES // (all_heads * part_bytes(spec, problem)) if splits else 0
        leave = (
            PACKED_LEAVE * PACKED_UNIT / (2 * spec.bc * (spec.head_dim + spec.value_dim))
            if spec.pack
            else LEAVE
        )
        split_tiles = (split or 0) // spec.bc if splits else 0
        workers = Workers(all_heads // masks, sm_count, slots, leave=leave, split_tiles=split_tiles)
        return cls(spec, problem, masks, tiled.q_heads, tiled.group, workers, l2_bytes)

    @property
    def tokens(self) -> int:
        """Query tokens of a tile."""
        return self.spec.tokens(self.problem.group)

    @property
    def packed(self) -> dict[str, int]:
        """What the parameter struct says about packed tiles."""
        spec, group = self.spec, self.problem.group
        return {
            "pack_heads": spec.pack_heads(group),
            "pack_tokens": self.tokens,
            "packs": spec.packs(group),
            "part_rows": part_rows(spec, self.problem),
        }

    def work_items(self, parts: int) -> int:
        """Parts of block rows, under all masks, times the heads that work on each."""
        return parts * self.workers.heads

    def thread_blocks(self, parts: int) -> tuple[int, int, int]:
        """The grid of a launch. The persistent kernel gets one block a multiprocessor, or fewer when there are fewer
        work items. Raises UnsupportedError when there are more than a launch may have.

        parts: of block rows, under all masks.
        """
        spec, problem = self.spec, self.problem
        if spec.kernel == "naive":
            grid = (problem.q_len * problem.q_heads * problem.batch, 1, 1)
        else:
            grid = (self.work_items(parts), spec.value_pieces, 1)
        if grid[0] > MAX_GRID_X:
            raise UnsupportedError(
                f"q: {grid[0]} thread blocks exceed a launch's {MAX_GRID_X}; split the batch"
            )
        return (min(grid[0], self.workers.sm_count), 1, 1) if spec.kernel == "sm90" else grid

    def section(self, parts: int) -> int:
        """Query heads worked on side by side: whole groups, as many as give each multiprocessor a part of their block
        rows; heads that share a tile count as one.

        More of them would ask for K and V of many heads at once, all at once from memory (docs/design.md).
        Never more than have their K and V, under all masks, in half of the L2.  Of packed tiles that all run at once
        one group: else those that read the same keys would be far apart in the list.  parts: as in `thread_blocks`.
        """
        problem, group = self.problem, self.tile_group
        if self.spec.pack and self.work_items(parts) <= self.workers.sm_count:
            return group
        heads = self.tile_heads * (problem.batch // self.masks)
        # K and V of one key head, 2 bytes an element.
        head_bytes = 2 * problem.k_len * (problem.head_dim + problem.value_dim)
        enough = -(-max(1, round(self.workers.sm_count / max(1, parts))) // group)
        return min(heads, group * max(1, min(enough, self.l2_bytes // 2 // (self.masks * head_bytes))))

    def partials(self, n_slots: int, n_split_rows: int) -> tuple[int, int]:
        """Bytes of unfinished rows, and counters of parts that have arrived, where rows are split.

        n_slots: parts of split rows.  n_split_rows: split rows.
        """
        heads = self.tile_heads * self.problem.batch
        warps = 1 if self.spec.pack else self.spec.rows // 16  # that arrive on their own
        return heads * n_slots * part_bytes(self.spec, self.problem), heads * n_split_rows * warps


def part_rows(spec: AttnSpec, problem: Problem) -> int:
    """Rows that a part of a split row has room for: of packed tiles those that may be live, an even number."""
    if not spec.pack:
        return spec.rows
    return round_up(min(spec.tokens(problem.group), problem.q_len) * spec.pack_heads(problem.group), 2)


def part_bytes(spec: AttnSpec, problem: Problem) -> int:
    """What one part of a split row leaves: O in float32, and for each row its row_max and sum; for each lane of a row
    where tiles are not packed.
    """
    each = spec.value_dim + (2 if spec.pack else 8)
    return 4 * part_rows(spec, problem) * each
