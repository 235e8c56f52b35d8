"""Inputs of the cases in serving_cases.py: caches that hold NaN and infinity wherever no row may see, and the same keys
as 16-bit numbers one behind the other.

They are made on the host, and moved as raw bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.cpu import fp8
from omnicupy.masks.constructors import intervals
from omnicupy.masks.mask import Mask
from omnicupy.serving.caches import AnyKV, CachedKV, PagedKV
from omnicupy.serving.rule import CachedRule
from omnicupy.tools.random_arrays import DTYPES, random_bits, unsigned
from omnicupy.tools.verify import inputs
from omnicupy.tools.verify.cases import BSHD, Case
from omnicupy.tools.verify.serving_kinds import Kind

Array = NDArray[Any]
SPARE = 3  # pages of a pool that no table names
LEFT = 2  # rows of q that are no sequence's, behind all others and, in every other case, ahead of them
NO_PAGE = (2**31 - 1, -1, -(2**31))
NAN_BYTES = (0x7F, 0xFF)  # of e4m3
DRAWN = 1_000_003  # random numbers, drawn once; a prime, so that no two rows begin at the same one
_ORDERS = {True: (0, 2, 1, 3), False: (0, 1, 2, 3)}  # of axes in memory: tokens ahead of heads, or not


@dataclass(frozen=True)
class Sequences:
    """What sequences are. lengths, rows: keys and query rows of each.  table: pages, None without.  masks: of the rows,
    the last ones of q_len, against the capacity.  live: (batch, capacity), keys that some row sees.
    """

    lengths: Array
    rows: Array
    table: Array | None
    masks: list[Mask]
    live: NDArray[np.bool_]


@dataclass(frozen=True)
class Served:
    """Arrays of a call, of NumPy or CuPy. q: as attention takes it, with rows of their own (rows, q_heads, head_dim).

    padded_q: (batch, q_heads, q_len, head_dim), where those rows are the last ones.  kv: what is verified.  plain: the
    same keys, 16 bits one behind the other; None where that is `kv`, or has no holes.  numbers: k and v of plain.
    starts: where rows of their own begin in q and end, on the host; None without.
    """

    q: Any
    padded_q: Any
    kv: AnyKV
    plain: CachedKV | None
    numbers: tuple[Any, Any]
    starts: list[int] | None


def sequences_of(case: Case, kind: Kind, rule: CachedRule, rng: np.random.Generator) -> Sequences:
    """An empty sequence, one with fewer keys than rows, a full one, and edges of tiles and of pages."""
    size = kind.page_size or 64
    edges = [max(1, case.q_len - 1), case.q_len, 64, 65, 128, 129, size, size + 1, 2 * size - 1]
    some = [min(int(n), case.k_len) for n in rng.permutation(edges)[:2]]
    drawn = [0, case.k_len, *some, *rng.integers(1, case.k_len + 1, max(0, case.batch - 4)).tolist()]
    lengths = rng.permutation(np.array(drawn[: case.batch], np.int32))
    rows = np.full(case.batch, case.q_len)
    if kind.rows:
        few = rng.integers(0, case.q_len + 1, case.batch)
        few[: min(3, case.batch)] = (case.q_len, 1, 0)[: min(3, case.batch)]
        rows = rng.permutation(few)
    open_keys = np.ones((case.batch, case.k_len), bool)
    table = _table(case, kind, (lengths, rows), rule, open_keys, rng) if kind.page_size else None
    masks = []
    for b in range(case.batch):
        mask = rule.mask(int(lengths[b]), case.q_len, case.k_len, sequence=b)
        if kind.rows or kind.holes:  # else a mask of bits, of a draft, would be made anew
            stop = np.where(open_keys[b], case.q_len, 0)
            mask &= intervals(np.where(open_keys[b], case.q_len - rows[b], 0), stop, case.q_len)
        masks.append(mask)
    return Sequences(lengths, rows, table, masks, ~np.stack([mask.dead_keys() for mask in masks]))


def _table(
    case: Case,
    kind: Kind,
    of_sequences: tuple[Array, Array],
    rule: CachedRule,
    open_keys: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.int32]:
    """Pages in any order; no page past lengths, where nothing is read, and in holes, whose keys are closed.

    of_sequences: lengths, and rows.
    """
    size = kind.page_size
    most = case.k_len // size
    numbers = rng.permutation(case.batch * most + SPARE)[: case.batch * most]
    table: NDArray[np.int32] = numbers.reshape(case.batch, most).astype(np.int32)
    if kind.shared:
        table[:, : _shared(case, kind)] = table[0, : _shared(case, kind)]
    entries = np.arange(most)
    for b, (keys, rows) in enumerate(zip(*of_sequences, strict=True)):
        sink, first = rule.seen_keys(int(keys), int(rows))
        read = (
            ((entries * size < sink) | ((entries + 1) * size > first)) & (entries * size < keys) & (rows > 0)
        )
        if kind.holes:
            gone = read & (rng.random(most) < 0.2)
            open_keys[b] = ~np.repeat(gone, size)
            read &= ~gone
        table[b, ~read] = np.resize(np.array([*NO_PAGE, case.batch * most + SPARE], np.int32), (~read).sum())
    return table


def _shared(case: Case, kind: Kind) -> int:
    """Pages that all sequences begin with."""
    return max(1, case.k_len // kind.page_size // 3) if kind.shared else 0


def served(case: Case, kind: Kind, of: Sequences, lengths: Any, xp: Any) -> Served:
    """The arrays of a case. lengths: the array that the caches hold."""
    rng = case.generator("elements")
    own, scales, numbers = [], [], []
    for width in (case.head_dim, case.value_columns):
        shape, scale = (case.batch, case.kv_heads, case.k_len, width), _scale(case, kind, rng)
        elements = _some(_bytes() if kind.scales else _normal_bits(case.dtype, 1), shape, rng)
        repeated = _shared(case, kind) * kind.page_size
        elements[:, :, :repeated] = elements[:1, :, :repeated]
        if np.ndim(scale) == 3:
            scale[:, :repeated] = scale[:1, :repeated]
        number = elements
        if kind.scales:
            number = fp8.dequantised(elements, _along(scale), DTYPES[case.dtype]).view(unsigned(case.dtype))
        numbers.append(_poisoned(number, of.live, _patterns(case.dtype)))
        own.append(elements)
        scales.append(scale)
    k, v = (_moved(case, number, DTYPES[case.dtype], xp) for number in numbers)
    plain = CachedKV(k, v, lengths)
    kv: AnyKV = plain
    if kind.page_size:
        kv = _in_pages(case, kind, of, (own, scales), lengths, xp)
    elif kind.scales:
        k, v = (_moved(case, _poisoned(one, of.live, NAN_BYTES), np.dtype(np.uint8), xp) for one in own)
        k_scale, v_scale = (_moved_scale(scale, of.live, xp) for scale in scales)
        kv = CachedKV(k, v, lengths, k_scale=k_scale, v_scale=v_scale)
    bits = _some(
        _normal_bits(case.dtype, case.factor), (case.batch, case.q_heads, case.q_len, case.head_dim), rng
    )
    padded_q = _moved(case, bits, DTYPES[case.dtype], xp)
    q, starts = _rows_of_all(case, of.rows, bits, xp) if kind.rows else (padded_q, None)
    return Served(q, padded_q, kv, None if kv is plain or kind.holes else plain, (plain.k, plain.v), starts)


@cache
def _normal_bits(dtype: str, factor: int) -> Array:
    found: Array = random_bits((DRAWN,), 1, dtype, float(factor), np)
    return found


@cache
def _bytes() -> NDArray[np.uint8]:
    """e4m3 of many magnitudes, none of them NaN."""
    drawn = np.random.default_rng(2).integers(0, 256, DRAWN, dtype=np.uint8)
    return np.where(np.isin(drawn, NAN_BYTES), np.uint8(0x38), drawn)


def _some(drawn: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Elements of a shape, one behind the other from anywhere on."""
    return np.resize(np.roll(drawn, int(rng.integers(DRAWN))), prod(shape)).reshape(shape)


def _patterns(dtype: str) -> tuple[int, int]:
    return inputs.NAN_BITS[dtype], inputs.INF_BITS[dtype]


def _scale(case: Case, kind: Kind, rng: np.random.Generator) -> Any:
    """The scale of keys or of values, None for 16 bits."""
    if not kind.scales:
        return None
    shapes: dict[str, tuple[int, ...]] = {"number": (), "all": (), "head": (case.kv_heads,)}
    shape = shapes.get(kind.scales, (case.batch, case.k_len, case.kv_heads))
    drawn = np.asarray(10.0 ** rng.uniform(-3, -1.7, shape), np.float32)
    return float(drawn) if kind.scales == "number" else drawn


def _along(scale: Any) -> Any:
    """A scale as it broadcasts against (batch, kv_heads, capacity, columns)."""
    if np.ndim(scale) == 3:
        return scale.transpose(0, 2, 1)[..., None]
    return scale[None, :, None, None] if np.ndim(scale) == 1 else scale


def _poisoned(elements: Array, live: NDArray[np.bool_], patterns: tuple[int, int]) -> Array:
    """Copies of (batch, kv_heads, capacity, columns) with these patterns in turn where nothing is live."""
    found = elements.copy()
    sequence, position = np.nonzero(~live)
    found[sequence, :, position] = np.array(patterns, found.dtype)[position % 2, None, None]
    return found


def _in_pages(
    case: Case,
    kind: Kind,
    of: Sequences,
    arrays: tuple[list[Array], list[Any]],
    lengths: Any,
    xp: Any,
) -> PagedKV:
    """arrays: elements of k and v, and their scales, of keys one behind the other."""
    assert of.table is not None
    size, count = kind.page_size, of.table.size + SPARE
    sequence, position = np.nonzero(of.live)
    page, row = of.table[sequence, position // size], position % size
    patterns, dtype = (
        (NAN_BYTES, np.dtype(np.uint8)) if kind.scales else (_patterns(case.dtype), DTYPES[case.dtype])
    )
    pools, scales = [], []
    for elements, scale in zip(*arrays, strict=True):
        shape = (count, case.kv_heads, size, elements.shape[3])
        pool = np.empty(shape, elements.dtype)
        pool[...] = np.array(patterns, elements.dtype)[np.arange(count) % 2, None, None, None]
        pool[page, :, row] = elements[sequence, :, position]
        pools.append(_moved(case, pool, dtype, xp).transpose(0, 2, 1, 3))
        if np.ndim(scale) == 3:
            of_pages = np.full((count, size, case.kv_heads), np.nan, np.float32)
            of_pages[page, row] = scale[sequence, position]
            scales.append(xp.asarray(of_pages))
        else:
            scales.append(_moved_scale(scale, of.live, xp))
    k, v = pools
    return PagedKV(k, v, xp.asarray(of.table), lengths, k_scale=scales[0], v_scale=scales[1])


def _moved_scale(scale: Any, live: NDArray[np.bool_], xp: Any) -> Any:
    if scale is None or isinstance(scale, float):
        return scale
    return xp.asarray(np.where(live[..., None], scale, np.float32(np.nan)) if scale.ndim == 3 else scale)


def _moved(case: Case, bits: Array, dtype: Any, xp: Any) -> Any:
    """(first, heads, tokens, columns) as an array of these bits, in the memory layout of the case."""
    order = _ORDERS[BSHD in case.options]
    return xp.asarray(np.ascontiguousarray(bits.transpose(order))).view(dtype).transpose(order)


def _rows_of_all(case: Case, rows: Array, bits: Array, xp: Any) -> tuple[Any, list[int]]:
    """q of rows of their own, NaN in rows of no sequence, and where sequences begin."""
    first = LEFT * (len(case.id) % 2)
    starts = [first, *(first + np.cumsum(rows)).tolist()]
    found = np.full((case.q_heads, starts[-1] + LEFT, case.head_dim), _patterns(case.dtype)[0], bits.dtype)
    for b, count in enumerate(rows):
        found[:, starts[b] : starts[b + 1]] = bits[b, :, case.q_len - count :]
    return _moved(case, found[None], DTYPES[case.dtype], xp)[0].transpose(1, 0, 2), starts
