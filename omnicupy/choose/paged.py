"""Which variant of a kernel reads keys of few query rows, keys and values in pages, and those of e4m3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omnicupy.call.problem import Problem
from omnicupy.choose.classes import OTHER_PAGES, PAGES, WHOLE
from omnicupy.jit import few_rows_spec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.fp8_spec import converts
from omnicupy.jit.paged_spec import by_boxes
from omnicupy.jit.spec import AttnSpec, round_up
from omnicupy.jit.tile_checks import takes_key_turns
from omnicupy.masks.mask import Mask
from omnicupy.serving.caches import MOST_PAGE

# Warps and thread blocks a multiprocessor where few rows read e4m3 of many sequences, and of few; 16 bits by head_dim.
_OF_E4M3 = (6, 2), (12, 1)
_OF_16_BITS = {64: ((8, 2),), 128: ((12, 1),)}
# Keys of all heads a multiprocessor, by head_dim, from which on few rows of 16 bits have a kernel of their own: with
# fewer, what it adds to a captured step is more than it saves (docs/tries.md).
_ENOUGH_KEYS = {64: 500, 128: 1500}
# Parts that the kernel for few rows cuts a row into, at most (gpu/cached_planning.py), and the share of multiprocessors
# that those of all heads have to reach: one sequence of two key heads would leave half of an H100 idle.
MOST_PARTS, _REACHED = 32, 0.9
# The same as _ENOUGH_KEYS where the host knows the masks, of the widths that were measured so (docs/tries.md), and
# sequences times key heads from which on: of fewer, rows are cut into more parts than were measured.
_ENOUGH_SEEN = {128: 2100}
_ENOUGH_HEADS = 4


def kind_of(page_size: int | None) -> str:
    """The kind of cache that has pages of so many keys, None for one without, as tuned choices have it."""
    if page_size is None:
        return WHOLE
    return PAGES if by_boxes(page_size) else OTHER_PAGES


def counted(k_len: int) -> int:
    """The keys that a sequence may have, as choices count them: in whole pages of the largest size. A cache in pages
    whose size divides that is served as the same keys in one piece are, which may be a few less.
    """
    return round_up(k_len, MOST_PAGE)


def few_rows(spec: AttnSpec, problem: Problem, *, e4m3: bool) -> tuple[FewRowsSpec, ...]:
    """The variants of the kernel for few rows that take a row's place where a call on a cache has few: of e4m3 first
    that for many sequences, then that for few. Empty where none serves. e4m3: keys and values are, else of 16 bits.
    """
    widths = {spec.head_dim, spec.value_dim, problem.head_dim, problem.value_dim}
    rows = problem.group * problem.q_len
    if (
        spec.kernel != "sm90"
        or len(widths) > 1
        or spec.head_dim not in few_rows_spec.HEAD_DIMS
        or rows > few_rows_spec.ROWS
    ):
        return ()
    most = few_rows_spec.FEWER_ROWS if rows <= few_rows_spec.FEWER_ROWS else few_rows_spec.ROWS
    shapes = _OF_E4M3 if e4m3 else _OF_16_BITS[spec.head_dim]
    made = (
        FewRowsSpec.of(spec, compute_warps=warps, blocks=blocks, most_rows=most) for warps, blocks in shapes
    )
    return tuple(one.for_caches(e4m3=e4m3, in_pages=False, ragged=False) for one in made)


def for_16_bits(spec: AttnSpec, problem: Problem, sm_count: int, split: int | None = None) -> AttnSpec:
    """The variant that takes a row's place on caches of 16 bits, in pages or not, where heads and tokens of a key head
    are few rows, the caches may hold enough keys, and parts of them reach the multiprocessors. split: as of for_e4m3.
    """
    of_few = () if split is not None else few_rows(spec, problem, e4m3=False)
    heads = problem.batch * problem.kv_heads
    if not of_few or MOST_PARTS * heads < _REACHED * sm_count:
        return spec
    keys = heads * counted(problem.k_len)
    return of_few[0] if keys >= _ENOUGH_KEYS[spec.head_dim] * sm_count else spec


def for_masks(
    spec: AttnSpec, problem: Problem, masks: Sequence[Mask], sm_count: int, split: int | None = None
) -> AttnSpec:
    """The same of a row's place where the host knows the masks: these say how many keys rows see."""
    of_few = () if split is not None else few_rows(spec, problem, e4m3=False)
    heads = problem.batch * problem.kv_heads
    if not of_few or spec.head_dim not in _ENOUGH_SEEN or heads < _ENOUGH_HEADS:
        return spec
    seen = sum(mask.pairs / max(1, mask.shape[0]) for mask in masks) / len(masks)
    return of_few[0].for_masks() if heads * seen >= _ENOUGH_SEEN[spec.head_dim] * sm_count else spec


def for_e4m3(
    spec: AttnSpec, problem: Problem | None = None, sm_count: int = 1, split: int | None = None
) -> AttnSpec:
    """The variant that takes a row's place where keys and values are e4m3: where heads and tokens of a key head are few
    rows, that of the kernel for them. Else of "sm90" one with 64 rows, the only ones beside which warps convert.

    problem: the call's, None for any with more rows.  split: the call's; with one the kernel may not depend on how many
    rows or sequences there are.
    """
    if problem is not None and split is None and (of_few := few_rows(spec, problem, e4m3=True)):
        return of_few[problem.batch * problem.kv_heads < sm_count]
    if not converts(spec):
        bc = 128 if max(spec.head_dim, spec.value_dim) <= 128 else 64
        stages = spec.stages if spec.pack and not takes_key_turns(spec) else 2
        spec = replace(spec, br=64, bc=bc, stages=stages, warps=8)
    return fitted(spec)


def fitted(spec: AttnSpec) -> AttnSpec:
    """The variant that takes a row's place where it reads pages: more warps where looking up pages takes registers that
    the tile does not leave.
    """
    if spec.kernel == "sm80" and (spec.br, spec.bc, spec.warps) == (128, 64, 4) and spec.head_dim >= 80:
        return replace(spec, warps=8)
    return spec
