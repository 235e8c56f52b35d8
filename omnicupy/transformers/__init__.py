"""Attention of Hugging Face transformers' models through omnicupy, without a change to the models.

    import omnicupy.transformers
    omnicupy.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="omnicupy")

Imported by name: `import omnicupy` imports neither PyTorch nor transformers.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface

from omnicupy.transformers import graphs
from omnicupy.transformers.batching import attention as steps_too
from omnicupy.transformers.batching import continuous
from omnicupy.transformers.batching import names as packed_names
from omnicupy.transformers.forward import attention
from omnicupy.transformers.loading import watch
from omnicupy.transformers.mask_tensor import MaskTensor
from omnicupy.transformers.masking import attention_mask
from omnicupy.transformers.one_graph import mask_maker
from omnicupy.transformers.options import check_ignored

__all__ = ["MaskTensor", "attention_mask", "continuous", "register"]

TAKEN = ("flash", "sdpa", "flex", "eager", "paged", "/", ":")  # parts of names that mean something to it


def register(name: str = "omnicupy", *, ignore: Collection[str] = ()) -> str:
    """Make attn_implementation=name mean omnicupy, for attention and its masks. Returns the name.

    The masks are those that a model asks for (causal, windows, chunks, packed sequences, padding, images that
    see themselves and whatever joins these by and, or), as intervals and without a look at single pairs;
    functions that are not known are evaluated, chunk by chunk, to the same pairs. A row that sees nothing
    (padding) gives zeros. Prefill, steps with a cache and static caches work; models run on the CPU and on
    CUDA devices, in the dtypes of omnicupy.torch.attention, and under torch.autocast. torch.compile makes masks between
    its graphs; with fullgraph=True the graph makes them, as arrays of all pairs, which is slower.

    Raises UnsupportedError when a model is loaded that takes its attention from nowhere but its own code, and
    at the first forward pass that asks for what is missing, and names it: dropout in training, position biases, sparse
    indices, attention weights, continuous batching without `continuous`. So does an option that reaches attention and
    that this version does not know (omnicupy.transformers.options lists all).
    ignore: names of further options that change nothing of attention, such as those of a model of your own.

    Also registers f"{name}_flash_varlen" for vision towers that pack images (Qwen2.5-VL): one call with all of
    them instead of one an image. Set it on the tower's configuration once the model is loaded:
    model.model.visual.config._attn_implementation = "omnicupy_flash_varlen".

    Raises TypeError for a name that is no string, ValueError for one that transformers gives a meaning and for
    an `ignore` that changes the result.
    """
    if not isinstance(name, str):
        raise TypeError(f"register: name must be a string, got {type(name).__name__} {name!r}; pass a name")
    found = [part for part in TAKEN if part in name]
    if not name or found:
        raise ValueError(
            f"register: name must hold none of {', '.join(TAKEN)}, which transformers reads as its own, got "
            f"{name!r}; take 'omnicupy'"
        )
    ignored = check_ignored(ignore)
    functions: dict[str, tuple[Any, Any]] = {name: (attention, mask_maker)}
    functions |= dict.fromkeys(packed_names(name), (steps_too, mask_maker))
    functions |= dict.fromkeys(graphs.names(name), (graphs.attention, graphs.mask_maker))
    for one, (function, maker) in functions.items():
        AttentionInterface.register(one, partial(function, ignored=ignored) if ignored else function)
        AttentionMaskInterface.register(one, maker(ignored))
    watch(*functions)
    return name
