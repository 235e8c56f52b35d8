"""The verification cases of `append`: what it writes, to the bit, and that it writes nothing else.

The result is known without arithmetic, or for e4m3 by its definition: the nearest of 127 magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.spec import round_up
from omnicupy.masks.mask import Mask
from omnicupy.serving.caches import AnyKV, CachedKV, PagedKV
from omnicupy.serving_api import append
from omnicupy.tools.random_arrays import DTYPES, random_bits, unsigned
from omnicupy.tools.verify import inputs
from omnicupy.tools.verify.case_kernels import Variant
from omnicupy.tools.verify.cases import BASE, BSHD, Case
from omnicupy.tools.verify.serving_cases import DTYPES as BOTH
from omnicupy.tools.verify.serving_cases import PAGE_SIZES, WIDTHS
from omnicupy.tools.verify.serving_kinds import SCALES

Array = NDArray[Any]
CAPACITY, BATCH = 200, 5
NAN_BYTE, SPARE, NO_PAGE = 0x7F, 2, (-1, 2**31 - 1)
# The magnitudes of e4m3 by their bytes: zero, 7 subnormal ones, 119 others up to 448.
MAGNITUDES = np.array(
    [fraction / 512 for fraction in range(8)]
    + [2.0 ** (exponent - 7) * (1 + fraction / 8) for exponent in range(1, 16) for fraction in range(8)]
)[:-1]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is appended to. page_size, scales: as in serving_kinds.Kind.  slots: bits of numbers of slots, 0 without.
    lost: lengths and entries name places that do not exist, which a device alone takes.
    """

    page_size: int = 0
    scales: str = ""
    slots: int = 0
    lost: bool = False

    @property
    def tag(self) -> str:
        """What leads the ids of its cases."""
        parts = [f"pages{self.page_size}"] * bool(self.page_size) + [f"e4m3-{self.scales}"] * bool(
            self.scales
        )
        parts += [f"slots{self.slots}"] * bool(self.slots) + ["lost"] * self.lost
        return "-".join(["append", *parts])


def _case(kind: Kind, turn: int) -> Case:
    head_dim, value_dim = WIDTHS[turn % 5]
    case = replace(
        BASE, group="caches: append", mask="full", tag=kind.tag, batch=BATCH, q_len=(1, 4, 70)[turn % 3]
    )
    case = replace(
        case, k_len=round_up(CAPACITY, kind.page_size or 1), head_dim=head_dim, value_dim=value_dim
    )
    heads = (2, 1, 8, 3)[turn % 4]
    options = (BSHD,) * (turn // 3 % 2)
    return replace(case, q_heads=heads, kv_heads=heads, dtype=BOTH[turn // 2 % 2], options=options)


def _cases() -> Iterator[tuple[Kind, Case]]:
    kinds = [
        Kind(page_size=size, scales=("", SCALES[i % 4])[j])
        for i, size in enumerate((0, *PAGE_SIZES))
        for j in (0, 1)
    ]
    kinds += [Kind(page_size=size, scales=scales) for size, scales in product((0, 16), SCALES)]
    for i, size in enumerate((0, 3, 16)):
        kinds += [
            Kind(page_size=size, scales=("", SCALES[i + 1])[j], slots=(32, 64)[(i + j) % 2]) for j in (0, 1)
        ]
        kinds += [Kind(page_size=size, scales=("", SCALES[3 - i])[j], lost=True) for j in (0, 1)]
    for turn, kind in enumerate(dict.fromkeys(kinds)):
        yield kind, _case(kind, turn)


_MADE = tuple(_cases())
CASES = tuple(case for _, case in _MADE)
KINDS = {case.tag: kind for kind, case in _MADE}
ON_THE_HOST = tuple(case for kind, case in _MADE if not kind.lost)


def variants(case: Case, arch: str) -> list[Variant]:
    """The one kernel for the case."""
    if KINDS[case.tag].scales:
        return [Variant("append e4m3", Fp8AppendSpec(arch=arch, dtype=case.dtype))]
    return [Variant("append", AppendSpec(arch=arch))]


def on_a_gpu(case: Case, masks: Sequence[Mask]) -> Callable[[Variant], tuple[float, str]]:
    """A judge, as those of special_cases.py."""
    import cupy

    return lambda variant: (0.0, _problem(case, cupy))


def on_the_host(case: Case) -> tuple[float, str]:
    """The same of the CPU engine."""
    return 0.0, _problem(case, np)


@dataclass
class _Made:
    """Arrays of a call on the host. pools, scales: of keys and of values, (pages, page_size, heads, columns) and
    (pages, page_size, heads), or what scales are else.  new: (batch, heads, tokens, columns), with slots
    (tokens, heads, columns).  kept: which of the new tokens, in their order, have a place.  page, row: of these.
    """

    pools: list[Array]
    scales: list[Any]
    new: list[Array]
    lengths: Array
    table: Array | None
    slots: Array | None
    kept: NDArray[np.bool_]
    page: Array
    row: Array


def _problem(case: Case, xp: Any) -> str:
    """What is wrong, "" where nothing is: of two calls, of other lengths."""
    kind = KINDS[case.tag]
    for seed in (1, 2):
        made = _made(case, kind, case.generator(f"append {seed}"))
        kv, pools, scales = _moved(case, kind, made, xp)
        by_slots = made.slots is not None
        order = (0, 1, 2) if by_slots else (0, 2, 1, 3) if BSHD in case.options else (0, 1, 2, 3)
        k_new, v_new = (
            xp.asarray(np.ascontiguousarray(one.transpose(order))).view(DTYPES[case.dtype]).transpose(order)
            for one in made.new
        )
        append(kv, k_new, v_new, None if made.slots is None else xp.asarray(made.slots))
        wanted = _wanted(case, kind, made)
        for name, found, pool, scale, of_scale in zip("kv", pools, wanted[0], scales, wanted[1], strict=True):
            if problem := _differing(_on_host(found), pool, bool(kind.scales)):
                return f"{problem} of {name}"
            if isinstance(of_scale, np.ndarray) and not np.array_equal(
                _on_host(scale), of_scale, equal_nan=True
            ):
                return f"scales of {name} differ"
    return ""


def _differing(found: Array, wanted: Array, e4m3: bool) -> str:
    differs = found != wanted
    if e4m3:  # NaN of either sign
        differs &= ((found & NAN_BYTE) != NAN_BYTE) | ((wanted & NAN_BYTE) != NAN_BYTE)
    count = int(differs.sum())
    return f"{count} elements differ" if count else ""


def _on_host(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else array.get()


def _made(case: Case, kind: Kind, rng: np.random.Generator) -> _Made:
    size = kind.page_size or case.k_len
    most = case.k_len // size
    count = case.batch * most + SPARE * bool(kind.page_size)
    table = rng.permutation(count)[: case.batch * most].reshape(case.batch, most).astype(np.int32)
    if not kind.page_size:
        table = np.arange(case.batch, dtype=np.int32)[:, None]
    widths = (case.head_dim, case.value_columns)
    elements = np.dtype(np.uint8) if kind.scales else unsigned(case.dtype)
    pools = [
        rng.integers(0, 1 << 8 * elements.itemsize, (count, size, case.kv_heads, w)).astype(elements)
        for w in widths
    ]
    scales = [_scale(case, kind, (count, size), rng) for _ in "kv"]
    drawn = rng.permutation(
        [0, case.k_len, max(0, case.q_len - 1), size, *rng.integers(1, case.k_len, case.batch)]
    )
    lengths = drawn[: case.batch].astype(np.int32)
    if kind.lost:
        lengths[:2] = (case.k_len + 1, -1)
        gone = rng.random(table.shape) < 0.3
        if kind.page_size:
            table[gone] = np.resize(np.array([*NO_PAGE, count], np.int32), int(gone.sum()))
    slots = None
    if kind.slots:
        slots = rng.permutation(count * size)[: case.q_len].astype(f"i{kind.slots // 8}")
        slots[rng.random(case.q_len) < 0.2] = -1
        kept, (page, row) = slots >= 0, np.divmod(slots[slots >= 0], size)
        shape: tuple[int, ...] = (case.q_len, case.kv_heads)
    else:
        kept, page, row = _places(case, lengths, table, size, count)
        shape = (case.batch, case.kv_heads, case.q_len)
    new = [_new(case, kind, (*shape, width), rng) for width in widths]
    return _Made(pools, scales, new, lengths, table if kind.page_size else None, slots, kept, page, row)


def _places(
    case: Case, lengths: Array, table: Array, size: int, count: int
) -> tuple[NDArray[np.bool_], Array, Array]:
    """Of new tokens, sequence by sequence: which have a place, and page and row of these."""
    kept, page, row = [], [], []
    for b, token in product(range(case.batch), range(case.q_len)):
        position = int(lengths[b]) - case.q_len + token
        fits = 0 <= lengths[b] <= case.k_len and position >= 0
        entry = int(table[b, position // size]) if fits else -1
        kept.append(fits and 0 <= entry < count)
        if kept[-1]:
            page.append(entry)
            row.append(position % size)
    return np.array(kept), np.array(page, np.int64), np.array(row, np.int64)


def _scale(case: Case, kind: Kind, tokens: tuple[int, int], rng: np.random.Generator) -> Any:
    shapes: dict[str, tuple[int, ...]] = {"number": (), "all": (), "head": (case.kv_heads,)}
    if not kind.scales:
        return None
    drawn = np.asarray(
        10.0 ** rng.uniform(-3, -1.5, shapes.get(kind.scales, (*tokens, case.kv_heads))), np.float32
    )
    return float(drawn) if kind.scales == "number" else drawn


def _new(case: Case, kind: Kind, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Bits of new keys or values: of 16 bits any at all; of e4m3 normal numbers, zero rows, rows with NaN, infinity."""
    if not kind.scales:
        return rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    bits: Array = random_bits(shape, int(rng.integers(1 << 30)), case.dtype, 1.0, np)
    rows = bits.reshape(-1, shape[-1])
    for pattern in (0, inputs.NAN_BITS[case.dtype], inputs.INF_BITS[case.dtype]):
        some = rng.random(len(rows)) < 0.1
        rows[some, : 1 if pattern else None] = pattern
    return bits


def _moved(case: Case, kind: Kind, made: _Made, xp: Any) -> tuple[AnyKV, list[Any], list[Any]]:
    """The caches; and views of their pools and scales in the axes of `made`."""
    dtype = np.dtype(np.uint8) if kind.scales else DTYPES[case.dtype]
    heads_first = BSHD not in case.options
    order = (0, 2, 1, 3) if heads_first else (0, 1, 2, 3)
    # Copies: on the host, too, what is written must not be what is compared.
    pools = [xp.array(np.ascontiguousarray(pool.transpose(order))) for pool in made.pools]
    scales = [xp.array(scale) if isinstance(scale, np.ndarray) else scale for scale in made.scales]
    bits = [pool.transpose(order) for pool in pools]
    k, v = (pool.view(dtype) for pool in bits)
    lengths, named = xp.asarray(made.lengths), {"k_scale": scales[0], "v_scale": scales[1]}
    if made.table is not None:
        return PagedKV(k, v, xp.asarray(made.table), lengths, **named), bits, scales
    return CachedKV(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), lengths, **named), bits, scales


def _wanted(case: Case, kind: Kind, made: _Made) -> tuple[list[Array], list[Any]]:
    """Pools and scales after the call."""
    pools, scales = [], []
    for pool, scale, new in zip(made.pools, made.scales, made.new, strict=True):
        rows = new if made.slots is not None else new.transpose(0, 2, 1, 3).reshape(-1, *new.shape[1::2])
        rows, pool, scale = (
            rows[made.kept],
            pool.copy(),
            scale.copy() if isinstance(scale, np.ndarray) else scale,
        )
        if kind.scales:
            rows, scale = _quantised(rows.view(DTYPES[case.dtype]), scale, (made.page, made.row))
        pool[made.page, made.row] = rows
        pools.append(pool)
        scales.append(scale)
    return pools, scales


def _quantised(rows: Array, scale: Any, at: tuple[Array, Array]) -> tuple[Array, Any]:
    """Bytes of (tokens, heads, columns), and the scale, of tokens with what is written at these places."""
    values = rows.astype(np.float32)
    with np.errstate(all="ignore"):
        if np.ndim(scale) == 3:
            largest = np.nanmax(np.where(np.isnan(values), 0, np.abs(values)), axis=2)
            scale[at] = np.where(largest > 0, largest / np.float32(448), np.float32(1))
            of_rows: Any = scale[at][:, :, None]
        else:
            of_rows = scale[:, None] if np.ndim(scale) == 1 else np.float32(scale)
        return nearest(values / of_rows), scale


def nearest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes of the nearest numbers of e4m3, of two the one whose byte is even; NaN is 0x7f."""
    size = np.minimum(np.abs(values.astype(np.float64)), MAGNITUDES[-1])
    middles = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2
    byte = np.searchsorted(middles, size, side="left")  # of a tie the lower one
    tie = (byte < len(middles)) & (size == middles[np.minimum(byte, len(middles) - 1)])
    byte = byte + (tie & (byte % 2 == 1))
    byte = np.where(np.isnan(values), NAN_BYTE, byte)
    found: NDArray[np.uint8] = (byte | (np.signbit(values) << 7)).astype(np.uint8)
    return found
