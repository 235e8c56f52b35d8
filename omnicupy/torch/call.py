"""attention() and prepare() on tensors: eager, or an operator of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from omnicupy.call import check_ragged
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.arguments import flag
from omnicupy.masks.mask import Mask
from omnicupy.serving.caches import CACHES
from omnicupy.serving.rule import CachedRule
from omnicupy.serving.step import CachedStep
from omnicupy.torch import backward, cached, next_layers, state, tensors
from omnicupy.torch.autograd import as_node, through_transforms
from omnicupy.torch.eager import prepare_eagerly, run_eagerly, untraced
from omnicupy.torch.operator import through_operator

NO_TRACE = "torch.jit.trace cannot record attention; use torch.compile"


def attention(
    q: Any,
    k: Any,
    v: Any = None,
    mask: Mask | Sequence[Mask] | CachedRule | CachedStep | None = None,
    *,
    scale: float | None = None,
    sink_logits: Any = None,
    softcap: float | None = None,
    return_lse: bool = False,
    out: Any = None,
    config: AttnSpec | None = None,
    split: int | None = None,
    rows: Any = None,
    max_rows: int | None = None,
    deterministic: bool = True,
) -> Any:
    """`omnicupy.attention` on torch tensors: same arguments, shapes, promises and errors; what is added or differs:

    q: (batch, q_heads, q_len, head_dim). k: (batch, kv_heads, k_len, head_dim). v: as k, or with value_dim columns.
    out: as q with the width of v, or None for a new C-contiguous tensor. sink_logits: (q_heads,), float32, for float64
    tensors float64. All on one device. No tensor is copied. Any strides on the CPU; on a GPU the last axis is
    contiguous and rows are 16-byte aligned: x.transpose(1, 2) of a (batch, tokens, heads, head_dim) tensor passes.

    CUDA tensors (float16, bfloat16) run on torch's current stream of their device, without a synchronisation;
    torch allocates the outputs. CPU tensors (float16, bfloat16, float32, float64) run on NumPy and BLAS.
    Inside torch.compile the call is one operator of the graph, and masks are inputs of it: pass them as arguments,
    and a new mask of the same shape recompiles nothing (the second one does, once); making one there breaks the graph.
    Ahead of a CUDA graph's capture call `prepare` or this once. A CachedKV or PagedKV of tensors may be k, eagerly.

    Gradients of out and lse reach q, k, v and sink_logits, in their dtypes, on the stream of the forward pass; those
    that nobody asks for are not computed. For them the call keeps q, k, v, out, lse and the mask, of which
    `omnicupy.attention_backward` may copy some. No second derivative, no forward mode; torch.func.grad, vjp, jacrev and
    vmap work. deterministic: False permits any order of sums, unless torch.use_deterministic_algorithms forbids it.

    Returns `out`, or (out, lse) with lse (batch, q_heads, q_len), float32, for float64 tensors float64.
    Raises what `omnicupy.attention` raises; UnsupportedError for `out` where a gradient is needed, for tensors that
    carry a tangent, for derivatives of gradients, and for `config` and `split` in torch.compile.
    """
    if type(return_lse) is not bool or type(deterministic) is not bool:
        given = {"return_lse": return_lse, "deterministic": deterministic}
        return_lse, deterministic = (flag("attention", name, value) for name, value in given.items())
    if isinstance(k, CACHES) or isinstance(mask, (CachedRule, CachedStep)):
        how = {"return_lse": return_lse, "out": out, "config": config, "split": split, "rows": rows}
        how |= {"max_rows": max_rows, "scale": scale, "sink_logits": sink_logits, "softcap": softcap}
        return _on_caches(q, k, v, mask, how)
    if rows is not None or max_rows is not None:
        check_ragged.refuse_without_caches()
    plain = state.are_plain(q, k, v, out, sink_logits)
    if not plain:
        tensors.check(q, k, v, out, sink_logits)
    if state.any_autocast():
        q, k, v = tensors.autocast(q, k, v)
    options = (scale, softcap, return_lse, config, split, deterministic)
    if torch.is_grad_enabled():
        if out is not None:
            tensors.check_out(out, q=q, k=k, v=v, sink_logits=sink_logits)
        elif q.requires_grad or k.requires_grad or v.requires_grad or tensors.needs_gradient(sink_logits):
            return with_gradients((q, k, v, sink_logits), mask, options, plain=plain)
    return _without_gradients((q, k, v, out, sink_logits), mask, options, plain)


def _without_gradients(given: tuple[Any, ...], mask: Any, options: tuple[Any, ...], plain: bool) -> Any:
    """The call whose gradients nobody asks for.

    given: q, k, v, out and sink_logits.  options: as in with_gradients.  plain: whether the tensors are.
    """
    q, k, v, out, sink_logits = given
    scale, softcap, return_lse, config, split, deterministic = options
    if state.has_tangents():  # which would be lost
        tensors.check_tangents(q=q, k=k, v=v, out=out, sink_logits=sink_logits)
    if torch.compiler.is_compiling():
        how = {"scale": scale, "return_lse": return_lse, "out": out, "config": config, "split": split}
        if sink_logits is not None or softcap is not None:
            how |= {"sink_logits": sink_logits, "softcap": softcap}
        return through_operator(q, k, v, mask, **how)
    run = run_eagerly if state.tracer() is None else untraced(run_eagerly)
    if not plain or state.modes() or state.transform() is not None or state.jit_traces():
        run = _seen_by_torch(plain, deterministic)
    try:
        return run(
            q,
            k,
            v,
            mask,
            scale=scale,
            return_lse=return_lse,
            out=out,
            config=config,
            split=split,
            sink_logits=sink_logits,
            softcap=softcap,
        )
    except (RuntimeError, TypeError):  # of torch, which says nothing of which tensor it is
        tensors.check_storage(q=q, k=k, v=v, out=out, sink_logits=sink_logits)
        raise


def _on_caches(q: Any, k: Any, v: Any, mask: Any, how: dict[str, Any]) -> Any:
    """A call on caches. how: its options. Raises UnsupportedError where torch.compile traces one."""
    if torch.compiler.is_compiling():
        raise UnsupportedError(cached.EAGER)
    if state.tracer() is not None:
        return untraced(cached.attention)(q, k, v, mask, **how)
    found = next_layers.again(mask, q, k, v, how) if isinstance(mask, CachedStep) else None
    return cached.attention(q, k, v, mask, **how) if found is None else found


def _seen_by_torch(plain: bool, deterministic: bool) -> Any:
    """What runs where torch has to see the call. Raises UnsupportedError where it could not record it."""
    if state.transform() is not None:
        return partial(through_transforms, deterministic=deterministic, tokens_first=False)
    if plain and not state.modes():
        raise UnsupportedError(NO_TRACE)
    return partial(through_operator, deterministic=deterministic)


def with_gradients(
    inputs: tuple[Any, Any, Any, Any],
    mask: Any,
    options: tuple[Any, ...],
    tokens_first: bool = False,
    plain: bool = False,
) -> Any:
    """The call where an input requires a gradient; they are tensors.

    inputs: q, k, v and sink_logits or None.  options: scale, softcap, return_lse, config, split, deterministic.
    tokens_first: as `new_out`.  plain: the tensors are known to be.
    """
    q, k, v, sink_logits = inputs
    if state.has_tangents():
        tensors.check_tangents(q=q, k=k, v=v, sink_logits=sink_logits)
    if torch.compiler.is_compiling():
        return through_operator(q, k, v, mask, **_how(options, sink_logits, tokens_first))
    if state.transform() is not None:
        return through_transforms(q, k, v, mask, **_how(options, sink_logits, tokens_first))
    try:
        if not (plain or state.are_plain(q, k, v, None, sink_logits)) or state.modes():
            return through_operator(q, k, v, mask, **_how(options, sink_logits, tokens_first))
        if state.jit_traces():
            raise UnsupportedError(NO_TRACE)
        run = as_node if state.tracer() is None else untraced(as_node)
        return run(q, k, v, sink_logits, mask, options, tokens_first)
    except (RuntimeError, TypeError):  # of torch, which says nothing of which tensor it is
        tensors.check_storage(q=q, k=k, v=v, sink_logits=sink_logits)
        raise


def _how(options: tuple[Any, ...], sink_logits: Any, tokens_first: bool) -> dict[str, Any]:
    """The keywords of a call as the operator takes them. options: as in with_gradients."""
    scale, softcap, return_lse, config, split, deterministic = options
    how = {"scale": scale, "return_lse": return_lse, "out": None, "config": config, "split": split}
    how |= {"deterministic": deterministic, "tokens_first": tokens_first}
    return how | {"sink_logits": sink_logits, "softcap": softcap}


def prepare(
    q: Any,
    k: Any,
    v: Any = None,
    mask: Mask | Sequence[Mask] | CachedRule | None = None,
    *,
    scale: float | None = None,
    sink_logits: Any = None,
    softcap: float | None = None,
    return_lse: bool = False,
    out: Any = None,
    config: AttnSpec | None = None,
    split: int | None = None,
    gradients: bool = False,
    max_length: int | None = None,
    rows: Any = None,
    max_rows: int | None = None,
) -> None:
    """`omnicupy.prepare` on torch tensors: what the first `attention` call with these arguments does before its
    launch, on torch's current stream. On CPU tensors it checks the arguments and does nothing else.

    return_lse: with and without, the same is made, and serves both.  gradients: also what the first backward pass does
    before its launches, as in `omnicupy.prepare`.  max_length: of a CachedKV, as there.  The others: as in `attention`.
    Raises what `attention` raises, but for what concerns gradients: none are lost here.
    """
    if type(return_lse) is not bool:
        flag("prepare", "return_lse", return_lse)
    if type(gradients) is not bool:
        gradients = flag("prepare", "gradients", gradients)
    if isinstance(k, CACHES) or isinstance(mask, CachedRule):
        given = {"sink_logits": sink_logits, "softcap": softcap, "split": split}
        given |= {"scale": scale, "out": out, "config": config, "rows": rows, "max_rows": max_rows}
        cached.prepare(q, k, v, mask, gradients=gradients, max_length=max_length, **given)
        return
    if rows is not None or max_rows is not None:
        check_ragged.refuse_without_caches()
    if max_length is not None:
        raise ValueError(f"prepare: max_length goes with a CachedKV, got {max_length!r} without one; drop it")
    tensors.check(q, k, v, out, sink_logits)
    q, k, v = tensors.autocast(q, k, v)
    given = {"scale": scale, "softcap": softcap, "config": config, "split": split}
    prepare_eagerly(q, k, v, mask, given | {"out": out, "sink_logits": sink_logits})
    if gradients and q.is_cuda:
        backward.prepare_on_gpu((q, k, v), mask, (scale, softcap), sink_logits)


def _collated(masks: Sequence[Mask], *, collate_fn_map: Any = None) -> list[Mask]:
    return list(masks)


# A DataLoader makes of a batch's masks what attention takes: a list with one for each element.
default_collate_fn_map[Mask] = _collated
