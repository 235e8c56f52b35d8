"""For each source of kernels/ a case that runs it on the CPU, and that every run has: others take turns."""

from __future__ import annotations

_FILE = "tests/kernels/test_{}_on_cpu.py::test_{}"
_BACKWARD = _FILE.format("backward", "all_gradients_by_one_kernel[sm_80-float16-16-64-64-2-4-causal]")
_HOPPER = _FILE.format("backward_sm90", "gradients[float16-64-128-one-a-batch-element]")
CASES = {
    "attention_bwd_convert.cu": _BACKWARD,
    "attention_bwd_delta.cu": _BACKWARD,
    "attention_bwd_dkdv_sm90.cu": _HOPPER,
    "attention_bwd_dq_sm90.cu": _HOPPER,
    "attention_bwd_fused_sm80.cu": _BACKWARD,
    "attention_bwd_naive.cu": _FILE.format("backward", "gradients[naive-sm_80-bfloat16-56-causal]"),
    "attention_bwd_sm80.cu": _BACKWARD,
    "attention_bwd_sm90.cu": _FILE.format("backward_sm90", "all_gradients_in_one_order[causal-64-False]"),
    "attention_fwd_few_rows.cu": _FILE.format("few_rows", "scales[16-token]"),
    "attention_fwd_key_turns.cu": _FILE.format("packed_pair", "many_parts_are_merged[keys-5]"),
    "attention_fwd_packed.cu": _FILE.format("packed_pair", "many_parts_are_merged[rows-5]"),
    "attention_fwd_paged.cu": _FILE.format("paged_forward", "keys_of_no_page_are_not_seen[sm90-three-16]"),
    "attention_fwd_sm80.cu": _FILE.format("forward", "both_results[sm80-64x64-s1-w4-bfloat16-56-both]"),
    "attention_fwd_sm90.cu": _FILE.format("forward", "both_results[sm90-64x64-s2-w8-bfloat16-64-both]"),
    "attention_naive.cu": _FILE.format("forward", "both_results[naive-bfloat16-56-both]"),
    "attention_plan_cached.cu": _FILE.format("cached_splits", "merged_parts_are_the_whole[1-window-0.5]"),
    "cache_append.cu": _FILE.format("append", "the_last_keys[1-None]"),
    "cache_append_fp8.cu": _FILE.format("fp8_append", "the_last_keys[None-tensor-float16]"),
    "exchange_add.cu": _FILE.format("exchange_add", "gradients_are_added_in_one_order[bfloat16]"),
    "exchange_keys.cu": _FILE.format("exchange", "rows_arrive_in_their_places_call_after_call[2]"),
}
