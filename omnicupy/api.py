"""attention(), attention_backward(), prepare(): NumPy arrays go to the CPU engine, CuPy arrays to kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnicupy.call import check, check_backward, check_cached, check_ragged
from omnicupy.call.arrays import is_cupy
from omnicupy.cpu import attention as cpu_attention
from omnicupy.cpu import backward as cpu_backward
from omnicupy.cpu import cached as cpu_cached
from omnicupy.errors import UnsupportedError
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.arguments import flag
from omnicupy.masks.mask import Mask
from omnicupy.serving.caches import CACHES, with_lengths
from omnicupy.serving.rule import CachedRule
from omnicupy.serving.step import CachedStep
from omnicupy.serving_api import load_cached, plan

__all__ = ["attention", "attention_backward", "plan", "prepare"]

_on_gpu: Any = None  # omnicupy.gpu.attention.attention
_backward: Any = None  # omnicupy.gpu.backward


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
) -> Any:
    """Exact softmax attention: softmax(scale * q @ k.T, over the keys that `mask` lets a row see) @ v.

    q: (batch, q_heads, q_len, head_dim).  k: (batch, kv_heads, k_len, head_dim).  v: as k, or with value_dim columns in
        place of head_dim, which out then has (on a GPU both at most 256).  q_heads is a multiple of kv_heads, and query
        head h reads key head h // (q_heads // kv_heads).
    mask: a Mask of shape (q_len, k_len) for all batch elements, a list of `batch` such masks, or None (every
        row sees every key). Keep and pass the same Mask object: its block lists are made once per tile size,
        copied to each device once, and freed with it. With a CachedKV or PagedKV: what `cached` or `plan` gave.
    scale: factor of the scores; None is 1 / sqrt(head_dim). A normal, positive number in the dtype that scores
        are computed in (float32; float64 for float64 arrays), also when multiplied by log2(e).
    sink_logits: (q_heads,), float32, for float64 arrays float64: one more logit in the softmax of each row of a head,
        neither scaled nor capped, without a value (the sinks of GPT-OSS); weights of keys then add up to
        sigmoid(lse - sink_logit). -inf is a head without one. NaN and +inf raise on the CPU; on a GPU, where they are
        not read, they make a head's out NaN and 0. Not to be mixed up with `oc.sink`, a mask.
    softcap: scores become softcap * tanh(score / softcap), after the scale and before the mask (as in Gemma 2). A
        number as `scale` is, for which scale / softcap is one, too; None leaves them as they are.
    return_lse: also return the natural logarithm of each row's sum of exponentials.
    out: array to write, of q's dtype and shape, as wide as v, overlapping no input; None makes a C-contiguous one.
    config: the kernel variant to run on the GPU; None takes the one that `tune` saved for such problems, else the one
        that the table lists, or on caches the variant that takes its place (`plan(...).kernel` names it).
    split: keys of a part: what a tile of rows visits is cut in parts of so many, worked on apart and merged. A multiple
        of the kernel's tile; multiples of 384 serve all of the table's. None: the device and the whole call decide.
        With it kernel and parts depend on a row's own keys and on q's lengths and heads alone: its bits are those that
        it has in a batch of another size. Engines that cut no rows (the CPU's, kernel "sm80") only check it.
    rows, max_rows: of sequences in caches that have numbers of query rows of their own: see CachedKV.

    Returns `out` (batch, q_heads, q_len, value_dim), or (out, lse) with lse (batch, q_heads, q_len), float32, for
    float64 arrays float64. lse is of capped scores without sinks, so that results over parts of keys can be merged,
    out counts them: out * sigmoid(lse - sink_logit). A row that sees no key has out = 0, lse = -inf, with sinks too.

    NumPy arrays (float16, bfloat16, float32, float64) run on the CPU. CuPy arrays (float16, bfloat16 =
    `ml_dtypes.bfloat16`) run on their device, on CuPy's current stream there, without a synchronisation; their last
    axis must be contiguous and all rows 16-byte aligned, so a (batch, tokens, heads, head_dim) array passes as a
    transposed view without a copy. Scores and sums are float32. NaN or Inf in a key or value that no row of its batch
    element may see never reaches the output; in one that some row may see, it reaches that row and may reach the rows
    that share its tile. Ahead of a capture into a CUDA graph call `prepare` or this once.

    Raises TypeError and ValueError, before any work, for arguments of the wrong kind, shape, dtype, device, layout or
    value; UnsupportedError when no kernel serves the device or the widths, or no NVRTC can be loaded; CompileError when
    a kernel does not compile.
    """
    given: dict[str, Any] = {"scale": scale, "sink_logits": sink_logits, "softcap": softcap, "out": out}
    given |= {"config": config, "split": split, "rows": rows, "max_rows": max_rows}
    return _attention(q, k, v, mask, return_lse, given)


def _attention(q: Any, k: Any, v: Any, mask: Any, return_lse: Any, given: dict[str, Any]) -> Any:
    """given: the other options of attention."""
    if type(return_lse) is not bool:
        return_lse = flag("attention", "return_lse", return_lse)
    if isinstance(k, CACHES) or isinstance(mask, (CachedRule, CachedStep)):
        return _cached(q, k, v, mask, return_lse, given)
    if given.pop("rows") is not None or given["max_rows"] is not None:
        check_ragged.refuse_without_caches()
    del given["max_rows"]
    if not isinstance(q, np.ndarray):
        return (_on_gpu or _load_gpu(q, k, v))(q, k, v, mask, return_lse, given)
    call = check.call(q, k, v, mask, **given)
    rest = {"sink_logits": given["sink_logits"], "out": given["out"]}
    return cpu_attention.attention(call, q, k, v, return_lse=return_lse, **rest)


def _cached(q: Any, kv: Any, v: Any, mask: Any, return_lse: bool, given: dict[str, Any]) -> Any:
    """attention on a CachedKV or PagedKV. given: as in _attention."""
    check_cached.check_is_cache(kv)
    if not isinstance(q, np.ndarray):
        return load_cached(q).attention(q, kv, v, mask, return_lse=return_lse, **given)
    if isinstance(mask, CachedStep):
        check_cached.fits_step(q, kv, mask, given["rows"], given["max_rows"])
        if isinstance(given["out"], np.ndarray):  # the step has copies of these
            check_cached.check_out_apart(given["out"], kv, mask.rows, None)
        given = check_cached.behind_step(mask, given) | {"rows": mask.lists.rows}
        kv, mask = with_lengths(kv, mask.lists.lengths), mask.rule
    call = check_cached.call(q, kv, v, mask, **given)
    rest = {name: given[name] for name in ("sink_logits", "out", "rows")}
    return cpu_cached.attention(call, q, kv, return_lse=return_lse, **rest)


def attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    mask: Mask | Sequence[Mask] | None = None,
    *,
    scale: float | None = None,
    dlse: Any = None,
    wanted: Sequence[str] = ("q", "k", "v"),
    out_grads: Sequence[Any] | None = None,
    deterministic: bool = True,
    sink_logits: Any = None,
    softcap: float | None = None,
    config: BackwardSpec | None = None,
) -> Any:
    """Gradients of `attention`: (dq, dk, dv) of a loss whose gradients by out and lse are dout and dlse.

    dout: the gradient of out, of its shape and dtype; any strides, as of a broadcast or transposed array.
    q, k, v, mask, scale, sink_logits, softcap: what `attention` was called with.
    out, lse: what attention(..., return_lse=True) gave; lse float32, for float64 arrays float64. Where q, k and v
        are a part of a larger attention (some of its keys, say), out and lse of the whole give this part's share of
        dq, dk and dv. dsink_logits is no such share: it counts each row that sees a key of the part, once in each.
    dlse: the gradient of lse, of its shape and dtype; None is zero.
    wanted: which gradients to compute, a list or tuple of "q", "k", "v" and "sink_logits"; other ones are None.
    out_grads: None, or (dq, dk, dv) with an array to write or None for each: of the shape and dtype of q, k or v,
        overlapping no other argument. None makes a C-contiguous one.
    deterministic: the same call gives the same bits, on one device model and library version; False allows sums in
        any order, which may be faster, and may take 4 bytes more of memory for each element of dq while it runs.
    config: the kernels to run on the GPU, a BackwardSpec; None takes those that `tune` saved, else the table's.

    Returns (dq, dk, dv) in the shapes and dtypes of q, k and v, and where `wanted` names sink_logits (dq, dk, dv,
    dsink_logits), the last of the shape and dtype of sink_logits. With P = exp(scale * q k^T - lse) where a row sees a
    key, else 0: dv = P^T dout; dS = P * (dout v^T - delta) with delta = rowsum(dout * out) - dlse; dq = scale * dS k;
    dk = scale * dS^T q. With softcap P has capped scores S', and dS the factor 1 - (S' / softcap)^2. With sink_logits
    P is taken against logaddexp(lse, sink_logit), dlse is divided by sigmoid(lse - sink_logit), and dsink_logits adds
    up -sigmoid(sink_logit - lse) * rowsum(dout * out). dk and dv are sums over the query heads of a group. Sums are
    float32 (float64 for float64 arrays). dq of a row that sees no key is exactly 0, and so are dk and dv of a key that
    no row of its batch element sees: NaN and Inf in such rows of q, dout, out, lse and dlse, and in such keys of k and
    v, reach nothing. NaN or Inf elsewhere reaches the gradients that it belongs to, and may reach others of its tile.

    NumPy arrays (float16, bfloat16, float32, float64) run on the CPU. CuPy arrays (float16, bfloat16) run on their
    device, on CuPy's current stream there, without a synchronisation; q, k, v, out and given gradients then have the
    layout that `attention` asks for. On a GPU, arrays that hold rows or keys which nothing sees, and arrays in layouts
    that kernels cannot read, are copied inside; so is lse or dlse that is not contiguous, which a capture refuses.
    To capture it into a CUDA graph, call `prepare(..., gradients=True)` or, with other options, this once before.

    Raises TypeError and ValueError, before any work, for arguments of the wrong kind, shape, dtype, device,
    layout or value (lse None: attention was called without return_lse=True); UnsupportedError when no kernel serves the
    device or no NVRTC can be loaded; CompileError when a kernel does not compile.
    """
    options: dict[str, Any] = {"scale": scale, "dlse": dlse, "wanted": wanted, "out_grads": out_grads}
    options |= {"deterministic": deterministic, "config": config, "mask": mask}
    return _gradients((dout, q, k, v, out, lse), sink_logits=sink_logits, softcap=softcap, **options)


def _gradients(given: tuple[Any, ...], **options: Any) -> Any:
    if isinstance(given[1], np.ndarray):
        call = check_backward.call(*given, **options)
        rest = {name: options[name] for name in ("sink_logits", "out_grads")}
        return cpu_backward.attention_backward(call, cpu_backward.Arrays(*(*given, options["dlse"])), **rest)
    return (_backward or _load_backward(*given[1:4])).attention_backward(*given, **options)


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
    """All that the first `attention` call with these arguments does before its launch: then capture it.

    Cuts the mask into tiles and copies them to the device, on CuPy's current stream there; compiles the kernel where
    the disk cache lacks it, and loads it. Reads no element of q, k and v, and writes none of `out`. What counts is
    what `attention` plans by: shapes, strides, dtypes, device, scale, softcap, config, split, the mask object, and
    whether `out` and `sink_logits` are given; another array like q does as well. With `return_lse` or without, the
    same is made, and serves both. With `gradients` also all that the first `attention_backward` with such arguments
    does before its launches, if it wants all gradients, is deterministic and has no config. Keep the mask until the
    call: what is made lives on it.
    rows, max_rows: as in `attention`. max_length: of a CachedKV the most keys that a sequence will have. Its capacity
    bounds all that is made, so a number up to the capacity changes nothing, and a greater one is refused.
    On NumPy arrays it checks the arguments and does nothing else. Raises what `attention` raises.
    """
    if type(return_lse) is not bool:
        flag("prepare", "return_lse", return_lse)
    if type(gradients) is not bool:
        gradients = flag("prepare", "gradients", gradients)
    given: dict[str, Any] = {"scale": scale, "sink_logits": sink_logits, "softcap": softcap, "out": out}
    given |= {"config": config, "split": split}
    if isinstance(k, CACHES) or isinstance(mask, CachedRule):
        cached = {"max_length": max_length, "rows": rows, "max_rows": max_rows}
        _prepare_cached(q, k, v, mask, gradients, given | cached)
        return
    if rows is not None or max_rows is not None:
        check_ragged.refuse_without_caches()
    if max_length is not None:
        raise ValueError(f"prepare: max_length goes with a CachedKV, got {max_length!r} without one; drop it")
    if isinstance(q, np.ndarray):
        check.call(q, k, v, mask, **given)
        return
    _load_gpu(q, k, v)
    from omnicupy.gpu import attention as gpu_attention

    gpu_attention.plan_of(q, k, v, mask, given)
    if gradients:
        rest = {"scale": scale, "sink_logits": sink_logits, "softcap": softcap}
        _load_backward(q, k, v).prepare_backward(q, k, v, mask, config=None, **rest)


def _prepare_cached(q: Any, kv: Any, v: Any, mask: Any, gradients: bool, given: dict[str, Any]) -> None:
    check_cached.check_is_cache(kv)
    if gradients:
        raise UnsupportedError("prepare: a CachedKV has no gradients; drop gradients=True")
    if isinstance(q, np.ndarray):
        check_cached.call(q, kv, v, mask, **given)
    else:
        load_cached(q).prepare(q, kv, v, mask, **given)


def _load_gpu(q: Any, k: Any, v: Any) -> Any:
    """The GPU path, imported at the first call that is not NumPy's: CPU users never import CuPy."""
    global _on_gpu
    if not is_cupy(q):
        check.call(q, k, v, None)  # refuses it, without importing CuPy
    from omnicupy.gpu.attention import attention as _on_gpu

    return _on_gpu


def _load_backward(q: Any, k: Any, v: Any) -> Any:
    global _backward
    _load_gpu(q, k, v)
    from omnicupy.gpu import backward as _backward

    return _backward
