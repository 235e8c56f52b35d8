"""The float64 gradients that define `attention_backward` here, and an emulation of how tensor cores compute them.

They define the corner cases: a row that sees no key has dq = 0; a dead key (one that no row of its batch element sees)
has dk = dv = 0; what q, dout, out and lse hold in such rows, and k and v in such keys, reaches nothing.

Works on NumPy and CuPy arrays, in row chunks, as reference/attention.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.call.arrays import DTYPE_NAMES, is_cupy, module_of, narrow, widen
from omnicupy.call.problem import scale_of
from omnicupy.masks.mask import Mask
from omnicupy.reference.attention import Array, ScoreChanges, attention64, keys_of_rows, masks_of
from omnicupy.reference.visible import visible

CHUNK_CPU, CHUNK_GPU = 1 << 19, 1 << 23  # pairs held at a time, in some six arrays

NOTHING = ScoreChanges()
Gradients = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Given:
    """What gradients are computed of: arrays as `attention_backward` takes them, masks, and the factor of scores."""

    dout: Array
    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array
    dlse: Array | None
    masks: list[Mask]
    scale: float
    changes: ScoreChanges = NOTHING


@dataclass(frozen=True)
class Chunk:
    """Some rows of the query heads of one key head, in the dtype worked in.

    batch, kv: which.  heads, rows: where they stand in q.  q: (group, rows, D), dout, out: (group, rows, Dv), lse:
    (group, rows), 0 in rows without keys.  keys: (k_len, D), values: (k_len, Dv), 0 where dead.  weights, dscores: P
    and dS = P * (dout v^T - delta), (group, rows, k_len); where scores are capped, dS is by the scores before, and
    capped_dscores by those after. share: what the weights of the keys add up to, (group, rows), 1 without a sink.
    dlse: (group, rows) or None.
    """

    batch: int
    kv: int
    heads: slice
    rows: slice
    q: Array
    dout: Array
    out: Array
    lse: Array
    keys: Array
    values: Array
    weights: Array
    dscores: Array
    capped_dscores: Array
    share: Array
    dlse: Array | None


def gradients64(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Sequence[Mask],
    scale: float | None = None,
    *,
    dlse: Array | None = None,
    whole: tuple[Array, Array] | None = None,
    sink_logits: Array | None = None,
    softcap: float | None = None,
) -> Gradients:
    """Gradients in float64 on the exact inputs: (dq, dk, dv), float64, of the shapes of q, k and v.

    dout: (B, Hq, Sq, Dv), q: (B, Hq, Sq, D), k: (B, Hkv, Skv, D), v: (B, Hkv, Skv, Dv), of any supported dtype. mask:
    one Mask, or one per batch element. scale: None is 1/sqrt(D). dlse: (B, Hq, Sq) or None. whole: out and lse of a
    larger attention that these keys are a part of; None where they are all. sink_logits, softcap: as in attention64.
    What some row or key sees must be finite.
    """
    changes = ScoreChanges(sink_logits, softcap)
    if whole is None:
        whole = attention64(q, k, v, mask, scale, sink_logits=sink_logits, softcap=softcap)
    return sums(given_of((dout, q, k, v), (*whole, dlse), mask, scale, changes), np.dtype(np.float64))[0]


def sink_terms(given: Given) -> tuple[Array, Array]:
    """sigmoid(sink - lse) and rowsum(dout * out), float64 (B, Hq, Sq) each, 0 in rows that see no key: the gradient of
    a head's sink is the sum of - their products.
    """
    xp, zero = module_of(given.q), np.float64(0)
    seen = (keys_of_rows(given.masks, len(given.q), xp) > 0)[:, None]
    lse = xp.where(seen, widen(given.lse, np.float64, xp), -np.inf)
    seen = lse != -np.inf
    dout, out = (xp.where(seen[..., None], widen(x, np.float64, xp), zero) for x in (given.dout, given.out))
    all_heads = slice(0, given.q.shape[1])
    with np.errstate(over="ignore"):
        taken = [1 / (1 + xp.exp(-given.changes.above(one, all_heads))) for one in lse]
    return xp.stack(taken), (dout * out).sum(axis=3)


def gradients_emulated(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Sequence[Mask],
    scale: float | None = None,
    *,
    out: Array,
    lse: Array,
    dlse: Array | None = None,
    sink_logits: Array | None = None,
    softcap: float | None = None,
) -> tuple[Gradients, Gradients]:
    """The plain way to compute gradients in the dtype of the inputs: what an engine's error is measured against.

    out, lse: what the engine is given. Scores, P, delta = rowsum(dout * out) - dlse and dS in float32; P rounded to
    the inputs' dtype for dv, dS for dq and dk; sums in float32, then the scale, then one rounding of each gradient.
    Other arguments as in gradients64; float64 inputs are computed in float64 throughout. Returns (dq, dk, dv) in the
    dtype of the inputs, twice: so, and with the scale multiplied into dS before that is rounded.
    """
    xp, dtype = module_of(q), q.dtype
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)

    def rounding(values: Array) -> Array:
        return widen(narrow(values, dtype), wide, xp)

    changes = ScoreChanges(sink_logits, softcap)
    given = given_of((dout, q, k, v), (out, lse, dlse), mask, scale, changes)
    (dq, dk, dv), (scaled_dq, scaled_dk, _) = sums(given, wide, rounding, (False, True))
    dv = narrow(dv, dtype)
    return (narrow(dq, dtype), narrow(dk, dtype), dv), (
        narrow(scaled_dq, dtype),
        narrow(scaled_dk, dtype),
        dv,
    )


def given_of(
    inputs: tuple[Array, Array, Array, Array],
    results: tuple[Array, Array, Array | None],
    mask: Mask | Sequence[Mask],
    scale: float | None,
    changes: ScoreChanges = NOTHING,
) -> Given:
    """`inputs` (dout, q, k, v) and `results` (out, lse, dlse) with the mask of each batch element, the scale and
    what else changes scores.
    """
    q = inputs[1]
    factor = scale_of(scale, q.shape[3], DTYPE_NAMES[np.dtype(q.dtype)])
    return Given(*inputs, *results, masks_of(mask, len(q)), factor, changes)


def sums(
    given: Given,
    dtype: np.dtype[Any],
    rounding: Callable[[Array], Array] = lambda values: values,
    scaled: Sequence[bool] = (False,),
) -> list[Gradients]:
    """dq, dk and dv in `dtype`, for each of `scaled`; `rounding` is applied to P before dv, and to dS, scaled or not,
    before dq and dk.
    """
    xp, factor, one = module_of(given.q), dtype.type(given.scale), dtype.type(1)
    dv = xp.zeros(given.v.shape, dtype)
    found = [(xp.empty(given.q.shape, dtype), xp.zeros(given.k.shape, dtype), dv) for _ in scaled]
    for chunk in chunks(given, dtype):
        dv[chunk.batch, chunk.kv] += over_rows(rounding(chunk.weights), chunk.dout)
        for before, (dq, dk, _) in zip(scaled, found, strict=True):
            dscores = rounding(chunk.dscores * (factor if before else one))
            dq[chunk.batch, chunk.heads, chunk.rows] = dscores @ chunk.keys
            dk[chunk.batch, chunk.kv] += over_rows(dscores, chunk.q)
    for before, (dq, dk, _) in zip(scaled, found, strict=True):
        dq *= one if before else factor
        dk *= one if before else factor
    return found


def over_rows(pairs: Array, rows: Array) -> Array:
    """The sum over heads and rows of pairs (group, rows, k_len) times rows (group, rows, n): (k_len, n)."""
    return pairs.reshape(-1, pairs.shape[2]).T @ rows.reshape(-1, rows.shape[2])


def chunks(given: Given, dtype: np.dtype[Any]) -> Iterator[Chunk]:
    """All rows of all heads, some at a time: memory grows with the keys, not with rows times keys."""
    xp, zero = module_of(given.q), dtype.type(0)
    (_, kv_heads, k_len, _), q_len = given.k.shape, given.q.shape[2]
    group = given.q.shape[1] // kv_heads
    step = max(1, (CHUNK_GPU if is_cupy(given.q) else CHUNK_CPU) // (group * k_len))
    seen = keys_of_rows(given.masks, len(given.q), xp) > 0
    for b, mask in enumerate(given.masks):
        live = xp.asarray(~mask.dead_keys())[:, None]
        keys, values = (xp.where(live, widen(x[b], dtype, xp), zero) for x in (given.k, given.v))
        for q0 in range(0, q_len, step):
            rows = slice(q0, min(q0 + step, q_len))
            shown = visible(mask, q0, rows.stop, xp)
            for kv in range(kv_heads):
                heads = slice(kv * group, (kv + 1) * group)

                def part(array: Array, b: int = b, heads: slice = heads, rows: slice = rows) -> Array:
                    own = array[b, heads, rows]
                    some = seen[b, rows].reshape(1, -1, *[1] * (own.ndim - 2))
                    return xp.where(some, widen(own, dtype, xp), zero)

                q, dout, out, lse = (part(array) for array in (given.q, given.dout, given.out, given.lse))
                weights, slopes = _weights((q, keys[kv]), lse, shown, dtype.type(given.scale), given.changes)
                share = given.changes.share(lse, heads)
                # A row's sink takes its share of dout v^T - rowsum(dout * out), but none of dlse.
                dscores = share[..., None] * (dout @ values[kv].T - (dout * out).sum(axis=2)[..., None])
                dlse = None if given.dlse is None else part(given.dlse)
                if dlse is not None:
                    dscores = dscores + dlse[..., None]
                dscores = weights * dscores
                lse = xp.where(lse == -np.inf, zero, lse)
                pairs = weights * share[..., None], dscores * slopes, dscores, share, dlse
                yield Chunk(b, kv, heads, rows, q, dout, out, lse, keys[kv], values[kv], *pairs)


def _weights(
    inputs: tuple[Array, Array], lse: Array, allowed: Array, factor: Any, changes: ScoreChanges
) -> tuple[Array, Array]:
    """exp(score - lse), (group, rows, k_len); 0 for hidden pairs and where lse is that of no key. And the derivatives
    of the scores by those before they are capped. inputs: q and keys.
    """
    q, keys = inputs
    xp, zero = module_of(q), q.dtype.type(0)
    none = lse == -np.inf
    level = xp.where(none, zero, lse)[..., None]
    shown = allowed & ~none[..., None]
    scores = q @ keys.T
    scores *= factor
    slopes = q.dtype.type(1)
    if changes.softcap is not None:
        scores = changes.capped(scores)
        slopes = slopes - (scores / q.dtype.type(changes.softcap)) ** 2
    return xp.where(shown, xp.exp(xp.where(shown, scores - level, zero)), zero), slopes
