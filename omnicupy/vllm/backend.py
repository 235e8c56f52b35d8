"""What vLLM may choose: omnicupy for steps with images, FlashAttention for all others."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.backends.composite import MMPrefixAttentionRouting, create_composite_attention_backend
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend

from omnicupy.errors import UnsupportedError
from omnicupy.jit.archs import arch_of
from omnicupy.jit.spec import MAX_HEAD_DIM
from omnicupy.vllm.builder import OmnicupyBuilder
from omnicupy.vllm.impl import CACHE_DTYPES, OmnicupyImpl
from omnicupy.vllm.registration import BACKEND

_TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class OmnicupyImagesBackend(AttentionBackend):  # type: ignore[misc]
    """Steps that have images in their rows, eagerly. No name of its own: it is one half of OmnicupyAttentionBackend."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = list(_TORCH_DTYPES.values())
    supported_kv_cache_dtypes: ClassVar[list[Any]] = list(CACHE_DTYPES)

    @staticmethod
    def get_name() -> str:
        return f"{BACKEND}_IMAGES"

    @staticmethod
    def get_impl_cls() -> type[OmnicupyImpl]:
        return OmnicupyImpl

    @staticmethod
    def get_builder_cls() -> type[OmnicupyBuilder]:
        return OmnicupyBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Pages up to 256 tokens; vLLM cuts larger blocks into these."""
        return [16, 32, 64, 128, 256]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size % 8 == 0 and 8 <= head_size <= MAX_HEAD_DIM

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False  # calls are made of the host's numbers

    @classmethod
    def supports_compute_capability(cls, capability: Any) -> bool:
        try:
            arch_of(capability.major, capability.minor)
        except UnsupportedError:
            return False
        return True

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: Any,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: Any,
    ) -> str | None:
        if _TORCH_DTYPES.get(kv_cache_dtype, dtype) != dtype:
            return f"kv_cache_dtype {kv_cache_dtype} with queries of {dtype}: leave --kv-cache-dtype out"
        return None


_Composite: Any = create_composite_attention_backend(
    OmnicupyImagesBackend,
    FlashAttentionBackend,
    name="OmnicupyComposite",
    backend_name=BACKEND,
    module=__name__,
    routing_policy=MMPrefixAttentionRouting,
)


class OmnicupyAttentionBackend(_Composite):  # type: ignore[misc]
    """vLLM's composite of both halves, which share one cache; keys are written by omnicupy's."""

    @classmethod
    def supports_sink(cls) -> bool:
        return bool(OmnicupyImagesBackend.supports_sink() and FlashAttentionBackend.supports_sink())
