"""The calls of a step on tensors of one layer: queries in rows, keys and values in vLLM's pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from omnicupy import torch as front
from omnicupy.serving.caches import PagedKV
from omnicupy.torch.cached import plan_for
from omnicupy.vllm.batch import Batch, Part


@dataclass(frozen=True)
class Layer:
    """What a layer says of its attention. window: keys up to a row's own, None for all.  clamped: images end at the
    window as well.  softcap, sink_logits: as in `attention`.
    """

    scale: float
    window: int | None = None
    clamped: bool = False
    softcap: float | None = None


def attend(
    batch: Batch, layer: Layer, query: Any, pools: tuple[Any, Any], out: Any, sinks: Any = None
) -> None:
    """Write into `out` the attention of a step.

    query: (tokens, heads, head_dim); rows from batch.num_actual_tokens on are padding, and stay as they are in `out`,
    (tokens, heads, value_dim).  pools: keys and values, (pages, page_size, kv_heads, columns).  sinks: sink_logits.
    Raises what `omnicupy.torch.attention` raises.
    """
    query, out = query[: batch.num_actual_tokens], out[: batch.num_actual_tokens]
    for part in batch.parts(layer.window, layer.clamped):
        kv = _pages_of(batch, part, pools)
        q, to, rows = _rows_of(batch, part, query, out)
        options = {
            "scale": layer.scale,
            "softcap": layer.softcap,
            "sink_logits": sinks,
            "out": to,
            "rows": rows,
        }
        options |= {"max_rows": None if part.images else part.rows, "config": None, "split": None}
        front.attention(q, kv, None, _step(batch, part, q, kv, options), **options)


def append(pools: tuple[Any, Any], key: Any, value: Any, slots: Any) -> None:
    """Write new keys and values into their slots. slots: (tokens,); rows of key and value behind them are padding."""
    if slots.shape[0]:
        kv = PagedKV(*pools, *_unread(slots.device))
        front.append(kv, key[: slots.shape[0]], value[: slots.shape[0]], slots)


def pools_of(kv_cache: Any, head_size: int) -> tuple[Any, Any]:
    """Keys and values of vLLM's cache, (blocks, kv_heads, block_size, columns of keys and values): views."""
    pages = kv_cache.transpose(1, 2)
    return pages[..., :head_size], pages[..., head_size:]


def _pages_of(batch: Batch, part: Part, pools: tuple[Any, Any]) -> PagedKV:
    """The caches of a part, by as many columns of the table as its longest request can use, rounded up to a power of
    two, so that plans serve several steps.
    """
    needed = -(-part.keys // pools[0].shape[1])
    width = 1 << (needed - 1).bit_length()
    requests = slice(part.first, part.stop)
    return PagedKV(*pools, batch.block_table[requests, :width], batch.seq_lens[requests])


def _rows_of(batch: Batch, part: Part, query: Any, out: Any) -> tuple[Any, Any, Any]:
    """q and out of a part, and where its requests begin in them, None where each has equally many rows."""
    if not part.images:
        return query, out, batch.query_start_loc[part.first : part.stop + 1]
    sizes = part.stop - part.first, part.rows
    q, to = (
        one[part.begin : part.begin + sizes[0] * sizes[1]].unflatten(0, sizes).transpose(1, 2)
        for one in (query, out)
    )
    return q, to, None


def _step(batch: Batch, part: Part, q: Any, kv: PagedKV, options: dict[str, Any]) -> Any:
    """The part's lists, which layers that read the same lengths in the same shapes share."""
    shapes = ((one.shape, one.stride(), one.dtype) for one in (q, options["out"], kv.k_pages, kv.v_pages))
    key = part.first, part.stop, part.rule, options["softcap"], *shapes
    step = batch.steps.get(key)
    if step is None:
        step = batch.steps[key] = plan_for(q, kv, part.rule, options)
    return step


@cache
def _unread(device: torch.device) -> tuple[Any, Any]:
    """A table and lengths for `append` by slots, which reads neither."""
    return torch.zeros((1, 1), dtype=torch.int32, device=device), torch.zeros(
        1, dtype=torch.int32, device=device
    )
