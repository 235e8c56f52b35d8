"""The verification cases: what every kernel, and the CPU engine, is compared with the float64 reference on.

A case is a value with a stable, readable id; its masks and inputs follow from the id alone. `FIXED` is the
list made by hand, `sweep.py` draws random ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from omnicupy.masks.mask import Mask
from omnicupy.tools.verify import width_cases
from omnicupy.tools.verify.case_masks import MASK_KINDS, alive, build

SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
POISON, BSHD, LARGE, PER_BATCH, BROADCAST, REVERSED, SAME_KEYS, SAME_VALUES = OPTIONS = (
    *("poison", "bshd", "large", "masks", "broadcast", "reversed", "same-keys", "same-values"),
)


# No sink, ordinary ones, one that takes almost everything, one above every score.
SINKS = (float("-inf"), 0.0, 30.0, 2.0, 1e4, -3.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: q (batch, q_heads, q_len, head_dim) with k and v (batch, kv_heads, k_len, head_dim), or v of
    value_dim columns, 0 for head_dim.

    group: the line of the report it counts for.  mask: one of case_masks.MASK_KINDS.  options:
    "poison": some keys are dead, their K and V are NaN and Inf;  "bshd": the arrays are (batch, tokens,
    heads, head_dim) in memory;  "large": scores up to about 1e4;  "masks": each batch element has its own
    mask; "broadcast": K and V of one batch element serve all (stride 0);  "reversed": K and V run backwards
    in memory;  "same-keys", "same-values": all keys of a head are alike, or all values.  seed: varies masks and
    inputs of otherwise equal cases.  split: keys of a part of each row, 0 for parts that fill the device.  tag: leads
    the id of a random case.  softcap: as in attention.  factor: of q, and so of scores.  sinks: there are sink_logits,
    those of SINKS in turn.
    """

    group: str
    mask: str
    dtype: str
    head_dim: int
    q_len: int
    k_len: int
    q_heads: int = 2
    kv_heads: int = 2
    batch: int = 1
    options: tuple[str, ...] = ()
    seed: int = 0
    split: int = 0
    tag: str = ""
    softcap: float | None = None
    factor: int = 1
    sinks: bool = False
    value_dim: int = 0

    def __post_init__(self) -> None:
        if self.mask not in MASK_KINDS:
            raise ValueError(f"case: mask must be one of {', '.join(MASK_KINDS)}, got {self.mask!r}")
        if unknown := set(self.options) - set(OPTIONS):
            raise ValueError(
                f"case: options must be of {', '.join(OPTIONS)}, got {', '.join(sorted(unknown))}"
            )

    @property
    def id(self) -> str:
        """Stable and unique: every field but the group."""
        widths = f"d{self.head_dim}" + (f"v{self.value_dim}" if self.value_dim else "")
        parts = [widths, SHORT[self.dtype], self.mask, f"q{self.q_len}k{self.k_len}"]
        parts.append(f"h{self.q_heads}g{self.q_heads // self.kv_heads}")
        if self.batch > 1:
            parts.append(f"b{self.batch}")
        parts += self.options
        parts += [] if self.softcap is None else [f"cap{self.softcap:g}"]
        parts += [f"x{self.factor}"] * (self.factor != 1) + ["sinks"] * self.sinks
        if self.seed:
            parts.append(f"s{self.seed}")
        if self.split:
            parts.append(f"split{self.split}")
        return "-".join([self.tag, *parts] if self.tag else parts)

    @property
    def work(self) -> int:
        """Multiply-adds of the two products over all pairs: what a reference costs."""
        return self.batch * self.q_heads * self.q_len * self.k_len * (self.head_dim + self.value_columns)

    @property
    def value_columns(self) -> int:
        """Columns of v and out."""
        return self.value_dim or self.head_dim

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers that depend on the case and on what they are for."""
        return np.random.default_rng(zlib.crc32(f"{self.id} {purpose}".encode()))

    def masks(self) -> list[Mask]:
        """One mask for the batch, or one for each of its elements."""
        rng = self.generator("mask")
        count = self.batch if PER_BATCH in self.options else 1
        made = [build(self.mask, self.q_len, self.k_len, rng) for _ in range(count)]
        if POISON in self.options:
            made = [mask & alive(self.q_len, self.k_len, rng) for mask in made]
        return made


BASE = Case(group="", mask="segments", dtype="bfloat16", head_dim=64, q_len=200, k_len=200)
RAGGED = (1, 2, 63, 64, 65, 127, 128, 129, 255, 257, 1000)


def _head_dims() -> Iterator[Case]:
    """Every multiple of 8 up to 256, and tiled ones up to 1024; the dtypes alternate, the tuned ones get
    both.
    """
    tuned = (64, 72, 80, 96, 128, 192, 256, 512, 1024)
    for i, head_dim in enumerate([*range(8, 257, 8), 264, 320, 384, 512, 520, 640, 768, 1000, 1024]):
        for j, dtype in enumerate(("bfloat16", "float16")):
            if head_dim in tuned or i % 2 == j:
                mask = ("segments", "causal", "documents")[i % 3]
                case = replace(BASE, group="head dims", head_dim=head_dim, dtype=dtype, mask=mask)
                yield replace(case, q_len=150 + i, k_len=190 + 3 * (i % 5), q_heads=4, kv_heads=2)


def _masks() -> Iterator[Case]:
    for mask in MASK_KINDS:
        for head_dim, dtype in ((64, "bfloat16"), (128, "float16"), (320, "bfloat16")):
            case = replace(BASE, group="masks", mask=mask, head_dim=head_dim, dtype=dtype)
            yield replace(case, q_len=333, k_len=333)
            if head_dim < 320:
                yield replace(case, q_len=130, k_len=517)
                yield replace(case, q_len=517, k_len=130)


def _ragged() -> Iterator[Case]:
    for i, q_len in enumerate(RAGGED):
        for j, k_len in enumerate(RAGGED):
            mask = ("full", "causal", "segments")[(i + j) % 3]
            dtype = ("bfloat16", "float16")[j % 2]
            head_dim = (64, 128, 40)[(i + 2 * j) % 3]
            yield replace(
                BASE, group="ragged", mask=mask, q_len=q_len, k_len=k_len, dtype=dtype, head_dim=head_dim
            )


def _heads() -> Iterator[Case]:
    for group in (1, 2, 3, 4, 7, 8):
        for kv_heads in (1, 3):
            case = replace(BASE, group="heads", q_heads=group * kv_heads, kv_heads=kv_heads, batch=2)
            yield replace(case, q_len=140, k_len=301, head_dim=128 if group % 2 else 64)


def _empty_rows() -> Iterator[Case]:
    for mask in ("empty", "holes", "ranges", "causal"):
        for head_dim in (64, 128, 512):
            yield replace(
                BASE, group="empty rows", mask=mask, head_dim=head_dim, q_len=400, k_len=150, seed=1
            )


def _poison() -> Iterator[Case]:
    for mask in MASK_KINDS:
        if mask != "empty":
            for head_dim, dtype in ((64, "bfloat16"), (128, "float16"), (256, "bfloat16"), (512, "float16")):
                case = replace(BASE, group="dead keys", mask=mask, head_dim=head_dim, dtype=dtype)
                yield replace(case, q_len=261, k_len=390, options=(POISON,))


def _strides() -> Iterator[Case]:
    for head_dim in (64, 128, 320):
        for option in (BSHD, BROADCAST, REVERSED):
            case = replace(BASE, group="strides", head_dim=head_dim, options=(option,), batch=2)
            yield replace(case, q_heads=4, kv_heads=2, q_len=170, k_len=230)


def _alike() -> Iterator[Case]:
    """Sums of equal terms, whose roundings all go one way: what the floor of the budget is for."""
    for i, options in enumerate(((SAME_KEYS,), (SAME_VALUES,), (SAME_KEYS, SAME_VALUES))):
        for head_dim in (8, 16, 64, 128, 256, 512):
            case = replace(BASE, group="alike", head_dim=head_dim, options=options, q_heads=4)
            case = replace(case, dtype=("bfloat16", "float16")[(i + head_dim // 64) % 2])
            yield replace(case, mask="full", q_len=130, k_len=2000)
            yield replace(case, mask="segments", q_len=900, k_len=900)
    for dtype in ("bfloat16", "float16"):
        case = replace(BASE, group="alike", mask="full", dtype=dtype, head_dim=8, q_len=60, k_len=9000)
        yield from (replace(case, options=options) for options in ((), (SAME_KEYS,), (SAME_VALUES,)))


def _block_lists() -> Iterator[Case]:
    """Masks of lists of key blocks, which are cut as lists."""
    for seed in range(6):
        for head_dim, dtype in ((64, "bfloat16"), (128, "float16"), (256, "bfloat16"), (320, "float16")):
            case = replace(BASE, group="block lists", mask="tiles", head_dim=head_dim, dtype=dtype, seed=seed)
            yield replace(case, q_len=700, k_len=900, q_heads=4)
    case = replace(BASE, group="block lists", mask="tiles", batch=3, q_len=500, k_len=300, seed=7)
    yield replace(case, options=(PER_BATCH,))
    yield replace(case, options=(POISON, PER_BATCH), head_dim=128)


def _batches() -> Iterator[Case]:
    for i, mask in enumerate(("segments", "window", "ranges", "streams", "bits", "documents")):
        case = replace(
            BASE, group="batches", mask=mask, options=(PER_BATCH,), batch=3, head_dim=(64, 128)[i % 2]
        )
        yield replace(case, q_len=300, k_len=300)
        yield replace(case, q_len=150, k_len=400, options=(POISON, PER_BATCH))


def _large() -> Iterator[Case]:
    for head_dim in (64, 128, 512):
        for dtype in ("bfloat16", "float16"):
            case = replace(BASE, group="large scores", head_dim=head_dim, dtype=dtype, options=(LARGE,))
            yield replace(case, mask="segments")
            yield replace(case, mask="full")


def _long() -> Iterator[Case]:
    for mask, head_dim in (("full", 64), ("causal", 128), ("segments", 64), ("segments", 128), ("bits", 128)):
        yield replace(
            BASE, group="long", mask=mask, head_dim=head_dim, q_len=4096, k_len=4096, q_heads=4, kv_heads=2
        )
    yield replace(BASE, group="long", mask="segments", head_dim=256, q_len=1024, k_len=8191, q_heads=4)
    yield replace(BASE, group="long", mask="segments", head_dim=512, q_len=2048, k_len=2048)


GROUPS = (1, 3, 4, 5, 7, 8, 12, 71)  # query heads a head of keys, of few query rows
SPLIT = 384  # keys: whole tiles of every kernel


def _decoding() -> Iterator[Case]:
    """Few query rows, many keys; rows cut by the schedule and by `split`."""
    base = replace(BASE, group="decoding")
    masks = ("full", "causal", "tree", "holes", "lengths", "window", "bits")
    for i, group in enumerate(GROUPS):
        kv_heads = 2 if group < 8 else 1
        for j, q_len in enumerate((1, 4, 9, 17)):
            case = replace(base, mask=masks[(i + j) % 7], q_len=q_len, k_len=900 + 37 * j)
            case = replace(case, q_heads=group * kv_heads, kv_heads=kv_heads, options=(BSHD,) * (j % 2))
            case = replace(case, head_dim=(128, 64, 128, 256, 96, 192, 80, 32)[i - j])
            yield replace(case, dtype=("bfloat16", "float16")[(i + j) % 2], split=SPLIT * (j % 2))
    for i, q_len in enumerate((*range(1, 10), 63, 64, 65)):
        case = replace(base, mask=("tree", "window", "lengths")[i % 3], q_len=q_len, k_len=800, q_heads=14)
        case = replace(case, batch=2, options=(PER_BATCH,), head_dim=(128, 64)[i % 2])
        yield replace(case, split=SPLIT if i % 4 < 2 else 0, dtype=("bfloat16", "float16")[i % 2])
    for head_dim, dtype in ((64, "bfloat16"), (128, "float16"), (256, "bfloat16")):
        case = replace(base, head_dim=head_dim, dtype=dtype, q_heads=10, q_len=5, k_len=1500)
        yield replace(case, mask="lengths", options=(POISON, PER_BATCH), batch=2, split=SPLIT)
        yield replace(case, mask="holes", options=(POISON,), q_len=40, split=SPLIT)
        yield replace(case, mask="full", options=(LARGE,), split=SPLIT)
        yield replace(case, mask="full", q_heads=14, q_len=1, k_len=40_000)
        yield replace(case, mask="full", q_heads=14, q_len=1, k_len=40_000, split=SPLIT)
        yield replace(case, mask="segments", q_len=150, k_len=1200, split=SPLIT)


# softcap, factor, sinks: caps far above scores, and in their midst.
SCORES = ((None, 1, True), (50.0, 1, False), (50.0, 8, True), (20.0, 8, False))


def _scores() -> Iterator[Case]:
    """Soft caps and sinks with every kind of tile, rows without keys, dead keys, groups of heads and split rows."""
    masks = ("causal", "window", "segments", "bits", "holes")
    for j, (softcap, factor, sinks) in enumerate(SCORES):
        base = replace(BASE, group="scores", softcap=softcap, factor=factor, sinks=sinks, batch=2)
        for i, head_dim in enumerate((16, 40, 64, 96, 128, 192, 256, 320)):
            case = replace(base, head_dim=head_dim, dtype=("bfloat16", "float16")[(i + j) % 2], q_heads=6)
            case = replace(case, mask=masks[(i + j) % 5], q_len=260 + i, k_len=330)
            yield case
            yield replace(case, mask=masks[(i + j + 2) % 5], kv_heads=6, options=(POISON,), q_len=150)
        for head_dim, group in ((64, 8), (128, 7)):
            case = replace(base, mask="full", head_dim=head_dim, q_heads=group, kv_heads=1, batch=1)
            yield from (replace(case, q_len=q_len, k_len=5000) for q_len in (1, 64))
            yield replace(case, q_len=5, k_len=1500, split=SPLIT)
        yield replace(base, mask="segments", head_dim=128, q_len=2048, k_len=2048, q_heads=4, batch=1)
        yield replace(base, mask="full", head_dim=64, q_len=4099, k_len=70, q_heads=6, kv_heads=1, batch=1)


def _widths() -> Iterator[Case]:
    """Values of another width than keys."""
    return (replace(BASE, group="widths", **one) for one in width_cases.changes(SPLIT))


def _fixed() -> tuple[Case, ...]:
    makers = (
        *(_head_dims, _masks, _ragged, _heads, _empty_rows, _poison, _strides, _batches, _large, _long),
        *(_alike, _block_lists, _decoding, _scores, _widths),
    )
    return tuple(dict.fromkeys(case for make in makers for case in make()))


FIXED = _fixed()
# What the CPU engine is verified on everywhere: all but the few problems that take seconds in float64.
CPU_SIZED = tuple(case for case in FIXED if case.work <= 5e8)
