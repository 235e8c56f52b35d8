"""The masks of models that torch.compile is to capture as one graph (fullgraph=True).

A mask is data: outside of torch.compile, and between its graphs, `make_mask` reads rules and padding and makes
intervals. One graph has no place for that. There the mask is the boolean tensor that sdpa would get, made by the graph,
and the operator reads it when the graph runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask

from omnicupy.torch.state import is_exporting
from omnicupy.transformers import options
from omnicupy.transformers.masking import make_mask


def mask_maker(ignored: Collection[str] = ()) -> Callable[..., Any]:
    """`make_mask` as transformers calls it, whose options `ignored` change nothing: no part of a graph, unless there
    is to be one alone.
    """
    between_graphs = torch.compiler.disable(partial(make_mask, ignored=ignored))

    def make(*sizes: Any, **given: Any) -> Any:
        if torch.compiler.is_compiling() and not is_exporting() and is_one_graph():
            return mask_in_graph(*sizes, ignored=ignored, **given)
        return between_graphs(*sizes, **given)

    return make


def mask_in_graph(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Any = None,
    use_vmap: bool = False,
    device: Any = "cpu",
    ignored: Collection[str] = (),
    **rest: Any,
) -> Any:
    """The arguments of `make_mask` to a boolean tensor (batch, 1, rows, keys).

    Never None, by which sdpa_mask leaves it to a layer's is_causal: layers that do not serve sdpa need not set that.
    Raises UnsupportedError for an option that is not known.
    """
    options.check_mask_options(rest, ignored)
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        use_vmap=use_vmap,
        device=device,
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_one_graph() -> bool:
    """Whether the capture that calls this fails at a break of the graph. Nothing public of torch says so."""
    # Here, since it takes a second to import where nothing is captured.
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        capture = InstructionTranslator.current_tx()
    except AttributeError:  # none is under way
        return False
    return bool(capture.one_graph or getattr(capture, "error_on_graph_break", False))
