"""More of serving_scenarios.py: sequences with numbers of query rows of their own."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import paged_calls
from serving_scenarios import DTYPE, SPLIT, Engine, agrees, bits, caches, moved, same

import omnicupy as oc

TOTAL, KEYS = 280, 4096  # rows that q has room for, keys of the longest sequence
# Rows and keys of four sequences, as replays of one captured call have them; the rest of q is of nobody.
STEPS = (
    *(([1, 5, 200, 64], [4096, 5, 300, 65]), ([1, 1, 1, 1], [1, 64, 65, KEYS])),
    *(([0, 270, 0, 3], [70, 270, 0, 2]), ([0] * 4, [5] * 4), ([7, 0, 0, 1], [7, 0, 9, 0])),
)
FEW = 7


def _starts(counts: list[int]) -> Any:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def rows_of_their_own(e: Engine, size: int | None, window: int | None) -> None:
    """Against float64; rows of nobody are not written; a replay has the bits of a call, and a call those of a step."""
    rule = oc.cached(window=window, sink=4 if window else 0)
    longest = caches(e, [KEYS] * 4, 2, KEYS)
    held = moved(e, longest if size is None else paged_calls.paged(longest, size))
    q = e.nan((TOTAL, 8, e.head_dim))
    out, rows = e.nan(q.shape), e.array(_starts(STEPS[0][0]))
    how: dict[str, Any] = {"rows": rows, "max_rows": 270}

    def call() -> None:
        oc.attention(q, held, mask=oc.plan(q, held, rule, **how), out=out)

    held.lengths[...] = e.array(np.array(STEPS[0][1], np.int32))
    oc.prepare(q, held, mask=rule, out=out, max_length=KEYS, **how)
    replay = e.capture(call)
    for counts, lengths in STEPS:
        rows[...], held.lengths[...] = e.array(_starts(counts)), e.array(np.array(lengths, np.int32))
        q[...], out[...] = np.nan, np.nan
        drawn = np.random.default_rng(sum(counts)).standard_normal((sum(counts), *q.shape[1:]), np.float32)
        q[: len(drawn)] = e.array(drawn.astype(DTYPE))
        replay()
        eager = oc.attention(q, held, mask=rule, return_lse=True, out=e.nan(q.shape), **how)
        assert same([out], eager[:1]), counts
        assert bool(e.xp.isnan(out[len(drawn) :]).all())
        for b, (first, stop) in enumerate(pairwise(_starts(counts).tolist())):
            if first < stop:
                one = oc.CachedKV(
                    longest.k[b : b + 1], longest.v[b : b + 1], np.array(lengths[b : b + 1], np.int32)
                )
                mine = (eager[0][first:stop].transpose(1, 0, 2)[None], eager[1][None, :, first:stop])
                agrees(e, mine, q[first:stop].transpose(1, 0, 2)[None], one, rule)


def rows_under_a_split(e: Engine, size: int | None) -> None:
    """Up to a few rows a sequence: each has the bits of a call of its own, whatever rows stand beside it."""
    counts, lengths = [1, FEW, 0, 3], [KEYS, 2000, 64, 900]
    whole = caches(e, lengths, 1, KEYS)
    held = moved(e, whole if size is None else paged_calls.paged(whole, size))
    drawn = 5 * np.random.default_rng(1).standard_normal((sum(counts), 4, e.head_dim), np.float32)
    q, rows = e.array(drawn.astype(DTYPE)), e.array(_starts(counts))
    how: dict[str, Any] = {"mask": oc.cached(), "return_lse": True, "split": SPLIT}
    out, lse = oc.attention(q, held, rows=rows, max_rows=FEW, **how)
    for b, (first, stop) in enumerate(pairwise(_starts(counts).tolist())):
        if first == stop:
            continue
        one = slice(b, b + 1)
        if size is None:
            alone: Any = oc.CachedKV(held.k[one], held.v[one], held.lengths[one].copy())
        else:
            alone = oc.PagedKV(held.k_pages, held.v_pages, held.page_table[one], held.lengths[one].copy())
        of_q = e.xp.ascontiguousarray(q[first:stop].transpose(1, 0, 2)[None])
        wanted = oc.attention(of_q, alone, **how)
        assert bool((bits(out[first:stop].transpose(1, 0, 2)) == bits(wanted[0][0])).all()), b
        assert bool((bits(lse[:, first:stop]) == bits(wanted[1][0])).all()), b
