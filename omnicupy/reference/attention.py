"""The float64 reference that defines attention here, and the error budget that every engine is held to.

It defines the corner cases: a row that sees no key gives out = 0 and lse = -inf; what a dead key (one that no
row of its batch element sees) holds never reaches the output. Nothing that is meant to be fast imports this.

Works on NumPy arrays, and on CuPy arrays without copying them back, in row chunks: memory grows with the
keys, not with rows times keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.call.arrays import DTYPE_NAMES, is_cupy, module_of, narrow, widen
from omnicupy.call.problem import scale_of
from omnicupy.masks.mask import Mask
from omnicupy.reference.visible import counts, visible

CHUNK_CPU, CHUNK_GPU = 1 << 21, 1 << 25  # scores held at a time
OUTWEIGHED = (
    0.249  # a quarter, less what sums round: below it row_max is raised (kGrowthLimit, omni/softmax.cuh)
)
Array = Any  # NumPy or CuPy


@dataclass(frozen=True)
class ScoreChanges:
    """`sink_logits` (Hq,) and `softcap` of a call, None for none."""

    sink_logits: Array | None = None
    softcap: float | None = None

    def capped(self, scores: Array) -> Array:
        """softcap * tanh(score / softcap), in the dtype of the scores."""
        if self.softcap is None:
            return scores
        cap = scores.dtype.type(self.softcap)
        return cap * module_of(scores).tanh(scores / cap)

    def above(self, lse: Array, heads: slice) -> Array:
        """The sinks of some heads less lse (heads, rows): -inf without one, and where lse is that of no key."""
        xp = module_of(lse)
        if self.sink_logits is None:
            return xp.full_like(lse, -np.inf)
        sinks = xp.asarray(self.sink_logits)[heads].astype(lse.dtype)[:, None]
        none = lse == -np.inf
        return xp.where(none, -np.inf, sinks - xp.where(none, lse.dtype.type(0), lse))

    def share(self, lse: Array, heads: slice) -> Array:
        """sigmoid(lse - sink): what weights of the keys add up to, (heads, rows); 1 without a sink or without a key."""
        with np.errstate(over="ignore"):
            return 1 / (1 + module_of(lse).exp(self.above(lse, heads)))


def attention64(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Sequence[Mask],
    scale: float | None = None,
    *,
    sink_logits: Array | None = None,
    softcap: float | None = None,
) -> tuple[Array, Array]:
    """Attention in float64 on the exact inputs.

    q: (B, Hq, Sq, D), k: (B, Hkv, Skv, D), v: (B, Hkv, Skv, Dv), of any supported dtype. mask: one Mask, or one per
    batch element. scale: None is 1/sqrt(D). sink_logits: (Hq,) or None. softcap: None caps nothing. Keys and values
    that some row sees must be finite.
    Returns out (B, Hq, Sq, Dv) and lse (B, Hq, Sq), float64; 0 and -inf for a row that sees no key.
    """
    changes = ScoreChanges(sink_logits, softcap)
    return _attention(q, k, v, mask, scale, changes, dtype=np.dtype(np.float64), rounding=lambda one: one)


def attention_emulated(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Sequence[Mask],
    scale: float | None = None,
    *,
    sink_logits: Array | None = None,
    softcap: float | None = None,
) -> tuple[Array, Array]:
    """The plain way to compute in the dtype of the inputs: what an engine's error is measured against.

    Scores, softmax and sums in float32, weights (exp(score - row maximum)) rounded to the inputs' dtype, then
    multiplied with V and summed in float32, one rounding of the output. Arguments as in attention64; float64
    inputs are computed in float64 throughout. Returns out in the inputs' dtype, lse in float32 or (float64
    inputs) float64.
    """
    return _emulated((q, k, v), mask, scale, ScoreChanges(sink_logits, softcap))


def emulated_with_spread(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Sequence[Mask],
    scale: float | None = None,
    *,
    sink_logits: Array | None = None,
    softcap: float | None = None,
) -> tuple[Array, Array, Array]:
    """The same, and the spread of each row (B, Hq, Sq): what its output would be off, as a root mean square of its
    worst column, if each weight were off by as much as itself, in either direction: sqrt(max of sum of (P v)^2). 0
    where one key outweighs all others four times: in every kernel its weight is exactly 1.
    """
    spread = module_of(q).empty(q.shape[:3], np.float64)
    out, lse = _emulated((q, k, v), mask, scale, ScoreChanges(sink_logits, softcap), spread)
    return out, lse, spread


def _emulated(
    inputs: tuple[Array, Array, Array],
    mask: Mask | Sequence[Mask],
    scale: float | None,
    changes: ScoreChanges,
    spread: Array | None = None,
) -> tuple[Array, Array]:
    q, xp = inputs[0], module_of(inputs[0])
    wide = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)

    def rounding(weights: Array) -> Array:
        return widen(narrow(weights, q.dtype), wide, xp)

    out, lse = _attention(*inputs, mask, scale, changes, dtype=wide, rounding=rounding, spread=spread)
    return narrow(out, q.dtype), lse


def _attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Sequence[Mask],
    scale: float | None,
    changes: ScoreChanges,
    *,
    dtype: np.dtype[Any],
    rounding: Callable[[Array], Array],
    spread: Array | None = None,
) -> tuple[Array, Array]:
    """spread: filled with that of each row."""
    xp = module_of(q)
    factor = scale_of(scale, q.shape[3], DTYPE_NAMES[np.dtype(q.dtype)])
    out = xp.empty((*q.shape[:3], v.shape[3]), dtype)
    lse = xp.empty(q.shape[:3], dtype)
    q_len, k_len = q.shape[2], k.shape[2]
    group = q.shape[1] // k.shape[1]
    rows = max(1, (CHUNK_GPU if is_cupy(q) else CHUNK_CPU) // (group * k_len))
    for b, one in enumerate(masks_of(mask, len(q))):
        live = xp.asarray(~one.dead_keys())[:, None]
        keys, values = (xp.where(live, widen(x[b], dtype, xp), dtype.type(0)) for x in (k, v))
        for q0 in range(0, q_len, rows):
            q1 = min(q0 + rows, q_len)
            shown = visible(one, q0, q1, xp)
            for kv in range(k.shape[1]):
                heads = slice(kv * group, (kv + 1) * group)
                scores = widen(q[b, heads, q0:q1], dtype, xp) @ keys[kv].T
                scores *= dtype.type(factor)
                scores = changes.capped(scores)
                weights, total, lse[b, heads, q0:q1] = _softmax(scores, shown, xp)
                empty = (total == 0)[..., None]
                total = xp.where(empty, dtype.type(1), total[..., None])
                share = changes.share(lse[b, heads, q0:q1], heads)[..., None]
                product = rounding(weights) @ values[kv]
                product /= total
                product *= share
                out[b, heads, q0:q1] = xp.where(empty, dtype.type(0), product)
                if spread is not None:
                    found = _spread(weights / total * share, values[kv], xp)
                    spread[b, heads, q0:q1] = xp.where(total[..., 0] < 1 + OUTWEIGHED, 0.0, found)
    return out, lse


def _spread(weights: Array, values: Array, xp: Any) -> Array:
    """That of rows, (.., rows). values: (keys, columns), divided by the largest so that their squares are numbers."""
    largest = xp.abs(values).max()
    squares = (values / xp.where(largest == 0, values.dtype.type(1), largest)) ** 2
    return largest * xp.sqrt((weights**2 @ squares).max(axis=-1))


def _softmax(scores: Array, shown: Array, xp: Any) -> tuple[Array, Array, Array]:
    """exp(score - row maximum) of the visible pairs, (.., rows, keys), its sum and the lse, (.., rows)."""
    zero, one = scores.dtype.type(0), scores.dtype.type(1)
    top = xp.where(shown, scores, -np.inf).max(axis=-1)
    empty = top == -np.inf
    top = xp.where(empty, zero, top)
    weights = xp.where(shown, xp.exp(xp.where(shown, scores - top[..., None], zero)), zero)
    total = weights.sum(axis=-1)
    return weights, total, xp.where(empty, -np.inf, top + xp.log(xp.where(empty, one, total)))


def keys_of_rows(mask: Mask | Sequence[Mask], batch: int, xp: Any) -> Array:
    """How many keys each row sees, float64 (B, Sq)."""
    of_batch = masks_of(mask, batch)
    found = {id(one): one for one in of_batch}
    seen = {name: counts(one, xp)[None] for name, one in found.items()}
    return xp.concatenate([seen[id(one)] for one in of_batch])


def masks_of(mask: Mask | Sequence[Mask], batch: int) -> list[Mask]:
    """The mask of each batch element."""
    if isinstance(mask, Mask):
        return [mask] * batch
    return [mask[b % len(mask)] for b in range(batch)]
