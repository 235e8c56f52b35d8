"""Thread blocks of the launches of a backward pass, and sections of heads."""

from __future__ import annotations

from dataclasses import dataclass

from omnicupy.call.problem import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.jit.backward_spec import padded_rows
from omnicupy.schedule.grid import MAX_GRID_X
from omnicupy.schedule.parts import Workers


@dataclass(frozen=True)
class BackwardGrid:
    """How the work of one kernel of a backward pass is laid over a device.

    masks: how many there are, 1 or one a batch element.
    """

    kernel: BackwardKernel
    problem: Problem
    masks: int
    sm_count: int
    l2_bytes: int

    @property
    def heads(self) -> int:
        """Heads of a batch element that a part of the mask is worked on for: of keys, or of queries."""
        return self.problem.q_heads if self.kernel.part == "dq" else self.problem.kv_heads

    @property
    def workers(self) -> Workers:
        """Who works on each block of queries or keys."""
        return Workers(self.heads * self.problem.batch // self.masks, self.sm_count)

    def work_items(self, parts: int) -> int:
        """Parts, under all masks, times the heads that work on each."""
        return parts * self.workers.heads

    def thread_blocks(self, parts: int, copies_keys: bool = False) -> tuple[int, int, int]:
        """The grid of a launch. Raises UnsupportedError when there are more than a launch may have.

        parts: of the lists, under all masks.  copies_keys: the launch that prepares copies k or v.
        """
        kernel, problem = self.kernel, self.problem
        if kernel.part == "prepare":
            rows = kernel.prepared_rows
            blocks = problem.batch * problem.q_heads * -(-padded_rows(problem.q_len) // rows)
            if copies_keys:
                blocks += problem.batch * problem.kv_heads * -(-problem.k_len // rows)
        elif kernel.part == "convert":
            blocks = problem.batch * problem.q_heads * -(-problem.q_len // kernel.br)
        elif kernel.kernel == "naive":
            tokens = problem.k_len if kernel.part == "dkdv" else problem.q_len
            blocks = problem.batch * self.heads * tokens
        else:
            blocks = self.work_items(parts)
        if blocks > MAX_GRID_X:
            raise UnsupportedError(
                f"attention_backward: {blocks} thread blocks exceed a launch's {MAX_GRID_X}; split the batch"
            )
        if kernel.params == "bwd_sm90":
            return min(blocks, self.sm_count), 1, 1
        return blocks, kernel.column_blocks, 1

    def section(self, parts: int) -> int:
        """Heads worked on side by side: as many as give each multiprocessor a part.

        Never more than have in half of the L2 what their parts read again and again: K and V for dQ, of whole groups of
        query heads; Q and dO for dK and dV.
        """
        problem = self.problem
        enough = max(1, round(self.sm_count / max(1, parts)))
        heads = self.workers.heads
        row_bytes = 2 * 2 * problem.head_dim
        if self.kernel.part != "dq":
            head_bytes = row_bytes * problem.q_len * problem.group
            return min(heads, enough, max(1, self.l2_bytes // 2 // (self.masks * head_bytes)))
        group = problem.group
        fit = self.l2_bytes // 2 // (self.masks * row_bytes * problem.k_len)
        return min(heads, group * max(1, min(-(-enough // group), fit)))
