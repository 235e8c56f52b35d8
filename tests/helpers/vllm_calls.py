"""Calls of the vLLM backend as vLLM makes them, without its engine and without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.attention import backend as interface
from vllm.v1.attention.backends import composite, flash_attn
from vllm_steps import Request, Step

from omnicupy.vllm import backend
from omnicupy.vllm.impl import OmnicupyImpl

WINDOW = 12
STEP = [
    Request(1, 20, ((2, 9),)),
    Request(40, 40, ((3, 12), (20, 29))),
    Request(18, 51, ((20, 31), (36, 44))),
    Request(23, 23),
]


def common_metadata(step: Step, **changes: Any) -> Any:
    longest = max(one.keys for one in step.requests)
    given: dict[str, Any] = {
        "query_start_loc": step.query_start_loc,
        "query_start_loc_cpu": step.query_start_loc,
        "seq_lens": step.seq_lens,
        "num_reqs": len(step.requests),
        "num_actual_tokens": step.tokens,
        "max_query_len": max(one.rows for one in step.requests),
        "max_seq_len": longest,
        "block_table_tensor": step.block_table,
        "slot_mapping": step.slots,
        "seq_lens_cpu_upper_bound": torch.tensor(step.bounds, dtype=torch.int32),
        "mm_req_doc_ranges": step.ranges,
    }
    return interface.CommonAttentionMetadata(**given | changes)


def layer_like(**changes: Any) -> Any:
    return SimpleNamespace(**{"sliding_window": WINDOW, "mm_prefix_clamp_sliding_window": False} | changes)


def builder_of(cls: Any, layer: Any) -> Any:
    """A builder for one layer, as far as vLLM's configuration reaches it."""
    config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={"layer": layer}))
    return cls(SimpleNamespace(block_size=16), ["layer"], config, torch.device("cpu"))


def impl_of(cls: Any = OmnicupyImpl, *changes: Any, **named: Any) -> Any:
    """As a vLLM layer makes it: ten arguments by position, the others by name."""
    given = [4, 16, 0.25, 2, None, WINDOW, "auto", None, "decoder", None]
    return cls(*[*given[: len(given) - len(changes)], *changes], **named)


def run_layer(impl: Any, layer: Any, step: Step, metadata: Any) -> Any:
    impl.do_kv_cache_update(layer, step.new_keys, step.new_values, step.kv_cache, step.slots)
    given = layer, step.query, step.new_keys, step.new_values, step.kv_cache, metadata
    found = impl.forward(*given, output=step.output, output_scale=None, output_block_scale=None)
    assert found is step.output
    return found[: step.tokens]


class _Causal(flash_attn.FlashAttentionBackend):
    """FlashAttention's half, which wants a GPU, with one that says that it was asked."""

    @staticmethod
    def get_impl_cls() -> Any:
        return _CausalImpl

    @staticmethod
    def get_builder_cls() -> Any:
        return _CausalBuilder


class _CausalImpl(interface.AttentionImpl):  # type: ignore[misc]
    supports_quant_query_input = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.given = args, kwargs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return "causal"


class _CausalBuilder(interface.AttentionMetadataBuilder):  # type: ignore[misc]
    _cudagraph_support = interface.AttentionCGSupport.ALWAYS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        return SimpleNamespace()


def composed() -> Any:
    return composite.create_composite_attention_backend(
        backend.OmnicupyImagesBackend,
        _Causal,
        name="Composed",
        backend_name="OMNICUPY",
        module=__name__,
        routing_policy=composite.MMPrefixAttentionRouting,
    )
