"""Thread blocks of a launch, sections of heads, and heads that share a tile: asked once, by plans and predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.parts import Workers

MAX_GRID_X = 2**31 - 1
MOST_PARTIAL_BYTES = 32 * 2**20  # of unfinished rows in one launch


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
    def of(cls, spec: AttnSpec, problem: Problem, masks: int, *, sm_count: int, l2_bytes: int) -> Grid:
        """The grid on a device of `sm_count` multiprocessors and an L2 cache of `l2_bytes`.

        Raises ValueError where the heads of a group do not fill the tiles of `spec`.
        """
        if problem.group % spec.heads:
            raise ValueError(
                f"config: br={spec.br} with warps={spec.warps} puts {spec.heads} query heads of one group into a "
                f"tile, but a group has {problem.group}; take warps={spec.br // 16 + 4}"
            )
        tiled = replace(problem, q_heads=problem.q_heads // spec.heads)
        all_heads = tiled.q_heads * problem.batch
        # Only the Hopper kernel may split rows, as far as the merge may use memory.
        slots = MOST_PARTIAL_BYTES // (all_heads * partial_bytes(spec)) if spec.kernel == "sm90" else 0
        workers = Workers(all_heads // masks, sm_count, slots)
        return cls(spec, problem, masks, tiled.q_heads, tiled.group, workers, l2_bytes)

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
        Never more than have their K and V, under all masks, in half of the L2.  parts: as in `thread_blocks`.
        """
        problem, group = self.problem, self.tile_group
        heads = self.tile_heads * (problem.batch // self.masks)
        head_bytes = 2 * 2 * problem.k_len * problem.head_dim  # K and V of one key head, 2 bytes an element
        enough = -(-max(1, round(self.workers.sm_count / max(1, parts))) // group)
        return min(heads, group * max(1, min(enough, self.l2_bytes // 2 // (self.masks * head_bytes))))

    def partials(self, n_slots: int, n_split_rows: int) -> tuple[int, int]:
        """Bytes of unfinished rows, and counters of parts that have arrived, where rows are split.

        n_slots: parts of split rows.  n_split_rows: split rows.
        """
        heads = self.tile_heads * self.problem.batch
        return heads * n_slots * partial_bytes(self.spec), heads * n_split_rows * (self.spec.rows // 16)


def partial_bytes(spec: AttnSpec) -> int:
    """What one part of a split row leaves: O in float32, and for each row and lane its row_max and sum."""
    return spec.rows // 16 * (spec.head_dim // 8 + 1) * 32 * 16
