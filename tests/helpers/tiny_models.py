"""Models of transformers with a few random weights and their inputs, made by hand: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

VOCABULARY, PAD, IMAGE = 96, 0, 90
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


@dataclass(frozen=True)
class Tiny:
    """A model class, how to make its configuration, and inputs for two rows of which the second is shorter."""

    make: Callable[[], tuple[Any, Any]]  # class and configuration
    inputs: Callable[[str], dict[str, Any]]  # by the side that is padded


def model(name: str, attn_implementation: Any, **changes: Any) -> Any:
    """The model of that name with that attention, the same weights every time; changes: of the text's config."""
    kind, config = (MODELS | OTHERS | SCORES)[name].make()
    text = config.get_text_config()
    for key, value in changes.items():
        setattr(text, key, value)
    return made(kind, config, attn_implementation)


def made(kind: Any, config: Any, attn_implementation: Any) -> Any:
    """A model of that class and configuration, the same weights every time."""
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation=attn_implementation).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():  # the usual 0.02 would leave attention nearly uniform
        if parameter.ndim > 1:
            scale = 0.05 if "embed" in name else 0.35
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model


def _rows(side: str, short: list[int], long: list[int], seed: int = 3) -> dict[str, Any]:
    """Token ids and padding of two rows; -1 stands for some text token."""
    generator = torch.Generator().manual_seed(seed)
    padding = [PAD] * (len(long) - len(short))
    ids = torch.tensor([long, padding + short if side == "left" else short + padding])
    mask = torch.ones_like(ids)
    mask[1, : len(padding)] = 0
    if side == "right":
        mask[1] = mask[1].flip(0)
    some = torch.randint(2, IMAGE - 5, ids.shape, generator=generator)
    return {"input_ids": torch.where(ids == -1, some, ids), "attention_mask": mask}


def _pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def _llama() -> tuple[Any, Any]:
    return transformers.LlamaForCausalLM, transformers.LlamaConfig(**TEXT)


def _mistral() -> tuple[Any, Any]:
    return transformers.MistralForCausalLM, transformers.MistralConfig(**TEXT, sliding_window=7)


def _llama4() -> tuple[Any, Any]:
    config = transformers.Llama4TextConfig(
        **TEXT,
        head_dim=8,
        attention_chunk_size=6,
        layer_types=["chunked_attention", "full_attention", "chunked_attention"],
        intermediate_size_mlp=48,
        num_local_experts=2,
        num_experts_per_tok=1,
        attn_temperature_tuning=False,
    )
    return transformers.Llama4ForCausalLM, config


def text_rows(side: str, short: int, long: int) -> dict[str, Any]:
    """Two rows of text, of `long` and `short` tokens."""
    return _rows(side, [-1] * short, [-1] * long)


def _text_inputs(side: str) -> dict[str, Any]:
    # Less padding than any window: eager lets rows that see nothing see all, and generates from them.
    return text_rows(side, 20, 23)


GEMMA3_IMAGE = [88, *[IMAGE] * 4, 89]


def _gemma3() -> tuple[Any, Any]:
    text = TEXT | {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=88,
        eoi_token_index=89,
    )
    return transformers.Gemma3ForConditionalGeneration, config


def _gemma3_inputs(side: str) -> dict[str, Any]:
    short = [1, -1, *GEMMA3_IMAGE, *[-1] * 8]
    long = [1, -1, -1, *GEMMA3_IMAGE, -1, *GEMMA3_IMAGE, -1, -1, -1, -1]
    rows = _rows(side, short, long)
    return rows | {"token_type_ids": (rows["input_ids"] == IMAGE).long(), "pixel_values": _pixels(3)}


def _paligemma() -> tuple[Any, Any]:
    config = transformers.PaliGemmaConfig(
        text_config=TEXT | {"head_dim": 8, "model_type": "gemma"},
        vision_config=VISION | {"model_type": "siglip_vision_model", "projection_dim": 32},
        image_token_index=IMAGE,
        projection_dim=32,
    )
    return transformers.PaliGemmaForConditionalGeneration, config


def _paligemma_inputs(side: str) -> dict[str, Any]:
    rows = _rows(side, [*[IMAGE] * 16, 1, -1, -1], [*[IMAGE] * 16, 1, *[-1] * 6])
    kinds = torch.zeros_like(rows["input_ids"])
    kinds[:, -3:] = 1  # the answer: causal
    return rows | {"token_type_ids": kinds, "pixel_values": _pixels(2)}


QWEN_IMAGE = [93, *[IMAGE] * 12, 94]


def _qwen2_5_vl() -> tuple[Any, Any]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "depth": 3,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=91,
        vision_start_token_id=93,
        vision_end_token_id=94,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration, config


def _qwen_inputs(side: str) -> dict[str, Any]:
    short, long = [1, *QWEN_IMAGE, -1, -1], [1, -1, -1, *QWEN_IMAGE, *[-1] * 6]
    patches = torch.randn(2 * 48, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(5))
    rows = _rows(side, short, long)
    grids = torch.tensor([[1, 8, 6]] * 2)
    kinds = (rows["input_ids"] == IMAGE).long()
    return rows | {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": kinds}


MODELS = {
    "llama": Tiny(_llama, _text_inputs),
    "mistral": Tiny(_mistral, _text_inputs),
    "llama4": Tiny(_llama4, _text_inputs),
    "gemma3": Tiny(_gemma3, _gemma3_inputs),
    "paligemma": Tiny(_paligemma, _paligemma_inputs),
    "qwen2_5_vl": Tiny(_qwen2_5_vl, _qwen_inputs),
}


ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}


def _bert() -> tuple[Any, Any]:
    return transformers.BertModel, transformers.BertConfig(**ENCODER)


def _modernbert() -> tuple[Any, Any]:
    config = transformers.ModernBertConfig(**ENCODER, local_attention=8, global_attn_every_n_layers=2)
    return transformers.ModernBertModel, config


def _bart() -> tuple[Any, Any]:
    sizes = {
        f"{part}_{name}": n
        for part in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, max_position_embeddings=64, pad_token_id=PAD, **sizes
    )
    return transformers.BartModel, config


# Models that are no language models: both-sided attention and windows, attention to another sequence.
OTHERS = {
    "bert": Tiny(_bert, _text_inputs),
    "modernbert": Tiny(_modernbert, _text_inputs),
    "bart": Tiny(_bart, _text_inputs),
}


WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def _gemma2() -> tuple[Any, Any]:
    # A cap that scores reach: at 50 those of so small a model would hardly tell.
    config = transformers.Gemma2Config(
        **TEXT, **WINDOWS, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=2.0
    )
    return transformers.Gemma2ForCausalLM, config


def _gpt_oss() -> tuple[Any, Any]:
    config = transformers.GptOssConfig(
        **TEXT, **WINDOWS, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    )
    return transformers.GptOssForCausalLM, config


def _granite_swa() -> tuple[Any, Any]:
    return transformers.GraniteSWAForCausalLM, transformers.GraniteSWAConfig(**TEXT, **WINDOWS)


# Models that change scores: a soft cap, and sinks, which their weights hold.
SCORES = {"gemma2": Tiny(_gemma2, _text_inputs), "gpt_oss": Tiny(_gpt_oss, _text_inputs)}
if hasattr(transformers, "GraniteSWAForCausalLM"):  # not in 5.17
    SCORES["granite_swa"] = Tiny(_granite_swa, _text_inputs)

LATER = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (5, 23)
# Each of MODELS with a cache that grows and a static one. 5.17 cannot make chunked masks for a static cache, whatever
# the attention.
CACHES = [
    (name, cache)
    for name in MODELS
    for cache in (None, "static")
    if LATER or (name, cache) != ("llama4", "static")
]
