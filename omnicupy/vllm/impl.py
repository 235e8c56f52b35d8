"""A layer's attention, as vLLM's layers call it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionImpl, AttentionType

from omnicupy.errors import UnsupportedError
from omnicupy.vllm import attend
from omnicupy.vllm.batch import Batch

CACHE_DTYPES = ("auto", "float16", "bfloat16")
_ELSEWHERE = "take another attention backend"


@dataclass(frozen=True)
class LayerArguments:
    """What vLLM makes a layer's attention of, in the order in which it passes it."""

    num_heads: int
    head_size: int
    scale: float
    num_kv_heads: int | None = None
    alibi_slopes: list[float] | None = None
    sliding_window: int | None = None
    kv_cache_dtype: str = "auto"
    logits_soft_cap: float | None = None
    attn_type: str = AttentionType.DECODER
    kv_sharing_target_layer_name: str | None = None
    sinks: Any = None

    def __post_init__(self) -> None:
        if self.alibi_slopes is not None:
            raise UnsupportedError(f"alibi_slopes: biases of positions are not computed; {_ELSEWHERE}")
        if self.attn_type != AttentionType.DECODER:
            raise UnsupportedError(
                f"attn_type must be {AttentionType.DECODER.value!r}: attention of encoders is not computed, got "
                f"{self.attn_type!r}; {_ELSEWHERE}"
            )
        if self.kv_cache_dtype not in CACHE_DTYPES:
            raise UnsupportedError(
                f"kv_cache_dtype must be one of {', '.join(CACHE_DTYPES)}, got {self.kv_cache_dtype!r}: with caches of "
                "fp8 FlashAttention wants queries of fp8, which omnicupy does not take; leave --kv-cache-dtype out, or "
                f"{_ELSEWHERE}"
            )
        if self.sinks is not None and tuple(self.sinks.shape) != (self.num_heads,):
            raise ValueError(
                f"sinks must be a logit a head, ({self.num_heads},), got shape {tuple(self.sinks.shape)}"
            )


class OmnicupyImpl(AttentionImpl[Batch]):  # type: ignore[misc]
    """Attention of one layer. A layer that shares its keys with another one reads the cache that vLLM hands it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """The arguments of LayerArguments. Raises TypeError for others, UnsupportedError for what is not computed."""
        given = LayerArguments(*args, **kwargs)
        self.num_heads = given.num_heads
        self.num_kv_heads = given.num_kv_heads or given.num_heads
        self.head_size = given.head_size
        self.scale = given.scale
        self.kv_cache_dtype = given.kv_cache_dtype
        self.kv_sharing_target_layer_name = given.kv_sharing_target_layer_name
        self.supports_quant_query_input = False
        self._sinks = given.sinks
        cap = given.logits_soft_cap or None  # 0 is none to vLLM
        self._layer = attend.Layer(given.scale, window=given.sliding_window, softcap=cap)
        self._clamped = replace(self._layer, clamped=True)

    def forward(
        self,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Batch | None,
        output: Any,
        output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Any:
        """Write into `output`, (tokens, heads, columns), and return it; its rows that pad the step stay as they are.

        query: (tokens, heads, head_size).  key, value: not read; do_kv_cache_update has put them into the cache.
        kv_cache: (blocks, kv_heads, block_size, columns of keys and values), in any order in memory.
        attn_metadata: None in the run that measures memory: the output is 0.
        Raises UnsupportedError where the output is to be quantised.
        """
        if output_scale is not None or output_block_scale is not None:
            raise UnsupportedError(
                "output_scale: outputs are not quantised here; switch the pass fuse_attn_quant off"
            )
        if attn_metadata is None:
            return output.fill_(0)
        own = self._clamped if getattr(layer, "mm_prefix_clamp_sliding_window", False) else self._layer
        sinks = None if self._sinks is None else self._sinks.detach().to(torch.float32)
        pools = attend.pools_of(kv_cache, self.head_size)
        attend.attend(attn_metadata, own, query, pools, output, sinks)
        return output

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, kv_cache: Any, slot_mapping: Any) -> None:
        """Write new keys and values into the cache, for FlashAttention's steps, too."""
        attend.append(attend.pools_of(kv_cache, self.head_size), key, value, slot_mapping)
