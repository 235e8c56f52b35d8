"""What a backward pass reads and writes, by who does it: a part of its cost model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from omnicupy.call.problem import Problem
from omnicupy.choose.prediction import ELEMENT_BYTES
from omnicupy.jit.backward_kernel import MAKES_ALL, BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows
from omnicupy.masks.mask import Mask
from omnicupy.masks.transpose import dead_rows

STATISTICS_BYTES = 4  # of lse, lse2 and delta, each, and of an element of the sums of dQ


class Traffic(NamedTuple):
    """Megabytes. prepared, converted: that the launches ahead of the kernels which walk tiles and behind them read and
    write.  beside: the same of a warp that does so inside of such a kernel.  megabytes: that these kernels must fetch
    from memory and store.
    """

    prepared: float
    converted: float
    beside: float
    megabytes: float


def traffic(
    spec: BackwardSpec, problem: Problem, mask: Mask, keys: str, *, prepares: bool, wanted: Sequence[str]
) -> Traffic:
    """Of the pass whose kernel `keys` makes dK and dV. prepares: it makes lse2 and delta, too.  wanted: gradients."""
    rows = problem.batch * problem.q_heads * problem.q_len
    prepared = copied_bytes(problem, mask)
    prepared += 2 * ELEMENT_BYTES * rows * problem.value_dim + 3 * STATISTICS_BYTES * rows
    converted = beside = 0
    if spec.part(keys).part in MAKES_ALL:  # sums are read, dQ is written
        converted = (STATISTICS_BYTES + ELEMENT_BYTES) * rows * spec.head_dim
    operands = _operand_bytes(problem, wanted, spec.part(keys))
    if prepares:
        operands, beside, prepared = operands + prepared, prepared, 0
    if spec.part(keys).finishes:
        beside, converted = beside + converted, 0
    elif converted:  # zeros are written
        padded = problem.batch * problem.q_heads * padded_rows(problem.q_len)
        prepared += STATISTICS_BYTES * padded * spec.head_dim
    return Traffic(*(of / 1e6 for of in (prepared, converted, beside, operands)))


def copied_bytes(problem: Problem, mask: Mask) -> int:
    """Of the copies that the launch ahead makes: Q and dO where rows see no key, K and V where no row sees a key."""
    width = problem.head_dim + problem.value_dim
    blocks = mask.blocks(128, 128)
    found = 0
    if dead_rows(blocks).any():
        found += 2 * ELEMENT_BYTES * problem.batch * problem.q_heads * problem.q_len * width
    if blocks.mask.dead_keys().any():
        found += 2 * ELEMENT_BYTES * problem.batch * problem.kv_heads * problem.k_len * width
    return found


def _operand_bytes(problem: Problem, wanted: Sequence[str], keys: BackwardKernel) -> int:
    """Of q, dO, k and v, of the gradients that the kernels store, and of sums of dQ, which are fetched and stored."""
    q_rows, k_rows = problem.q_heads * problem.q_len, problem.kv_heads * problem.k_len
    width = problem.head_dim + problem.value_dim
    of_sums = 2 * STATISTICS_BYTES // ELEMENT_BYTES
    # Who makes dQ of them stores it, too; what is read for that is in L2 still.
    each = of_sums + bool(keys.finishes) if keys.part in MAKES_ALL else 1
    stored = each * q_rows * problem.head_dim if "q" in wanted else 0
    stored += k_rows * (problem.head_dim * ("k" in wanted) + problem.value_dim * ("v" in wanted))
    return ELEMENT_BYTES * problem.batch * ((q_rows + k_rows) * width + stored)
