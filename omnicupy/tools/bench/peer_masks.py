"""Masks as other libraries take them: FlexAttention's block masks, end points for cudnn.flex_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from omnicupy.masks.mask import Mask
from omnicupy.tools.bench.torch_inputs import library, timed_ms

if TYPE_CHECKING:
    from omnicupy.tools.bench.torch_inputs import Shared


ROWS = 1024  # rows whose visible keys are looked at together


def compiled(shared: Shared, backend: str) -> tuple[Callable[[], Any], float | None]:
    """Compiled FlexAttention for the shared inputs, and the milliseconds of its block mask (None without
    one).

    backend: "" for Triton, "FLASH" for the FlashAttention-4 kernels. Recompiled for each workload, static
    shapes.
    """
    torch, module = library("torch"), library("torch.nn.attention.flex_attention")
    torch._dynamo.reset()  # else the ninth workload would silently run uncompiled
    kernel = torch.compile(module.flex_attention, dynamic=False, fullgraph=True)
    options: dict[str, Any] = {"kernel_options": {"BACKEND": backend}} if backend else {}
    if shared.workload.q_heads != shared.workload.kv_heads:
        options["enable_gqa"] = True
    build = None
    if shared.kind != "full" or backend:  # the FLASH backend wants a block mask always
        options["block_mask"], build = block_mask(shared)

    def call() -> Any:
        return kernel(shared.q, shared.k, shared.v, **options)

    return call, build


def block_mask(shared: Shared) -> tuple[Any, float]:
    """FlexAttention's block mask, shared by batch and heads, and the milliseconds of building it a second
    time.
    """
    torch, module = library("torch"), library("torch.nn.attention.flex_attention")
    rule = mask_rule(shared.mask, shared.kind)
    q_len, k_len = shared.mask.shape

    def build(**options: Any) -> Any:
        return module.create_block_mask(rule, None, None, q_len, k_len, device="cuda", **options)

    try:
        made = build()
        return made, timed_ms(build)
    except torch.cuda.OutOfMemoryError:  # eager construction holds the dense mask several times
        torch.cuda.empty_cache()
        made = build(_compile=True)
        return made, timed_ms(lambda: build(_compile=True))


def compiled_build_ms(shared: Shared) -> float:
    """Milliseconds of building FlexAttention's block mask under torch.compile, a second time."""
    module = library("torch.nn.attention.flex_attention")
    rule = mask_rule(shared.mask, shared.kind)
    q_len, k_len = shared.mask.shape

    def build() -> Any:
        return module.create_block_mask(rule, None, None, q_len, k_len, device="cuda", _compile=True)

    build()
    return timed_ms(build)


def mask_rule(mask: Mask, kind: str) -> Callable[..., Any]:
    """The leanest mask_mod of a mask: an index compare, the row range of each key, or the dense mask."""
    torch = library("torch")
    if kind == "full":
        return lambda b, h, q, k: q >= 0
    if kind == "causal":
        return lambda b, h, q, k: q >= k
    if mask.intervals is None or len(mask.intervals[0]) > 4:
        dense = torch.from_numpy(mask.to_dense()).cuda()
        return lambda b, h, q, k: dense[q, k]
    bounds = [
        (torch.from_numpy(start.copy()).cuda(), torch.from_numpy(stop.copy()).cuda())
        for start, stop in zip(*mask.intervals, strict=True)
    ]
    if len(bounds) == 1:
        start, stop = bounds[0]
        return lambda b, h, q, k: (q >= start[k]) & (q < stop[k])

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        (start, stop), *others = bounds
        found = (q >= start[k]) & (q < stop[k])
        for start, stop in others:
            found = found | ((q >= start[k]) & (q < stop[k]))
        return found

    return visible


def row_intervals(mask: Mask) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The visible keys of each row as ranges: int32 (q_len, n, 2) of first key and stop, unused ones (0,
    0).
    """
    q_len, k_len = mask.shape
    parts = []
    for q0 in range(0, q_len, ROWS):
        q1 = min(q0 + ROWS, q_len)
        edges = np.zeros((q1 - q0, k_len + 2), np.int8)
        edges[:, 1:-1] = mask.dense(q0, q1, 0, k_len)
        row, key = np.nonzero(np.diff(edges, axis=1))
        parts.append((row[::2] + q0, key[::2], key[1::2]))
    row, first, stop = (np.concatenate(part) for part in zip(*parts, strict=True))
    counts = np.bincount(row, minlength=q_len)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = np.zeros((q_len, max(1, int(counts.max(initial=0))), 2), np.int32)
    out[row, slot, 0] = first
    out[row, slot, 1] = stop
    return out


def end_points(intervals: np.ndarray[Any, np.dtype[np.int32]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Row intervals as (2 n + 1, q_len) bounds F of [0, F0) and [F1, F2) and so on; n - 1 pairs do where
    they can.

    An interval that starts at key 0 is the first range; a row without one has F0 = 0. The bounds of a row never
    decrease: a range that it has no use for is an empty one at the end of the range before.
    """
    q_len = len(intervals)
    at_zero = (intervals[:, 0, 0] == 0) & (intervals[:, 0, 1] > 0)
    shifted = intervals.copy()
    shifted[at_zero] = np.concatenate(
        [intervals[at_zero, 1:], np.zeros((at_zero.sum(), 1, 2), np.int32)], axis=1
    )
    used = int((shifted[:, :, 1] > 0).any(axis=0).sum())
    out = np.zeros((2 * used + 1, q_len), np.int32)
    out[0] = np.where(at_zero, intervals[:, 0, 1], 0)
    out[1:] = shifted[:, :used].reshape(q_len, 2 * used).T
    return np.maximum.accumulate(out, axis=0)


def row_endpoints(mask: Mask, batch: int) -> Any:
    """The end points of all batch elements on the GPU, int32 (1, n, batch * q_len)."""
    torch = library("torch")
    bounds = end_points(row_intervals(mask))
    return torch.from_numpy(np.tile(bounds, (1, batch))[None]).cuda().contiguous()
