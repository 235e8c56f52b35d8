"""Tiny configurations of any model family of transformers, by the names that configurations use."""

from __future__ import annotations

import inspect
from typing import Any

TOKENS = 96

# What makes a configuration tiny, by the names that they use.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_vocab", "vocab_size_or_config_json_file"), TOKENS),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(
        ("encoder_hidden_size", "decoder_hidden_size", "projection_dim", "d_embed", "hidden_dim"), 32
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2
    ),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_mtp_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_query_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "kv_channels", "attention_head_size"), 8),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"), 48
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size", "d_inner"), 48
    ),
    **dict.fromkeys(
        ("intermediate_size_mlp", "mlp_dim", "expert_ffn_hidden_size", "dense_intermediate_size"), 48
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length"), 128
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts"), 2
    ),
    **dict.fromkeys(
        ("sliding_window", "attention_window_size", "local_attention", "attention_chunk_size"), 8
    ),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("forced_eos_token_id", "forced_bos_token_id"), None),
    "eos_token_id": TOKENS - 2,
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "cls_token_id", "sep_token_id"), 1),
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "query_pre_attn_scalar": 8,
    "global_head_dim": 8,
    "num_global_key_value_heads": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": TOKENS,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rotary_dim": 8,
    **dict.fromkeys(("image_size", "crop_size"), 16),
    **dict.fromkeys(("patch_size", "num_patches"), 4),
    **dict.fromkeys(("out_hidden_size", "output_dim", "vision_output_dim", "projection_hidden_size"), 32),
    **dict.fromkeys(("depth", "num_global_layers"), 2),
}
# Where the names above leave a configuration that does not fit together.
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
_HALF_SECTIONS = {"rope_parameters": _SECTIONS["rope_parameters"] | {"mrope_section": [0, 1, 1]}}
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text"), _SECTIONS),
    **dict.fromkeys(("glm4v_text", "glm_image_text", "glm_ocr_text", "glm4v_moe_text"), _HALF_SECTIONS),
    **dict.fromkeys(("paddleocr_vl_text", "hunyuan_vl_text"), _SECTIONS),
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "kosmos_2_text_model": {"embed_dim": 32, "layers": 2, "attention_heads": 4},
    "kosmos_2_5_text_model": {"embed_dim": 32, "layers": 2, "attention_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "luke": {"entity_vocab_size": 16},
    "mimo_v2_flash": {"v_head_dim": 4},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "roc_bert": {"pronunciation_vocab_size": 16, "shape_vocab_size": 16},
    "sam3_lite_text_text_model": {"use_repmixer_blocks": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"], "mamba_ngroups": 1},
}


def tiny(kind: Any) -> Any:
    """A tiny configuration of a class, those that it is made of included."""
    known = set(inspect.signature(kind.__init__).parameters) | {
        name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})
    }
    default = kind()
    sizes = {
        name: value
        for name, value in SIZES.items()
        if name in known and name not in kind.attribute_map and _fits(default, name, value)
    }
    if "kv_lora_rank" in known:  # heads are made of parts, and keys are made for each
        sizes |= {"num_key_value_heads": 4} if "num_key_value_heads" in known else {}
        sizes.pop("head_dim", None)
    layers = _default(default, "layer_types")
    if layers and "layer_types" in known:
        sizes["layer_types"] = sorted(set(layers))
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    rope = _default(default, "rope_parameters")
    if rope and "mrope_section" in rope:
        half = int(4 * rope.get("partial_rotary_factor", 1))
        sizes["rope_parameters"] = {**rope, "mrope_section": [1, 1, half - 2]}
    for name in kind.sub_configs:
        if (part := _default(default, name)) is not None:
            sizes[name] = tiny(type(part))
    return kind(**sizes | CHANGES.get(kind.model_type, {}))


def _fits(default: Any, name: str, value: Any) -> bool:
    """Whether a size may stand where a configuration has this default."""
    before = _default(default, name)
    return before is None or isinstance(value, bool) or not isinstance(before, (list, tuple, str))


def _default(default: Any, name: str) -> Any:
    try:
        return getattr(default, name, None)
    except Exception:  # values that differ from layer to layer
        return None
