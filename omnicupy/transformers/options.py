"""What transformers passes to an attention function and to a mask function by name: used, harmless or refused.

Whatever a model's forward does not name itself travels on by `**kwargs` to each of its attention layers, so the
names are many and most say nothing about attention. A name that no table holds might change the result: it raises.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import torch

from omnicupy.errors import UnsupportedError

try:  # the versions that collect outputs by hooks
    from transformers.utils.output_capturing import _active_collector as _collector
except ImportError:
    _collector = None

# Read by the attention function, beside its own parameters.
USED = {
    "cu_seq_lens_q": "where the rows of each packed sequence end",
    "cu_seq_lens_k": "where the keys of each packed sequence end",
    "sliding_window": "the window of a layer that has no mask, which otherwise holds it",
    "softcap": "the bound of the scores",
    "s_aux": "a logit of each head beside those of the keys",
}

_FED = "an input of a model, which has used it before its layers"
_OUTPUT = "says what a model returns"
HARMLESS = {
    "max_length_q": "sizes a kernel's grid; the bounds say the lengths",
    "max_length_k": "sizes a kernel's grid; the bounds say the lengths",
    "position_ids": "went into the mask, which holds packed sequences, and into the rotation of query and key",
    "position_embeddings": "went into query and key",
    "seq_idx": "for state-space layers; attention has the sequences from cu_seq_lens_q and position_ids",
    "deterministic": "every call gives the same bits",
    "use_cache": "the keys of a cache are in key and value already",
    "cache": "its keys are in key and value already; that of continuous batching is refused",
    "past_key_values": "its keys are in key and value already; that of continuous batching is refused",
    "past_key_value": "its keys are in key and value already; that of continuous batching is refused",
    "cache_params": "states of state-space layers",
    "cache_position": "went into the mask",
    "num_items_in_batch": "divides the loss",
    "output_hidden_states": _OUTPUT,
    "output_router_logits": _OUTPUT,
    "return_dict": _OUTPUT,
    "return_loss": _OUTPUT,
    "logits_to_keep": _OUTPUT,
    "labels": "read by the loss alone",
    "shift_labels": "read by the loss alone",
    "interpolate_pos_encoding": "went into the embeddings",
    "grid_thw": "went into the embeddings and the bounds",
    "input_ids": _FED,
    "inputs_embeds": _FED,
    "token_type_ids": _FED,
    "mm_token_type_ids": _FED,
    "pixel_values": _FED,
    "pixel_values_videos": _FED,
    "image_grid_thw": _FED,
    "video_grid_thw": _FED,
    "image_sizes": _FED,
    "input_features": _FED,
    "input_values": _FED,
    "encoder_outputs": _FED,
    "decoder_input_ids": _FED,
    "decoder_inputs_embeds": _FED,
    "decoder_attention_mask": _FED,
    "decoder_position_ids": _FED,
}

_PAGED = "continuous batching"
_BLOCKS = "continuous batching by a block table"
REFUSED = {
    "sinks": "attention sinks",
    "position_bias": "a position bias",
    "indices": "sparse attention by indices",
    "block_indices": "sparse attention by indices",
    "head_mask": "a mask of heads",
    "output_attentions": "the attention weights",
    "block_table": _BLOCKS,
    "cache_seqlens": _BLOCKS,
    "read_index": _PAGED,
    "write_index": _PAGED,
    "k_cache": _BLOCKS,
    "v_cache": _BLOCKS,
}

MASK_HARMLESS = {
    "allow_is_causal_skip": "lets sdpa leave a mask out; here a mask costs nothing that leaving it out would save",
    "allow_is_bidirectional_skip": "lets sdpa leave a mask out",
    "allow_torch_fix": "lets sdpa show rows that see nothing; they give zeros here",
    "local_size": "the width of the window or chunk that mask_function holds",
    "dtype": "that of an additive mask",
    "config": "the model's; the mask function holds what it says",
}

_CACHES = ("cache", "past_key_values", "past_key_value")


def check(module: Any, options: Mapping[str, Any], ignored: Collection[str]) -> None:
    """Raises UnsupportedError for an option that attention would have to compute and for one that nobody knows."""
    if _collects_weights():
        refuse(module, REFUSED["output_attentions"], "output_attentions", True)
    for name, value in options.items():
        if value is None or name in USED:
            continue
        if name in HARMLESS:
            if name in _CACHES and _paged(value):
                refuse(module, _PAGED, name, value)
        elif name in REFUSED:
            if value is not False:
                refuse(module, REFUSED[name], name, value)
        elif name not in ignored:
            raise UnsupportedError(
                f"{type(module).__name__} passes {name} ({_shown(value)}), which omnicupy does not know; load the "
                f"model with attn_implementation='eager', or, where it changes nothing of attention, call "
                f"omnicupy.transformers.register(ignore=[{name!r}])"
            )


def _collects_weights() -> bool:
    """Whether hooks of transformers wait for the weights of this pass. Many models do not hand output_attentions on to
    their layers, and would return a tuple without weights. False where torch.compile does not see that pass begin: it
    cannot read what belongs to a context.
    """
    if _collector is None or (torch.compiler.is_compiling() and not _collector.compiling):
        return False
    return any(name.endswith("attentions") for name in _collector.get() or ())


def check_mask_options(options: Mapping[str, Any], ignored: Collection[str]) -> None:
    """Raises UnsupportedError for an option of a mask function that nobody knows."""
    for name, value in options.items():
        if value is not None and name not in MASK_HARMLESS and name not in ignored:
            raise UnsupportedError(
                f"a mask is asked for with {name} ({_shown(value)}), which omnicupy does not know; load the model with "
                f"attn_implementation='eager', or, where it changes no mask, call "
                f"omnicupy.transformers.register(ignore=[{name!r}])"
            )


def check_ignored(ignore: Any) -> frozenset[str]:
    """`ignore` of register as a set. Raises TypeError and ValueError for names that cannot be ignored."""
    if not isinstance(ignore, (list, tuple, set, frozenset)) or not all(
        isinstance(one, str) for one in ignore
    ):
        raise TypeError(f"register: ignore must be a list of names, got {ignore!r}; pass strings")
    for name in ignore:
        if name in USED or name in REFUSED:
            raise ValueError(
                f"register: ignore must hold no name that changes the result, got {name!r} "
                f"({USED.get(name) or REFUSED[name]}); load such models with attn_implementation='eager'"
            )
    return frozenset(ignore)


def refuse(module: Any, feature: str, argument: str, value: Any) -> NoReturn:
    """Raises UnsupportedError for what a layer asks for and omnicupy does not compute."""
    raise UnsupportedError(
        f"{type(module).__name__} asks for {feature} ({argument}: {_shown(value)}), which omnicupy does not compute; "
        "load the model with attn_implementation='eager'"
    )


def _paged(value: Any) -> bool:
    return any(kind.__name__ == "PagedAttentionCache" for kind in type(value).__mro__)


def _shown(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
