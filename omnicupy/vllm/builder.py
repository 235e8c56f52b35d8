"""What vLLM knows of a step, as a Batch. The device is not waited for."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder, CommonAttentionMetadata

from omnicupy.errors import UnsupportedError
from omnicupy.vllm.batch import Batch

_NOT_TAKEN = {
    "encoder_seq_lens": "cross attention",
    "dcp_local_seq_lens": "decode context parallelism",
    "rswa_prefix_lens": "a prefix that windows leave seen (R-SWA)",
}


class OmnicupyBuilder(AttentionMetadataBuilder[Batch]):  # type: ignore[misc]
    """Metadata of steps that have images in their rows; the others are FlashAttention's.

    Those alone are captured: a graph has one row a request, and routing leaves these to FlashAttention, or refuses
    graphs. So this half permits what routing does, and refuses to be captured.
    """

    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Batch:
        """fast_build: the same is built.

        Raises UnsupportedError for what is not computed, ValueError for images without lengths on the host.
        """
        step = common_attn_metadata
        if common_prefix_len:
            raise UnsupportedError(
                f"common_prefix_len must be 0: cascades are not computed, got {common_prefix_len}; switch cascade "
                "attention off"
            )
        if step.causal is not True:
            raise UnsupportedError(
                f"causal must be True: requests that see all keys are not computed, got {step.causal!r}; take another "
                "attention backend"
            )
        for name, what in _NOT_TAKEN.items():
            if getattr(step, name, None) is not None:
                raise UnsupportedError(f"{name}: {what} is not computed; take another attention backend")
        known = step.seq_lens_cpu_upper_bound
        if known is None and any((step.mm_req_doc_ranges or {}).values()):
            raise ValueError(
                "mm_req_doc_ranges goes with seq_lens_cpu_upper_bound, which says where images lie in a step, got None"
            )
        return Batch(
            num_actual_tokens=step.num_actual_tokens,
            query_start_loc=step.query_start_loc,
            seq_lens=step.seq_lens,
            block_table=step.block_table_tensor,
            starts=step.query_start_loc_cpu.tolist(),
            most_keys=[step.max_seq_len] * step.num_reqs if known is None else known.tolist(),
            mm_prefix_range=step.mm_req_doc_ranges,
        )

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> Batch:
        """Raises UnsupportedError."""
        raise UnsupportedError(
            "a step with images is not captured into a CUDA graph; routing captures FlashAttention's half alone"
        )
