"""Gradients on NumPy arrays, over the same block masks as the CPU's attention.

A task is a key head of a batch element with the query heads that read it, or where there are few of these a run of its
block rows. It walks the block rows; for each it computes the weights P again from lse, then adds to dv and dk and sums
dq. All products run in BLAS, in float32 or (float64 arrays) float64. Tasks and the order of their sums follow from the
shapes and the mask alone, so that the result does not depend on the number of threads.

With sink logits P is taken against the sum that holds them, and a task also sums their gradients, in float64.

Nothing that a hidden pair holds can reach a sum: rows that see no key and keys that no row sees are taken as zeros, so
that every product is finite, and P of a hidden pair is cleared bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omnicupy.call.arrays import narrow, widen
from omnicupy.call.check_backward import BackwardCall
from omnicupy.cpu.blas import BLAS
from omnicupy.cpu.steps import Step, steps_of
from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.mask import Mask
from omnicupy.schedule.parts import entry_costs

DEFAULT_BR, DEFAULT_BC = 256, 256
ROWS = 512  # query rows of one product, over the heads that share keys
SCORES = 1 << 17  # scores of one product, of which two arrays are held
PARTS = 8  # tasks to have at least, where block rows suffice
MIN_PARALLEL_SCORES = 1 << 16  # below it, starting threads costs more than they save
LOG2_E = math.log2(math.e)
# How far above a row's lse a sink counts in the gradient of lse: exp of it times a number fits float32, so does the
# inverse, and so do weights of keys down to 1e-20 of the row's.
SINK_LIMIT = 40.0

Array = NDArray[Any]
# dk (k_len, D) and dv (k_len, Dv) of a key head, where wanted, and the gradients of its query heads' sinks, (group,).
Sums = tuple[Array | None, Array | None, Array]


class Arrays(NamedTuple):
    """What `attention_backward` is given: q (B, Hq, Sq, D), k (B, Hkv, Skv, D), v (B, Hkv, Skv, Dv), dout and out (B,
    Hq, Sq, Dv), lse and dlse (B, Hq, Sq).
    """

    dout: Array
    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array
    dlse: Array | None


@dataclass(frozen=True)
class _Call:
    """What all tasks of a call share. dead_keys, empty_rows: of each batch element.  cap: softcap * log2(e) or None."""

    given: Arrays
    dtype: np.dtype[Any]
    blocks: list[BlockMask]
    dead_keys: list[Array]
    empty_rows: list[Array]
    grads: tuple[Array | None, Array | None, Array | None]
    scale: float
    cap: float | None
    sinks: Array | None  # sink_logits, and the sums of their gradients, float64 (q_heads,)
    sink_grads: Array


def attention_backward(
    checked: BackwardCall,
    arrays: Arrays,
    *,
    sink_logits: Array | None = None,
    out_grads: Sequence[Array | None] | None = None,
    br: int = DEFAULT_BR,
    bc: int = DEFAULT_BC,
) -> tuple[Array | None, ...]:
    """Gradients of attention on NumPy arrays.

    checked: what `check_backward.call` made of these arguments.  arrays: any strides; float16, bfloat16, float32 or
    float64.  br, bc: tile height and width in tokens; they change the speed and the rounding, nothing else.
    Returns dq, dk, dv in the shapes and dtypes of q, k, v; None where not wanted; and that of sink_logits where it is
    wanted. Rows that see no key have dq = 0,
    keys that no row sees have dk = dv = 0, whatever the arrays hold there. The same call twice gives the same bits,
    whatever the number of threads.
    """
    like = (arrays.q, arrays.k, arrays.v)
    given = out_grads or (None, None, None)
    dq, dk, dv = (
        (np.empty(array.shape, array.dtype) if target is None else target) if wanted else None
        for array, target, wanted in zip(like, given, checked.wanted, strict=True)
    )
    dtype = np.dtype(np.float64 if arrays.q.dtype == np.float64 else np.float32)
    masks = [checked.masks[b % len(checked.masks)] for b in range(len(arrays.q))]
    made = {id(mask): (mask.blocks(br, bc), mask.dead_keys(), _empty_rows(mask)) for mask in checked.masks}
    blocks, dead, empty = (list(column) for column in zip(*(made[id(mask)] for mask in masks), strict=True))
    cap = None if checked.softcap is None else checked.softcap * LOG2_E
    of_sinks = np.zeros(arrays.q.shape[1])
    call = _Call(arrays, dtype, blocks, dead, empty, (dq, dk, dv), checked.scale, cap, sink_logits, of_sinks)
    with np.errstate(all="ignore"), BLAS.single() as workers:  # NaN and infinity are the caller's
        _run(call, workers)
        return (dq, dk, dv, of_sinks.astype(dtype)) if checked.sink_wanted else (dq, dk, dv)


def _empty_rows(mask: Mask) -> Array:
    """Rows that see no key, boolean (q_len,)."""
    q_len, k_len = mask.shape
    if mask.intervals is not None:
        start, stop = mask.intervals
        edges = np.bincount(start.ravel(), minlength=q_len + 1) - np.bincount(
            stop.ravel(), minlength=q_len + 1
        )
        hidden: Array = np.cumsum(edges[:q_len]) == 0
        return hidden
    empty = np.empty(q_len, np.bool_)
    step = max(1, (1 << 22) // k_len)
    for q0 in range(0, q_len, step):
        q1 = min(q0 + step, q_len)
        empty[q0:q1] = ~mask.dense(q0, q1, 0, k_len).any(axis=1)
    return empty


def _run(call: _Call, workers: int) -> None:
    """All tasks, on `workers` threads where that pays; partial sums are added in the order of the rows."""
    batch, kv_heads = call.given.k.shape[:2]
    parts = [_parts(blocks, max(1, PARTS // (batch * kv_heads))) for blocks in call.blocks]
    tasks = [(b, kv, rows) for b in range(batch) for kv in range(kv_heads) for rows in parts[b]]
    scores = (
        sum(int(blocks.entries[:, 3].sum()) * blocks.br for blocks in call.blocks) * call.given.q.shape[1]
    )

    def one(task: tuple[int, int, range]) -> Sums:
        with np.errstate(all="ignore"):  # of this thread
            return _Task(call, *task).run()

    if workers == 1 or scores < MIN_PARALLEL_SCORES:
        _collect(call, tasks, map(one, tasks))
        return
    with ThreadPoolExecutor(workers) as pool:
        _collect(call, tasks, pool.map(one, tasks))


def _parts(blocks: BlockMask, most: int) -> list[range]:
    """Runs of block rows of about equal cost, at most `most`, at least one."""
    costs = np.bincount(blocks.rows_of_entries(), entry_costs(blocks), blocks.q_blocks)
    reached = np.cumsum(costs)
    ends = np.searchsorted(reached, reached[-1] * np.arange(1, most) / most, side="left") + 1
    bounds = np.unique([0, *np.minimum(ends, blocks.q_blocks), blocks.q_blocks])
    return [range(int(a), int(b)) for a, b in pairwise(bounds)]


def _collect(call: _Call, tasks: Sequence[tuple[int, int, range]], results: Iterator[Sums]) -> None:
    """Add the sums of the parts of a head, in order, and write them once the last part is there."""
    sums: list[Array | None] = [None, None]
    for (b, kv, rows), (*found, of_sinks) in zip(tasks, results, strict=True):
        call.sink_grads[kv * len(of_sinks) : (kv + 1) * len(of_sinks)] += of_sinks
        for i, (part, target) in enumerate(zip(found, call.grads[1:], strict=True)):
            if target is None or part is None:
                continue
            total = part if rows.start == 0 else sums[i]
            assert total is not None
            if rows.start:
                total += part
            sums[i] = total
            if rows.stop == call.blocks[b].q_blocks:
                target[b, kv] = narrow(total, target.dtype)
                sums[i] = None


class _Task:
    """Some block rows of one key head: writes dq of its rows, gives the sums of dk and dv over them."""

    def __init__(self, call: _Call, b: int, kv: int, rows: range) -> None:
        self.call, self.b, self.kv, self.rows = call, b, kv, rows
        self.k, self.v = self._keys(call.given.k), self._keys(call.given.v)
        of_k, of_v = call.grads[1:]
        self.dk = None if of_k is None else np.zeros_like(self.k)
        self.dv = None if of_v is None else np.zeros_like(self.v)
        self.of_sinks = np.zeros(call.given.q.shape[1] // call.given.k.shape[1])
        self.buffers = [np.empty(0, call.dtype) for _ in range(3)]

    def _keys(self, array: Array) -> Array:
        """The keys or values of the head in the dtype worked in, dead ones 0: 0 * NaN is NaN."""
        keys: Array = widen(array[self.b, self.kv], self.call.dtype)
        keys[self.call.dead_keys[self.b]] = 0
        return keys

    def run(self) -> Sums:
        call, blocks = self.call, self.call.blocks[self.b]
        group = call.given.q.shape[1] // call.given.k.shape[1]
        for i in self.rows:
            q0, q1 = i * blocks.br, min((i + 1) * blocks.br, blocks.q_len)
            together = max(1, min(group, ROWS // (q1 - q0)))
            width = max(blocks.bc, SCORES // (together * (q1 - q0)))
            steps = list(steps_of(blocks, i, width, call.dtype))
            for h in range(self.kv * group, (self.kv + 1) * group, together):
                heads = slice(h, min(h + together, (self.kv + 1) * group))
                self._block_row(heads, slice(q0, q1), steps)
        if self.dk is not None:
            self.dk *= call.scale
        return self.dk, self.dv, self.of_sinks

    def _rows(self, array: Array, heads: slice, rows: slice) -> Array:
        """Rows of some heads, (heads * rows, columns), rows without keys 0."""
        found = widen(array[self.b, heads, rows], self.call.dtype)
        found[:, self.call.empty_rows[self.b][rows]] = 0
        flat: Array = found.reshape(-1, *found.shape[2:])
        return flat

    def _block_row(self, heads: slice, rows: slice, steps: Sequence[Step]) -> None:
        call, given = self.call, self.call.given
        q, dout = self._rows(given.q, heads, rows), self._rows(given.dout, heads, rows)
        lse2, delta = self._statistics(dout, heads, rows)
        of_q, of_k, _ = call.grads
        dq = None if of_q is None else np.zeros_like(q)
        for step in steps:
            keys = slice(step[0], step[1])
            weights, slopes = self._weights(q, lse2, step)
            if self.dv is not None:
                self.dv[keys] += weights.T @ dout
            if of_q is None and of_k is None:
                continue
            dscores = self._take(1, len(q), step[1] - step[0])
            np.matmul(dout, self.v[keys].T, out=dscores)
            dscores -= delta
            dscores *= weights
            if slopes is not None:
                dscores *= slopes
            if self.dk is not None:
                self.dk[keys] += dscores.T @ q
            if dq is not None:
                dq += dscores @ self.k[keys]
        if dq is not None and of_q is not None:
            dq *= call.scale
            shape = of_q[self.b, heads, rows].shape
            of_q[self.b, heads, rows] = narrow(dq, of_q.dtype).reshape(shape)

    def _statistics(self, dout: Array, heads: slice, rows: slice) -> tuple[Array, Array]:
        """What P is taken against, in base 2, +inf where no key is seen, and delta: (rows, 1) each.

        Also adds to the gradients of the heads' sinks.
        """
        call, given = self.call, self.call.given
        lse = self._rows(given.lse, heads, rows).astype(np.float64)
        delta = np.einsum("rd,rd->r", dout, self._rows(given.out, heads, rows), dtype=np.float64)
        dlse = 0.0 if given.dlse is None else self._rows(given.dlse, heads, rows).astype(np.float64)
        if call.sinks is not None:
            above = np.repeat(call.sinks[heads].astype(np.float64), rows.stop - rows.start) - lse
            above[lse == -np.inf] = -np.inf  # no key: a weight of 0, as without a sink
            of_rows = np.where(above == -np.inf, 0, delta / (1 + np.exp(-above))).reshape(
                -1, rows.stop - rows.start
            )
            first = heads.start - self.kv * len(self.of_sinks)
            self.of_sinks[first : first + len(of_rows)] -= of_rows.sum(axis=1)
            # What dlse is divided by would vanish, and P beside it: at the limit all but dlse counts for nothing.
            above = np.where(dlse == 0, above, np.minimum(above, SINK_LIMIT))
            lse += np.logaddexp(0, above)
            dlse = np.where(dlse == 0, 0, dlse * (1 + np.exp(above)))
        lse2 = np.where(lse == -np.inf, np.inf, lse * LOG2_E)
        return lse2.astype(call.dtype)[:, None], (delta - dlse).astype(call.dtype)[:, None]

    def _weights(self, q: Array, lse2: Array, step: Step) -> tuple[Array, Array | None]:
        """P of one step, (rows, keys): 0 for hidden pairs, whatever they hold; and where scores are capped the
        derivatives of these by the scores before.
        """
        k0, k1, words = step
        weights = self._take(0, len(q), k1 - k0)
        np.matmul(q, self.k[k0:k1].T, out=weights)
        weights *= self.call.scale * LOG2_E
        slopes, cap = None, self.call.cap
        if cap is not None:
            weights *= 1 / cap
            np.tanh(weights, out=weights)
            slopes = self._take(2, len(q), k1 - k0)
            np.multiply(weights, weights, out=slopes)
            np.subtract(1, slopes, out=slopes)
            weights *= cap
        weights -= lse2
        np.exp2(weights, out=weights)
        if words is not None:
            bits = weights.view(words.dtype).reshape(-1, *words.shape)
            np.bitwise_and(bits, words, out=bits)
        return weights, slopes

    def _take(self, which: int, rows: int, width: int) -> Array:
        """One of the three arrays (rows, width) of a step, not initialised."""
        if self.buffers[which].size < rows * width:
            self.buffers[which] = np.empty(rows * width, self.call.dtype)
        taken: Array = self.buffers[which][: rows * width].reshape(rows, width)
        return taken
