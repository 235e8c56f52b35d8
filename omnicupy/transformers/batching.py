"""Continuous batching: generate_batch of transformers, whose steps hold rows of many sequences.

A step is one row of tokens. cu_seq_lens_q says where the rows of each sequence end, cu_seq_lens_k where its keys do;
the last row of a sequence is that of its last key. Versions differ in who writes the cache: from 5.24 on the layer,
before that the attention function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface

from omnicupy.errors import UnsupportedError
from omnicupy.torch.state import captures
from omnicupy.transformers import forward, loading
from omnicupy.transformers.closures import array
from omnicupy.transformers.kept import MAX_KEPT
from omnicupy.transformers.mask_tensor import MaskTensor
from omnicupy.transformers.options import REFUSED, refuse
from omnicupy.transformers.sequences import check_integers, of_bounds

VARLEN = "_flash_varlen"  # transformers asks only names with "flash" for packed sequences
GRAPHS = "_graphs"  # ahead of it, in the names of `graphs.attention`
MOST_SEQUENCES = 1024  # that one call takes where lengths are on the device
# Versions whose continuous batching takes names with this prefix alone, and call cache.update(read_index=).
PAGED = "paged|" if "paged|sdpa" in AttentionInterface().valid_keys() else ""

# What a step says to engines and not to attention; "cache" is in `written`.
OF_STEPS = (
    "read_index",
    "write_index",
    "logits_indices",
    "logits_processor_args",
    "max_seqlen_q",
    "max_seqlen_k",
)

Numbers = tuple[int, ...]


def names(name: str) -> tuple[str, ...]:
    """The names of attention that serve packed sequences and continuous batching, beside `name`."""
    return tuple(dict.fromkeys((name + VARLEN, PAGED + name + VARLEN)))


def continuous(model: Any, **options: Any) -> Any:
    """Prepare a model that was loaded with omnicupy for continuous batching; returns its ContinuousBatchingConfig.

        config = omnicupy.transformers.continuous(model)
        model.generate_batch(prompts, continuous_batching_config=config)

    Sets the name of the model's attention to that which transformers accepts there ("omnicupy_flash_varlen"), in the
    parts of the model that have omnicupy; `generate` goes on as before. options: further fields of the configuration,
    such as page_size or max_batch_tokens. use_cuda_graph: False, unless it is given: steps whose mask the
    host makes, of lengths that it reads. True sets another name
    ("omnicupy_graphs_flash_varlen"), of attention that reads nothing on the host, and lets transformers capture its
    steps. auto_switch_to_flash is False: transformers would otherwise take another attention where it finds one.
    Raises TypeError for what is no model, ValueError for one that was not loaded with omnicupy and, with graphs, for
    more than 1,024 requests a batch; UnsupportedError for graphs of steps that torch.compile has compiled.
    """
    from transformers import ContinuousBatchingConfig  # not every version has one

    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"continuous: model must be a model of transformers, got {type(model).__name__}; load it with "
            "attn_implementation=omnicupy.transformers.register()"
        )
    config = model.config
    found = config._attn_implementation
    parts = {key: getattr(config, key, None) for key in config.sub_configs}
    ours = {key for key, part in parts.items() if _is_ours(getattr(part, "_attn_implementation", None))}
    if not _is_ours(found):
        raise ValueError(
            f"continuous: the model must have been loaded with omnicupy, got attn_implementation={found!r}; load it "
            "with attn_implementation=omnicupy.transformers.register()"
        )
    graphs = options.pop("use_cuda_graph", None)
    if isinstance(graphs, (tuple, list)) and any(graphs) and not graphs[0]:
        raise UnsupportedError(
            f"continuous: use_cuda_graph={graphs!r} asks for graphs of steps by block tables alone, which omnicupy "
            "does not compute; pass True"
        )
    if with_graphs := any(graphs) if isinstance(graphs, (tuple, list)) else bool(graphs):
        _check_graphs(options)
    if options.get("auto_switch_to_flash"):
        raise ValueError(
            "continuous: auto_switch_to_flash must be False, got True, which takes another attention; leave it out"
        )
    if "auto_switch_to_flash" in inspect.signature(ContinuousBatchingConfig).parameters:
        options["auto_switch_to_flash"] = False
    made = ContinuousBatchingConfig(use_cuda_graph=with_graphs and (True, False), **options)
    plain = found.removeprefix("paged|").removesuffix(VARLEN).removesuffix(GRAPHS)
    name = names(plain + GRAPHS if with_graphs else plain)[-1]
    config._attn_implementation = {"": name} | dict.fromkeys(ours, name)
    return made


def _is_ours(name: Any) -> bool:
    return name in loading.names()


def _check_graphs(options: Mapping[str, Any]) -> None:
    """Raises ValueError or UnsupportedError for fields of a configuration that do not go with graphs."""
    most = options.get("max_requests_per_batch")
    if most is not None and most > MOST_SEQUENCES:
        raise ValueError(
            f"continuous: max_requests_per_batch must be at most {MOST_SEQUENCES} with use_cuda_graph, got {most}"
        )
    compiled = next(
        (name for name in ("varlen_compile_config", "default_compile_level") if options.get(name)), None
    )
    if compiled is not None:
        raise UnsupportedError(
            f"continuous: use_cuda_graph with {compiled}={options[compiled]!r} is not supported, since attention runs "
            "between the graphs of torch.compile; leave one of them out"
        )


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    **options: Any,
) -> Any:
    """`forward.attention`, which also takes a step of continuous batching: rows and keys as the bounds say, causal
    and within the layer's window, each sequence by itself. Rows past the last bound (padding) give zeros.

    Raises UnsupportedError for block tables, for a mask tensor beside the bounds, and while a CUDA graph is captured.
    """
    if options.get("write_index") is None:
        return forward.attention(module, query, key, value, attention_mask, dropout, **options)
    check_step(module, attention_mask, options)
    key, value, attention_mask, options = _step(module, query, key, value, options)
    options["is_causal"] = False  # the mask says it
    return forward.attention(module, query, key, value, attention_mask, dropout, **options)


def check_step(module: Any, attention_mask: Any, options: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for block tables, and for a mask tensor beside the bounds."""
    if (table := options.get("block_table")) is not None:
        refuse(module, REFUSED["block_table"], "block_table", table)
    # A MaskTensor is made by versions before 5.24, of the rows alone.
    if attention_mask is not None and not isinstance(attention_mask, MaskTensor):
        refuse(module, "a mask beside the bounds of continuous batching", "attention_mask", attention_mask)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the host reads bounds
def _step(module: Any, query: Any, key: Any, value: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """Keys and values with those of the cache, the mask of the step, and the options that are left."""
    key, value, options = written(module, key, value, options)
    window = options.get("sliding_window") or getattr(module, "sliding_window", None)
    of_rows = _numbers("cu_seq_lens_q", options.pop("cu_seq_lens_q", None))
    of_keys = _numbers("cu_seq_lens_k", options.pop("cu_seq_lens_k", None))
    _check(of_rows, of_keys, query.shape[2], key.shape[2])
    for name in OF_STEPS:
        options.pop(name, None)
    mask = _mask(of_rows, of_keys, query.shape[2], key.shape[2], window, query.device)
    return key, value, mask, options


def written(module: Any, key: Any, value: Any, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Keys and values that the rows see: where the layer has not done it, the cache takes the new ones first."""
    cache = options.pop("cache", None)
    if cache is None:
        return key, value, options
    index = {"layer_idx": module.layer_idx}
    if "kwargs" in _parameters(type(cache).update):
        key, value = cache.update(key_states=key, value_states=value, kwargs=options, **index)
        return key, value, options
    places = {name: options[name] for name in ("read_index", "write_index")}
    key, value = cache.update(key_states=key, value_states=value, **index, **places)
    kind = "sliding_attention" if getattr(module, "sliding_window", None) else "full_attention"
    of_kinds = {name: options.get(name) for name in ("cu_seq_lens_k", "max_seqlen_k")}
    options |= {name: of[kind] for name, of in of_kinds.items() if isinstance(of, Mapping)}
    key, value = (one.transpose(0, 1)[None] for one in (key, value))  # from (keys, heads, head_dim)
    return key, value, options


@lru_cache(maxsize=8)  # a function's parameters stay as they are
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


# Bounds -> (version, numbers). The value is determined by the elements, which engines write before a step and hand to
# its layers as one view, made for the step; torch counts writes, but for tensors made in inference mode. An entry dies
# with its view.
_read: Any = WeakIdKeyDictionary()


def check_bounds(name: str, bounds: Any) -> None:
    """Raises TypeError unless these are bounds of sequences, integers."""
    if not isinstance(bounds, torch.Tensor) or bounds.ndim != 1 or len(bounds) < 2:
        raise TypeError(f"{name} must be a tensor of bounds (sequences + 1,), got {bounds!r}; pass one")
    check_integers(name, bounds)


def _numbers(name: str, bounds: Any) -> Numbers:
    """The bounds as numbers; the first layer of a step waits for the device."""
    check_bounds(name, bounds)
    if captures(bounds.device):
        raise UnsupportedError(
            f"{name} cannot be read while a CUDA graph is captured, since a replay would not see what it holds then; "
            "pass the configuration of omnicupy.transformers.continuous(model, use_cuda_graph=True)"
        )
    version = None if bounds.is_inference() else bounds._version
    found = _read.get(bounds)
    if found is None or found[0] != version:
        found = _read[bounds] = (version, tuple(array(bounds).tolist()))
    numbers: Numbers = found[1]
    return numbers


def _check(of_rows: Numbers, of_keys: Numbers, rows: int, keys: int) -> None:
    for name, bounds, tokens in (("cu_seq_lens_q", of_rows, rows), ("cu_seq_lens_k", of_keys, keys)):
        if bounds[0] != 0 or bounds[-1] > tokens or any(b < a for a, b in pairwise(bounds)):
            raise ValueError(
                f"{name} must rise from 0 to {tokens} tokens at most, got {list(bounds)}; pass the cumulative lengths "
                "of all sequences"
            )


@lru_cache(maxsize=MAX_KEPT)  # the arguments determine the mask, which is immutable
def _mask(
    of_rows: Numbers, of_keys: Numbers, rows: int, keys: int, window: int | None, device: Any
) -> MaskTensor:
    """The mask of a step, of which the layers of one kind share one."""
    # Rows past the last sequence have no key, keys past it no row: two sequences without the other.
    q = np.array((*of_rows, rows, rows), np.int64)
    k = np.array((*of_keys, of_keys[-1], keys), np.int64)
    return MaskTensor([of_bounds(q, k, True, window)], 1, device)
