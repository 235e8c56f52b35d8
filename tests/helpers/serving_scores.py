"""More of serving_scenarios.py: sinks, and images in the chunks of a prompt."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import paged_calls
from numpy.typing import NDArray
from serving_scenarios import DTYPE, SINKS, SPLIT, Engine, agrees, caches, moved, queries, same

import omnicupy as oc
from omnicupy.reference.attention import attention64

WINDOW = 32
# Tokens of images in a prompt: inside of a chunk, filling one from edge to edge, and longer than the window.
IMAGES, CHUNKS, TOKENS = ((10, 40), (64, 96), (100, 190)), (0, 64, 96, 200), 200


def sinks(e: Engine, size: int | None, softcap: float | None, split: int | None) -> None:
    """7: lse is free of sinks, weights add up to sigmoid(lse - sink), rows that see nothing have no use for one."""
    logits = e.array(np.array(SINKS, np.float32))
    for rule in (oc.cached(), oc.cached(window=600, sink=4)):
        lengths = (2500, 0, 64, 1)
        kv, q = caches(e, lengths, 2, 2560), queries(e, 4, 4, 2, 3.0)
        held = moved(e, kv if size is None else paged_calls.paged(kv, size))
        how: dict[str, Any] = {"mask": rule, "return_lse": True, "softcap": softcap, "split": split}
        found = oc.attention(q, held, sink_logits=logits, out=e.nan(q.shape), **how)
        assert same(found[1:], oc.attention(q, held, **how)[1:])
        agrees(e, found, q, kv, rule, softcap=softcap, sink_logits=logits)
        (held.v if size is None else held.v_pages)[...] = 1
        ones, lse = oc.attention(q, held, sink_logits=logits, **how)
        with np.errstate(over="ignore", invalid="ignore"):
            share = 1 / (1 + e.xp.exp(logits[:, None] - lse.astype(np.float64)))
        share = e.xp.where(e.xp.isneginf(lse), 0, share)
        assert bool((abs(ones.astype(np.float64) - share[..., None]) < 2e-3).all())


def _mask(window_last: bool) -> NDArray[np.bool_]:
    """What Gemma 3 sees: window AND (causal OR image), or (window AND causal) OR image."""
    p, key = np.arange(TOKENS)[:, None], np.arange(TOKENS)
    causal, window, image = key <= p, key > p - WINDOW, np.zeros((TOKENS, TOKENS), bool)
    for first, stop in IMAGES:
        image[first:stop, first:stop] = True
    return window & (causal | image) if window_last else (window & causal) | image


def images_in_chunks(e: Engine, size: int | None, window_last: bool) -> None:
    """8: a prompt in chunks, each image in one of them: as the whole prompt under its mask."""
    seen = _mask(window_last)
    q = queries(e, 1, 4, TOKENS)
    new = caches(e, [TOKENS], 2, TOKENS)
    k, v = (e.array(one) for one in (new.k, new.v))
    wanted = attention64(q, k, v, oc.from_dense(seen))
    empty = caches(e, [0], 2, 208)
    if size is not None:
        pages = paged_calls.paged(oc.CachedKV(empty.k, empty.v, np.array([208], np.int32)), size)
        empty = oc.PagedKV(pages.k_pages, pages.v_pages, pages.page_table, empty.lengths)
    kv = moved(e, empty)
    for first, stop in pairwise(CHUNKS):
        kv.lengths[...] = stop
        here = slice(first, stop)
        oc.append(kv, k[:, :, here], v[:, :, here])
        rule = oc.cached(window=WINDOW, tail=oc.from_dense(seen[here, here]))
        out, lse = oc.attention(q[:, :, here], kv, mask=rule, return_lse=True)
        assert out.dtype == DTYPE
        assert bool((abs(out.astype(np.float64) - wanted[0][:, :, here]) < 6e-3).all())
        assert bool((abs(lse - wanted[1][:, :, here]) < 6e-3).all())


SCORES = ((None, None), (5.0, None), (5.0, SPLIT))
