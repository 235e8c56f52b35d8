"""The CPU engine: `attention` on NumPy arrays, walking the same block mask as the kernels.

One task is a block row of queries and some heads. Its scores are in base 2 (multiplied by scale * log2(e)),
in float32, or in float64 for float64 arrays; both products run in BLAS.

A bound on the scores of a task, |q| |k|, decides how they are kept in range. Up to SAFE_LEVEL, as for almost
all real inputs, nothing can overflow or vanish, so 2**score is summed as it is; above it, the running maximum
of each row is subtracted and what was summed before is rescaled (online softmax).

A soft cap changes the scores before that, in place. A sink's logit counts where a block row is finished.

Hidden pairs are taken out by selecting bits, (2**score) AND (all ones or zero), which a NaN in a dead key
cannot pass. Setting scores to -inf first would be slow: where exp2 underflows, NumPy's vector code leaves its
fast path and takes 14 times as long.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.call import check
from omnicupy.call.arrays import widen
from omnicupy.call.check_widths import out_shape
from omnicupy.cpu.blas import BLAS
from omnicupy.cpu.steps import Step, steps_of
from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.mask import Mask
from omnicupy.schedule.parts import entry_costs

DEFAULT_BR, DEFAULT_BC = 256, 256  # measured on 2 cores: S = 4096, D = 64 and 128
ROWS = 512  # query rows of one product, over the heads that share keys
SCORES = 1 << 17  # scores of one product: 512 KiB of float32, so that they stay in the L2 cache of a core
SAFE_LEVEL = 32.0  # 2**32 times a sum over 2**31 values of at most SAFE_VALUE stays inside float32
SAFE_VALUE = 2.0**60
TASKS_PER_WORKER = 8
MIN_PARALLEL_SCORES = 1 << 17  # below it, starting threads costs more than they save
LOG2_E = math.log2(math.e)

Array = NDArray[Any]


@dataclass(frozen=True)
class _Call:
    """What all tasks of a call share. k, v: those of each batch element, in the dtype worked in."""

    q: Array
    k: list[Array]
    v: list[Array]
    bounds: Array  # (batch, kv_heads): the largest |k|, inf where values are too large for the short way
    blocks: list[BlockMask]
    out: Array
    lse: Array
    factor: float  # scale * log2(e)
    cap: float | None  # softcap * log2(e)
    sinks: Array | None  # of each query head, in base 2


def attention(
    checked: check.Call,
    q: Array,
    k: Array,
    v: Array,
    *,
    sink_logits: Array | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    br: int = DEFAULT_BR,
    bc: int = DEFAULT_BC,
) -> Array | tuple[Array, Array]:
    """Attention of NumPy arrays.

    checked: what `check.call` made of these arguments.  q: (B, Hq, Sq, D), k: (B, Hkv, Skv, D), v: (B, Hkv, Skv, Dv),
    any strides; float16, bfloat16, float32 or float64.  sink_logits: (Hq,) or None.  br, bc: tile height and width in
    tokens; they change the speed and the rounding, nothing else.
    Returns out (B, Hq, Sq, Dv), and with return_lse also lse (B, Hq, Sq), natural logarithm, in float32, for float64
    inputs in float64. A row that sees no key gives out = 0, lse = -inf, whatever the values of its tile hold. The same
    call twice gives the same bits.
    """
    if out is None:
        out = np.empty(out_shape(checked.problem), q.dtype)
    of_batch = [checked.masks[b % len(checked.masks)] for b in range(len(q))]
    dtype = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)
    lse = np.empty(q.shape[:3], dtype)
    blocks = [mask.blocks(br, bc) for mask in of_batch]
    cap = None if checked.softcap is None else checked.softcap * LOG2_E
    with np.errstate(all="ignore"), BLAS.single() as workers:  # NaN and infinity are the caller's
        sinks = None if sink_logits is None else sink_logits.astype(np.float64) * LOG2_E
        prepared = _prepare(k, v, of_batch, dtype)
        _run(_Call(q, *prepared, blocks, out, lse, checked.scale * LOG2_E, cap, sinks), workers)
    return (out, lse) if return_lse else out


def _prepare(
    k: Array, v: Array, masks: Sequence[Mask], dtype: np.dtype[Any]
) -> tuple[list[Array], list[Array], Array]:
    """K and V in `dtype` with dead values zeroed (0 * NaN is NaN), and the bound of each head."""
    keys: list[Array] = []
    values: list[Array] = []
    bounds = np.empty(k.shape[:2])
    for b, mask in enumerate(masks):
        dead = mask.dead_keys()
        keys.append(k[b] if k.dtype == dtype else widen(k[b], dtype))
        value = v[b] if v.dtype == dtype else widen(v[b], dtype)
        if dead.any():
            value = value.copy() if value.base is not None or value is v[b] else value
            value[:, dead] = 0
        values.append(value)
        live = keys[b] if not dead.any() else keys[b][:, ~dead]
        norms = np.sqrt(np.einsum("hkd,hkd->hk", live, live).max(axis=1, initial=0))
        small = np.abs(value).max(axis=(1, 2)) <= SAFE_VALUE
        bounds[b] = np.where(small, norms, np.inf)
    return keys, values, bounds


def _run(call: _Call, workers: int) -> None:
    """All tasks, longest block rows first, on `workers` threads where that pays."""
    kv_heads = call.k[0].shape[0]
    group = call.q.shape[1] // kv_heads
    rows = [(b, int(i)) for b, blocks in enumerate(call.blocks) for i in _longest_first(blocks)]
    tiles = [int(blocks.tiles.sum()) * blocks.br * blocks.bc for blocks in call.blocks]
    scores = sum(tiles) * call.q.shape[1]
    if scores < MIN_PARALLEL_SCORES:
        workers = 1
    heads = max(1, kv_heads * len(rows) // (TASKS_PER_WORKER * workers)) if workers > 1 else kv_heads
    tasks = [(b, i, h, min(h + heads, kv_heads)) for b, i in rows for h in range(0, kv_heads, heads)]
    buffers = _Buffers(call.k[0].dtype)

    def one(task: tuple[int, int, int, int]) -> None:
        b, i, first, stop = task
        with np.errstate(all="ignore"):  # of this thread
            _block_row(call, buffers, (b, i), range(first * group, stop * group))

    if workers == 1:
        for task in tasks:
            one(task)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(one, tasks):  # raises what a task raised
            pass


class _Buffers(threading.local):
    """One array of scores and one of ones per thread, so that no task allocates them."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.scores = np.empty(0, dtype)
        self.ones = np.empty(0, dtype)

    def take(self, rows: int, width: int) -> tuple[Array, Array]:
        """Scores (rows, width), not initialised, and ones (width,)."""
        if self.scores.size < rows * width:
            self.scores = np.empty(rows * width, self.scores.dtype)
        if self.ones.size < width:
            self.ones = np.ones(width, self.ones.dtype)
        return self.scores[: rows * width].reshape(rows, width), self.ones[:width]


def _block_row(call: _Call, buffers: _Buffers, where: tuple[int, int], heads: range) -> None:
    """One block row of some query heads (whole groups)."""
    b, i = where
    blocks = call.blocks[b]
    q0, q1 = i * blocks.br, min((i + 1) * blocks.br, call.q.shape[2])
    group = call.q.shape[1] // call.k[b].shape[0]
    together = max(1, min(group, ROWS // (q1 - q0)))
    steps = list(steps_of(blocks, i, max(blocks.bc, SCORES // (together * (q1 - q0))), call.k[b].dtype))
    for kv in range(heads.start // group, heads.stop // group):
        for h in range(kv * group, (kv + 1) * group, together):
            rows = slice(h, min(h + together, (kv + 1) * group))
            q = widen(call.q[b, rows, q0:q1], call.k[b].dtype)
            flat = q.reshape(-1, q.shape[2])
            bound = call.factor * math.sqrt(np.einsum("rd,rd->r", flat, flat).max()) * call.bounds[b, kv]
            if call.cap is not None and bound < np.inf:
                bound = min(bound, call.cap)
            walk = _short if bound <= SAFE_LEVEL else _online  # NaN takes the long way
            scaling = (call.factor, call.cap)
            out, total, level = walk(flat, call.k[b][kv], call.v[b][kv], steps, buffers, scaling)
            empty = total == 0
            whole = total
            if call.sinks is not None:
                whole = total + np.exp2(np.repeat(call.sinks[rows], q1 - q0) - level)
            out /= np.where(empty, 1, whole)[:, None].astype(out.dtype)
            out[empty] = 0  # a weight of 0 times an infinite value, which other rows see, is NaN
            call.out[b, rows, q0:q1] = out.reshape(*q.shape[:2], -1)
            # In float64: where the level is large, another float32 rounding would double the error of lse.
            lse = (np.log2(np.where(empty, 1, total), dtype=np.float64) + level) * math.log(2)
            lse[empty] = -np.inf
            call.lse[b, rows, q0:q1] = lse.reshape(q.shape[:2])


def _longest_first(blocks: BlockMask) -> Array:
    """Query blocks by descending cost, (q_blocks,)."""
    costs = np.bincount(blocks.rows_of_entries(), entry_costs(blocks), blocks.q_blocks)
    return np.argsort(-costs, kind="stable")


def _scores(q: Array, k: Array, step: Step, buffers: _Buffers) -> tuple[Array, Array]:
    """q @ k.T of one step, (rows, keys), hidden pairs included, and as many ones as keys."""
    k0, k1, _ = step
    scores, ones = buffers.take(len(q), k1 - k0)
    np.matmul(q, k[k0:k1].T, out=scores)
    return scores, ones


def _weigh(scores: Array, words: Array | None) -> None:
    """In place: 2**score, and 0 for hidden pairs."""
    np.exp2(scores, out=scores)
    if words is not None:
        bits = scores.view(words.dtype).reshape(-1, *words.shape)
        np.bitwise_and(bits, words, out=bits)


def _short(
    q: Array,
    k: Array,
    v: Array,
    steps: Sequence[Step],
    buffers: _Buffers,
    scaling: tuple[float, float | None],
) -> tuple[Array, Array, Any]:
    """Sum of 2**score * v, (rows, value_dim), sum of 2**score, (rows,), and the level subtracted (0).

    scaling: scale * log2(e), here multiplied into q, and softcap * log2(e) or None.
    """
    factor, cap = scaling
    q = q * factor
    out = np.zeros((len(q), v.shape[1]), q.dtype)
    total = np.zeros(len(q), q.dtype)
    for step in steps:
        scores, ones = _scores(q, k, step, buffers)
        if cap is not None:
            _cap(scores, cap)
        _weigh(scores, step[2])
        total += scores @ ones
        out += scores @ v[step[0] : step[1]]
    return out, total, 0


def _online(
    q: Array,
    k: Array,
    v: Array,
    steps: Sequence[Step],
    buffers: _Buffers,
    scaling: tuple[float, float | None],
) -> tuple[Array, Array, Any]:
    """As _short, for scores of any size: the level is the running maximum of each row.

    Scores are multiplied by the factor here, not q: where they are large, rounding q first would cost accuracy.
    """
    factor, cap = scaling
    out = np.zeros((len(q), v.shape[1]), q.dtype)
    total = np.zeros(len(q), q.dtype)
    level = np.full(len(q), -np.inf, q.dtype)
    lowest = np.finfo(q.dtype).minexp  # weights below 2**lowest of the row's largest add nothing to its sums
    for step in steps:
        scores, ones = _scores(q, k, step, buffers)
        scores *= factor
        if cap is not None:
            _cap(scores, cap)
        if step[2] is not None:
            _hide(scores, step[2])
        raised = np.maximum(level, scores.max(axis=1))
        shift = np.where(raised == -np.inf, 0, raised)  # before a row sees a key: -inf - 0, never inf - inf
        np.subtract(scores, shift[:, None], out=scores)
        np.maximum(scores, lowest, out=scores)
        _weigh(scores, step[2])
        keep = np.exp2(level - shift)
        total *= keep
        total += scores @ ones
        out *= keep[:, None]
        out += scores @ v[step[0] : step[1]]
        level = raised
    return out, total, np.where(level == -np.inf, 0, level)


def _cap(scores: Array, cap: float) -> None:
    """In place: cap * tanh(score / cap)."""
    scores *= 1 / cap
    np.tanh(scores, out=scores)
    scores *= cap


def _hide(scores: Array, words: Array) -> None:
    """In place: -inf for hidden pairs, whatever they hold. A visible NaN becomes inf; its row ends as NaN."""
    infinity = np.array(np.inf, scores.dtype).view(words.dtype)
    sign = np.array(-0.0, scores.dtype).view(words.dtype)
    limits = (~words & sign | infinity).view(scores.dtype)  # fmin with -inf is -inf even for NaN
    tiles = scores.reshape(-1, *words.shape)
    np.fmin(tiles, limits, out=tiles)
