"""The verification cases of pages, of e4m3 caches and of sequences with numbers of rows of their own.

Every kind of cache meets every width of keys and values, both dtypes, and groups of 1, 4, 7 and 8 heads; what all rows
of the table are compiled as for it is so run at least once. serving_judge.py says what is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from omnicupy.jit.spec import round_up
from omnicupy.tools.verify.cases import BASE, BSHD, POISON, SPLIT, Case
from omnicupy.tools.verify.serving_kinds import SCALES, Kind

BATCH, CAPACITY = 5, 400
LONG = 5000  # keys of sequences whose rows the schedule splits
PAGE_SIZES = (1, 2, 3, 8, 16, 24, 64, 256)
WIDTHS = ((64, 0), (80, 0), (128, 0), (256, 0), (192, 128))  # of keys and of values, 0 for those of keys
GROUPS = ((1, 2), (4, 2), (7, 1), (8, 1))  # query heads a key head, and key heads
DTYPES = ("bfloat16", "float16")
RULES = ("causal", "window", "sinks", "tail", "draft")
PLAIN_RULES = RULES[:3]  # which rows of their own go with
# Soft cap, factor of scores, sinks: one after the other.
SCORES: tuple[dict[str, Any], ...] = (
    {"softcap": 20.0, "factor": 8, "sinks": True},
    {"sinks": True},
    {"softcap": 50.0, "factor": 8},
)


def _boxes(page_size: int) -> int:
    """A number for each kind of box that the Hopper kernel reads pages by; equal ones are compiled alike."""
    return {1: 0, 2: 0, 3: 0, 8: 1, 24: 1, 16: 2, 64: 3, 256: 3}.get(page_size, 4)


def _case(group: str, kind: Kind, turn: int, q_len: int, widths: tuple[int, int], **more: Any) -> Case:
    """turn: what takes turns follows from it: dtypes, groups of heads, layouts."""
    k_len = round_up(more.pop("k_len", CAPACITY), kind.page_size or 1)
    heads, kv_heads = GROUPS[more.pop("heads", turn // 2) % 4]
    options = (POISON, BSHD) if turn % 3 else (POISON,)
    case = replace(BASE, group=f"caches: {group}", mask="full", batch=BATCH, options=options, tag=kind.tag)
    case = replace(case, q_len=q_len, k_len=k_len, q_heads=heads * kv_heads, kv_heads=kv_heads)
    case = replace(case, head_dim=widths[0], value_dim=widths[1], dtype=DTYPES[turn % 2])
    return replace(case, **more)


def _pages() -> Iterator[tuple[Kind, Case]]:
    for (i, size), (j, widths) in product(enumerate(PAGE_SIZES), enumerate(WIDTHS)):
        kind = Kind(rule=RULES[(i + j) % 5], page_size=size, shared=(i + j) % 3 == 1, holes=(i + j) % 3 == 2)
        q_len = (1, 5, 1, 66, 9, 64, 3)[(2 * i + 3 * j) % 7]
        more = {"dtype": DTYPES[(_boxes(size) + j) % 2]}  # half of the kernels
        yield kind, _case("pages", kind, i + j, q_len, widths, **more)
    for i, (size, scores) in enumerate(product((3, 16), SCORES)):
        kind = Kind(rule=RULES[i % 5], page_size=size)
        yield kind, _case("pages", kind, i, (1, 6, 66)[i % 3], WIDTHS[2 * (i % 2)], **scores)
    for i, rule in enumerate(RULES[:4]):  # several tiles of rows
        kind = Kind(rule=rule, page_size=(16, 3)[i % 2])
        yield kind, _case("pages", kind, i, 200, WIDTHS[2 * (i % 2)], heads=0)
    for i, size in enumerate((1, 8, 16, 24, 64, 3)):
        kind = Kind(rule=RULES[i % 3], page_size=size, shared=i % 2 == 1)
        yield kind, _case("pages", kind, i, (1, 9)[i % 2], WIDTHS[i % 5], k_len=1200, split=SPLIT)
        if i % 2 == 0:
            yield kind, _case("pages", kind, i, 1, WIDTHS[i % 5], k_len=LONG)


def _rows() -> Iterator[tuple[Kind, Case]]:
    for (i, size), (j, widths) in product(enumerate((0, 1, 3, 8, 16, 64)), enumerate(WIDTHS)):
        kind = Kind(rule=PLAIN_RULES[(i + j) % 3], page_size=size, rows=True, holes=size > 0 and j == 4)
        more = {"dtype": DTYPES[(_boxes(size) + j) % 2]}
        yield kind, _case("rows", kind, i + j, (1, 7, 66, 33, 64)[(i + 2 * j) % 5], widths, **more)
    for i, (size, scores) in enumerate(product((0, 16), SCORES[:2])):
        kind = Kind(rule=PLAIN_RULES[i % 3], page_size=size, rows=True)
        yield kind, _case("rows", kind, i, (5, 66)[i % 2], WIDTHS[2 * (i % 2)], **scores)
    for i, (size, widths) in enumerate(zip((0, 2, 16, 0, 64), WIDTHS, strict=True)):
        kind = Kind(rule=PLAIN_RULES[i % 3], page_size=size, rows=True)
        yield kind, _case("rows", kind, i, (7, 1)[i % 2], widths, k_len=1200, split=SPLIT, heads=1 + i % 3)


def _e4m3() -> Iterator[tuple[Kind, Case]]:
    for (i, size), (j, widths) in product(enumerate((0, *PAGE_SIZES)), enumerate(WIDTHS)):
        more = {"shared": size > 0 and (i + j) % 3 == 0, "holes": size > 0 and (i + j) % 4 == 2}
        kind = Kind(rule=RULES[(i + 2 * j) % 5], page_size=size, scales=SCALES[(i + 3 * j) % 4], **more)
        yield kind, _case("e4m3", kind, i + j, (1, 66, 5, 1, 64)[(3 * i + j) % 5], widths)
    for (i, size), (j, widths) in product(enumerate((0, 2, 16)), enumerate(WIDTHS)):
        kind = Kind(rule=PLAIN_RULES[(i + j) % 3], page_size=size, scales=SCALES[(i + j) % 4], rows=True)
        yield kind, _case("e4m3", kind, i + j, (1, 7, 66)[(i + 2 * j) % 3], widths)
    for i, (size, scores) in enumerate(product((0, 16), SCORES[:2])):
        kind = Kind(rule=RULES[i], page_size=size, scales=SCALES[3 - i])
        yield kind, _case("e4m3", kind, i, (1, 6)[i % 2], WIDTHS[2 * (i % 2)], **scores)
    for i, size in enumerate((0, 1, 16)):
        kind = Kind(rule=RULES[i], page_size=size, scales=SCALES[i + 1])
        yield kind, _case("e4m3", kind, i, (1, 9, 1)[i], WIDTHS[2 * (i % 2)], k_len=1200, split=SPLIT)
        yield kind, _case("e4m3", kind, i, 1, WIDTHS[i], k_len=LONG)


_MADE = tuple(dict.fromkeys((*_pages(), *_rows(), *_e4m3())))
CASES = tuple(case for _, case in _MADE)
KINDS = {case.tag: kind for kind, case in _MADE}
ON_THE_HOST = tuple(case for kind, case in _MADE if kind.on_the_host)
