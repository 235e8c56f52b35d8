"""Which compiled variant a call gets: the first matching row of the table, the cheapest of those that compete, or the
user's choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, ceilings, classes, paged, prediction, saved, table
from omnicupy.choose.capped import capped
from omnicupy.choose.ceilings import TileCost
from omnicupy.choose.table import Row
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.jit.widths import kernel_widths
from omnicupy.masks.mask import Mask

FEW_ROWS = 64  # query rows that a small tile holds
# Key tiles from which the Hopper kernel fills the device by splitting rows rather than by small tiles.
SPLIT_TILES = 16
# Block rows a multiprocessor from which on variants for short ones were measured (docs/tries.md).
ENOUGH_ROWS = 4
# Parts that a key head is cut into, about, up to which a tile of two warpgroups pays: the thread block that comes last
# merges the rows of all of them. Measured at 2, 8 and 33 parts (docs/tries.md).
MOST_PAIR_PARTS = 9
WORTH_A_CUT = 0.05  # of a call's time: cutting the mask for another tile must promise to save as much
# Kernels that calls without `config` may get. A kernel is served only while tests/attestation.json covers it as it
# stands (a test compares them); until then it is reached by an explicit config.
SERVED: frozenset[str] = frozenset({"sm80", "sm90"})


def pick(
    arch: str,
    problem: Problem,
    masks: Sequence[Mask],
    sm_count: int,
    *,
    mappable: bool = True,
    split: int | None = None,
    cached: bool = False,
) -> AttnSpec:
    """The variant for a call: `masks` as in check.Call, `sm_count` multiprocessors on the device.

    mappable: a tensor map can hold q, k and v, as kernel sm90 needs; where not, kernel sm80 serves.  split: keys of a
    part; unless it is None, neither the batch nor the device's size nor the masks decide, and rows have one choice.
    cached: keys are in a cache.

    Raises UnsupportedError when no row serves the architecture, dtype and widths.
    """
    if cached:
        problem = replace(problem, k_len=paged.counted(problem.k_len))
    spec = _pick(arch, problem, masks, sm_count, mappable, split)
    if problem.softcap:
        spec = capped(spec)
    elif not cached and split is None:
        spec = _short(arch, spec, problem, masks, sm_count)
    return spec if cached else paged.for_masks(spec, problem, masks, sm_count, split)


def _pick(
    arch: str, problem: Problem, masks: Sequence[Mask], sm_count: int, mappable: bool, split: int | None
) -> AttnSpec:
    """The same where scores are not capped."""
    widths = kernel_widths(problem.head_dim, problem.value_dim)
    rows = [
        row
        for row in table.TABLE
        if row.serves(arch, problem.dtype, *widths) and (mappable or row.kernel != "sm90")
    ]
    few = problem.q_len <= FEW_ROWS
    shapes = ("shared", "small") if few else ("small",)
    small = [row.spec(arch, problem.dtype, *widths) for row in rows if row.shape in shapes]
    found = next((one for one in small if problem.group % one.heads == 0), None)
    if found is None or not few:  # the masks decide of large tiles alone
        spec = _large(arch, problem, rows, masks, sm_count, split)
        if not few and (split is not None or not _is_small(problem, spec, sm_count)):
            return spec
        found = found or spec
    packed = (row.spec(arch, problem.dtype, *widths) for row in rows if row.shape == "packed" and few)
    found = next((one for one in packed if _fewer_rows(one, found, problem)), found)
    pairs = (row for row in rows if found.pack and split is None and _pairs(row, problem, sm_count))
    return next((row.spec(arch, problem.dtype, *widths) for row in pairs), found)


def _large(
    arch: str, problem: Problem, rows: Sequence[Row], masks: Sequence[Mask], sm_count: int, split: int | None
) -> AttnSpec:
    """The variant for calls of many rows. Raises UnsupportedError where no row serves any call."""
    widths = kernel_widths(problem.head_dim, problem.value_dim)
    share = problem.q_heads * problem.batch / len(masks) / sm_count
    of_any = [row for row in rows if row.shape == "any"]
    large = _cheapest(of_any if split is None else of_any[:1], max(widths), masks, share)
    if large is None:
        raise UnsupportedError(
            f"no kernel serves {problem.dtype} with head_dim {problem.head_dim} on {arch}; cast q, k and v"
        )
    return large.spec(arch, problem.dtype, *widths)


def _cheapest(rows: Sequence[Row], columns: int, masks: Sequence[Mask], share: float) -> Row | None:
    """The first row, or of the rows that compete with it the one under which the call takes least. None of none.

    The masks are cut for a row only if that could save WORTH_A_CUT of the time: a cut takes longer than the rest of the
    choice.  columns: of the wider of keys and values.  share: heads that a multiprocessor works on, for each mask.
    """
    competing = list(takewhile(lambda row: row.competes, rows))
    if len(competing) < 2:
        return rows[0] if rows else None

    def time(cost: TileCost) -> float:
        return prediction.tile_us(cost, [mask.blocks(cost.br, cost.bc) for mask in masks], share)

    costs = [ceilings.tile_cost(row.kernel, columns, row.br, row.bc) for row in competing]
    best, shortest = competing[0], time(costs[0])
    for row, cost in zip(competing[1:], costs[1:], strict=True):
        if (
            prediction.least_tile_us(cost, masks, share) < (1 - WORTH_A_CUT) * shortest
            and (us := time(cost)) < shortest
        ):
            best, shortest = row, us
    return best


def _short(arch: str, spec: AttnSpec, problem: Problem, masks: Sequence[Mask], sm_count: int) -> AttnSpec:
    """The variant of a row for short block rows that takes the place of `spec`, where one does, and multiprocessors
    have several block rows each.
    """
    if spec.kernel != "sm90" or _block_rows(problem, spec) < ENOUGH_ROWS * sm_count:
        return spec
    widths = (spec.head_dim, spec.value_dim)
    share = sum(mask.pairs for mask in masks) / max(1, sum(math.prod(mask.shape) for mask in masks))
    for row in table.TABLE:
        if (
            row.shape == "short"
            and (spec.br, spec.bc) in row.instead_of
            and row.serves(arch, problem.dtype, *widths)
            and problem.k_len <= (row.most_keys or problem.k_len)
            and share <= row.most_density
            and (row.most_row_keys is None or _see_at_most(row.most_row_keys, masks))
        ):
            return row.spec(arch, problem.dtype, *widths)
    return spec


def _see_at_most(keys: int, masks: Sequence[Mask]) -> bool:
    """Do rows see at most so many keys in the mean, also where many rows see none? Known of masks of intervals.

    The mean is over rows, and over pairs: a few long rows beside many short ones decide the time. Rows that see a key
    stand for keys that a row sees, which masks do not count.
    """
    if sum(mask.pairs for mask in masks) > keys * sum(mask.shape[0] for mask in masks):
        return False
    if any(mask.intervals is None for mask in masks):
        return False
    counts = [mask.key_counts() for mask in masks]
    return sum(int((of * of).sum()) for of in counts) <= keys * sum(int(of.sum()) for of in counts)


def _block_rows(problem: Problem, spec: AttnSpec) -> int:
    """Of all heads."""
    return problem.batch * problem.q_heads * -(-problem.q_len // spec.br)


def _fewer_rows(packed: AttnSpec, other: AttnSpec, problem: Problem) -> bool:
    """Are the heads of a group in fewer tile rows when they are packed, or all in one tile? A lone head never: there is
    nothing to share (16 heads of D 64 on 131,072 keys each took 226 us packed, 188 us as they are).
    """
    group, q_len = problem.group, problem.q_len
    tiles = packed.packs(group) * -(-q_len // packed.tokens(group))
    others = group // other.heads * -(-q_len // other.br) * other.rows
    return group > 1 and (tiles == 1 or tiles * packed.rows < others)


def _pairs(row: Row, problem: Problem, sm_count: int) -> bool:
    """Does the row have packed tiles of two warpgroups, for as many rows as a key head of the call has, and pay?"""
    least, most = row.group_rows
    few_parts = MOST_PAIR_PARTS * problem.batch * problem.kv_heads >= sm_count
    return few_parts and row.shape in ("pair", "turns") and least <= problem.group * problem.q_len <= most


def _is_small(problem: Problem, spec: AttnSpec, sm_count: int) -> bool:
    """Would `spec` leave multiprocessors without work?"""
    blocks = _block_rows(problem, spec) * spec.value_pieces
    splits = spec.kernel == "sm90" and problem.k_len >= SPLIT_TILES * spec.bc
    return blocks < sm_count and not splits


def select(
    arch: str,
    problem: Problem,
    masks: Sequence[Mask],
    sm_count: int,
    *,
    mappable: bool = True,
    split: int | None = None,
    cache: str = classes.NONE,
) -> AttnSpec:
    """The variant that the user's tuned choices name, else `pick`'s, held to the kernels that are served, or that for
    few rows which takes its place. cache: the kind of cache that keys are in, as in classes.ProblemClass.

    A tuned choice whose kernel is not served, that needs tensor maps where none can be, or whose tiles hold more heads
    than the problem's groups fill, is left out; so is any where there is a `split`, as it depends on the batch.
    Raises UnsupportedError when the kernel of `pick` is not served.
    """
    chosen = saved.find(problem, masks, sm_count, cache=cache) if split is None else None
    if (
        chosen is not None
        and chosen.kernel in SERVED
        and (mappable or chosen.kernel != "sm90")
        and problem.group % chosen.heads == 0
    ):
        return chosen
    spec = pick(arch, problem, masks, sm_count, mappable=mappable, split=split, cached=bool(cache))
    if spec.kernel not in SERVED:
        raise UnsupportedError(
            f"kernel {spec.kernel!r} would serve this call, but no attestation covers it as it stands; verify it on "
            f"this GPU (`python cli.py verify --kernel {spec.kernel}`) and ask for it: config={spec!r}"
        )
    return paged.for_16_bits(spec, problem, sm_count, split) if cache else spec


@contextmanager
def serve_every_kernel() -> Iterator[None]:
    """Serve every kernel of the table for a while, and no tuned choice: for verification and measurement, which
    come before attesting.
    """
    global SERVED
    before, of_backward = SERVED, backward_table.SERVED
    SERVED = frozenset(row.kernel for row in table.TABLE)
    backward_table.SERVED = frozenset(row.kernel for row in backward_table.TABLE)
    try:
        with saved.without_saved_choices():
            yield
    finally:
        SERVED, backward_table.SERVED = before, of_backward
