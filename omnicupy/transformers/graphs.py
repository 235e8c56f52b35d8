"""Continuous batching under CUDA graphs: steps whose bounds are read on the device alone.

transformers pads a step to one of a few sizes, captures it, and replays it for later steps of that size, which it
writes into the same tensors: tokens, bounds, places in the cache. What the host knew at the capture holds for all of
them: shapes, and the most keys that a sequence may have. So no mask is made here. The keys of all sequences lie one
behind the other, which makes them pages of one token: entry j of sequence i is cu_seq_lens_k[i] + j.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from omnicupy import torch as front
from omnicupy.errors import UnsupportedError
from omnicupy.serving.caches import PagedKV
from omnicupy.serving.rule import cached
from omnicupy.torch import tensors
from omnicupy.torch.state import captures
from omnicupy.transformers import batching, forward, one_graph
from omnicupy.transformers.batching import GRAPHS


def names(name: str) -> tuple[str, ...]:
    """The names of attention that serve continuous batching under CUDA graphs."""
    return batching.names(name + GRAPHS)


def mask_maker(ignored: Collection[str] = ()) -> Callable[..., Any]:
    """`one_graph.mask_maker`, but for None in a capture: versions before 5.24 ask for a mask of each step, which reads
    where its tokens stand. `attention` refuses captured calls that need one.
    """
    make = one_graph.mask_maker(ignored)

    def made(*sizes: Any, **given: Any) -> Any:
        is_captured = not torch.compiler.is_compiling() and captures(given.get("device", "cpu"))
        return None if is_captured else make(*sizes, **given)

    return made


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    **options: Any,
) -> Any:
    """`batching.attention`, with nothing of a step read by the host: the same in a graph and outside of one.

    A step's bounds are int32 tensors, which the device reads where the work runs; those that a device cannot check and
    that no engine writes (falling ones, more keys than max_length_k and the step's rows) give rows of anything or zero.
    Raises UnsupportedError for what `batching.attention` refuses, and in a capture for calls that are no such step.
    """
    if options.get("write_index") is None:
        if not torch.compiler.is_compiling() and captures(query.device):
            raise UnsupportedError(
                f"{type(module).__name__} is captured into a CUDA graph without the bounds of continuous batching, by "
                f"the name of attention that is for these alone ({GRAPHS!r}); set the model's attention to that of "
                "omnicupy.transformers.register ahead of captures of your own"
            )
        return forward.attention(module, query, key, value, attention_mask, dropout, **options)
    batching.check_step(module, attention_mask, options)
    return _attend(module, (query, key, value), dropout, options), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # caches are served between the graphs of torch.compile
def _attend(module: Any, inputs: tuple[Any, Any, Any], dropout: float, options: dict[str, Any]) -> Any:
    """(1, rows, heads, value_dim) of a step."""
    query, key, value = inputs
    key, value, options = batching.written(module, key, value, options)
    query, key, value = tensors.autocast(query, key, value)
    window = options.get("sliding_window") or getattr(module, "sliding_window", None)
    scale, softcap = options.pop("scaling", None), options.get("softcap")
    longest = options.pop("max_seqlen_k", options.get("max_length_k"))
    bounds = tuple(_checked(name, options.pop(name, None)) for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    for name in (*batching.OF_STEPS, "is_causal"):
        options.pop(name, None)
    forward.check(module, (query, key, value), dropout, options, options.pop("ignored", ()))
    sinks = forward.sinks_of(module, options.get("s_aux"), query)
    rows, keys = query.shape[2], key.shape[2]
    # A sequence has no more keys than the step, and no more than its longest one, which transformers caps at what the
    # cache holds: a window's keys are those and the step's.
    most = keys if longest is None else min(keys, int(longest) + rows)
    step = _pass_of(bounds[0], getattr(module, "layer_idx", None)).step(bounds, rows, most, window)
    q = query[0].transpose(0, 1)
    k_pages, v_pages = (one[0].transpose(0, 1)[:, None] for one in (key, value))
    kv = PagedKV(k_pages, v_pages, step.table, step.lengths)
    # Rows past the last sequence are nobody's: the kernel leaves them as they are.
    out = q.new_zeros((*q.shape[:2], value.shape[3]))
    given = {"scale": scale, "sink_logits": sinks, "softcap": softcap, "out": out}
    front.attention(q, kv, mask=step.planned(q, kv, softcap), **given)
    return out[None]


def _checked(name: str, bounds: Any) -> Any:
    """Bounds that the device can read: the host looks at their shape and dtype."""
    batching.check_bounds(name, bounds)
    if bounds.dtype != torch.int32:
        raise TypeError(
            f"{name} must be int32 where CUDA graphs may be captured, got {bounds.dtype}; cast it"
        )
    return bounds


@dataclass
class _Step:
    """What layers of one kind share in one pass through the model. rows: cu_seq_lens_q.  table, lengths: of a PagedKV.
    max_rows: the most that a sequence may have.  plans: by the layout of a layer's arrays.
    """

    rule: Any
    rows: Any
    max_rows: int
    table: Any
    lengths: Any
    plans: dict[Any, Any] = field(default_factory=dict)

    def planned(self, q: Any, kv: PagedKV, softcap: float | None) -> Any:
        """`omnicupy.torch.plan` of the first layer with such arrays."""
        of_arrays = tuple((one.shape, one.stride(), one.dtype) for one in (q, kv.k_pages, kv.v_pages))
        found = self.plans.get((of_arrays, softcap))
        if found is None:
            ragged = {"rows": self.rows, "max_rows": self.max_rows}
            found = self.plans[of_arrays, softcap] = front.plan(q, kv, self.rule, softcap=softcap, **ragged)
        return found


@dataclass
class _Pass:
    """A pass through the model's layers, up to `layer`; captured: into a graph, which computes all of it anew."""

    layer: int
    captured: bool
    steps: dict[Any, _Step] = field(default_factory=dict)

    def step(self, bounds: tuple[Any, Any], rows: int, most: int, window: int | None) -> _Step:
        """That of the first layer with these bounds and window. rows, most: rows and keys that a sequence may have."""
        of_rows, of_keys = bounds
        if len(of_rows) != len(of_keys):
            raise ValueError(
                f"cu_seq_lens_q and cu_seq_lens_k must bound as many sequences, got {len(of_rows) - 1} and "
                f"{len(of_keys) - 1}; an empty one repeats a bound"
            )
        where = of_keys.data_ptr(), len(of_keys), most, window
        found = self.steps.get(where)
        if found is None:
            # Entries past a sequence's keys are the next one's, or no page at all: nothing reads them.
            table = of_keys[:-1, None] + torch.arange(most, dtype=torch.int32, device=of_keys.device)
            # Copied: what is kept for a tensor must not hold it.
            made = _Step(cached(window=window), of_rows.clone(), rows, table, of_keys.diff())
            found = self.steps[where] = made
        return found


# cu_seq_lens_q, of which engines make one view a step and hand it to all layers -> the pass that they are in.
_passes: Any = WeakIdKeyDictionary()


def _pass_of(bounds: Any, layer: int | None) -> _Pass:
    """The pass that a layer belongs to: a new one where layers begin again, as they do when a step that has run once
    is captured.
    """
    found: _Pass | None = _passes.get(bounds)
    captured = captures(bounds.device)
    if found is None or layer is None or layer <= found.layer or captured != found.captured:
        found = _passes[bounds] = _Pass(-1, captured)
    found.layer = -1 if layer is None else layer
    return found
