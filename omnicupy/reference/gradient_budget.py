"""The error that is allowed on gradients, by row of dq and by key of dk and dv, and the comparison with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.call.arrays import DTYPE_NAMES, module_of, widen
from omnicupy.masks.mask import Mask
from omnicupy.reference.attention import Array, ScoreChanges, keys_of_rows
from omnicupy.reference.backward import (
    Chunk,
    Given,
    Gradients,
    chunks,
    given_of,
    gradients_emulated,
    over_rows,
    sink_terms,
)
from omnicupy.reference.budget import ROUNDOFF, TANH, UNDERFLOW, Comparison, worst_row

NAMES = ("dq", "dk", "dv")
# With a sink so far above lse that weights of the keys vanish, engines take weights of this share for the sake of dlse.
LEAST_SHARE = math.exp(-40)


@dataclass(frozen=True)
class GradientBudget:
    """Reference gradients and the error allowed on them; all float64, of the inputs' array module.

    exact: dq (B, Hq, Sq, D), dk (B, Hkv, Skv, D), dv (B, Hkv, Skv, Dv). allowed: (B, Hq, Sq), (B, Hkv, Skv), (B, Hkv,
    Skv), zero for rows without keys and dead keys. sink, sink_allowed: of the gradient of sink_logits, (Hq,); None
    without these.
    """

    exact: Gradients
    allowed: Gradients
    sink: Array | None = None
    sink_allowed: Array | None = None


def budget(
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
    **changes: Any,
) -> GradientBudget:
    """Gradients of what the engine is given, and the error allowed on each row of dq and each key of dk and dv.

    out, lse: what the engine is given, from an `attention` whose own error is judged elsewhere. changes: sink_logits,
    softcap. Other arguments as in gradients64. The reference are the formulas of `attention_backward` in float64, on
    out and lse as they are: how out was rounded shows in delta, and no engine can do anything about that.

    E: the largest error of gradients_emulated in the row (or key), with the scale before or after the rounding of dS.
    u: unit roundoff of the inputs' dtype, w: that of the arithmetic. For row i: n keys seen, r = w * (1 + scale *
    |q_i| * max |k| + |lse_i|) (relative error of P for that of its exponent), t = (4 + sqrt(Dv)) * w * |dout_i| *
    max(max |v|, |out_i|) (error of dout v^T - delta). Over
    the keys of a row, or the rows of a key (m of them, all heads of the group): rms(x) is the root of the sum of
    squares, abs(x) the sum of sizes, sum(x) the size of the sum, of a key the sizes of the sums of each head. Of all
    these and of max the largest over columns.

    - dq: 2 E + (u + 8 sqrt(n) w) max |dq| + scale * (2 u rms(dS k) + 4 abs(r dS k) + rms(t P k) + sum(t P k))
    - dk: 2 E + (u + 8 sqrt(m) w) max |dk| + scale * (2 u rms(dS q) + 4 abs(r dS q) + rms(t P q) + sum(t P q))
    - dv: 2 E + (u + 8 sqrt(m) w) max |dv| + 2 u rms(P dout) + 4 abs(r P dout)

    Added to each: what 16-bit P and dS lose below the smallest number of their dtype, half of which is s:
    s * (1 + sqrt(n) * max(1, scale) * max |k|) for dq, with m and max |q| for dk, with m and max |dout| alone for dv.
    Rows that see no key and dead keys get nothing.

    A soft cap adds TANH * softcap to |score| in r, and abs(r dS ...) takes gradients of capped scores. A sink adds its
    size to r, and 4 * w * (1 + |lse_i| + |sink|) * |dlse_i| / s to t, s being the keys' share of the weights; beside
    dlse a share may be LEAST_SHARE for a smaller one. Its own gradient is allowed, over the rows of its head,
    8 * w * sum((1 - s) * ((4 + sqrt(Dv)) * |dout_i| * |out_i| + (1 + |lse_i| + |sink|) * |dout_i . out_i|)).

    Why: the emulation is exact by luck on some rows, and what is cancelled in dS = P (dout v^T - delta) does not show
    in the gradient. The rms terms say what rounding each term once, elsewhere than the emulation does, can move; the
    abs terms, what equal queries or keys do, whose P all err to one side; both are of the terms before they cancel.
    With weights of 1 or values that are alike, dS itself is nothing but the error t, often of one sign: hence the sums.
    """
    xp = module_of(q)
    given = given_of((dout, q, k, v), (out, lse, dlse), mask, scale, ScoreChanges(**changes))
    terms = _Terms(given, DTYPE_NAMES[np.dtype(q.dtype)])
    exact = terms.gradients()
    options = {"out": out, "lse": lse, "dlse": dlse, **changes}
    emulated = gradients_emulated(dout, q, k, v, mask, scale, **options)
    allowed = []
    for wide, first, second, limit in zip(exact, *emulated, terms.allowed(exact), strict=True):
        error, other = (xp.abs(widen(one, np.float64, xp) - wide).max(axis=3) for one in (first, second))
        allowed.append(xp.where(limit > 0, 2 * xp.maximum(error, other) + limit, 0.0))
    of_sinks = (None, None) if given.changes.sink_logits is None else terms.of_sinks()
    return GradientBudget(exact, (allowed[0], allowed[1], allowed[2]), *of_sinks)


def compare(gradients: Sequence[Array | None], expected: GradientBudget) -> Comparison:
    """The row of dq, or key of dk or dv, that uses most of its budget.

    gradients: (dq, dk, dv) of any supported dtype, None where not compared; at least one; behind them may come that of
    sink_logits. NaN is never allowed.
    Raises ValueError for another shape than that of the reference.
    """
    xp = module_of(expected.exact[0])
    found = []
    if len(gradients) > len(NAMES):
        assert expected.sink_allowed is not None
        error, limit = xp.abs(widen(gradients[3], np.float64, xp) - expected.sink), expected.sink_allowed
        found.append(worst_row(error[None, :, None], limit[None, :, None], "dsink_logits", xp))
    for what, array, exact, allowed in zip(
        NAMES, gradients[:3], expected.exact, expected.allowed, strict=True
    ):
        if array is None:
            continue
        if array.shape != exact.shape:
            raise ValueError(f"{what} must have the shape {exact.shape}, got {array.shape}; transpose it")
        error = xp.abs(widen(array, np.float64, xp) - exact).max(axis=3)
        found.append(worst_row(error, allowed, what, xp))
    return max(found, key=lambda one: one.ratio)


class _Terms:
    """The gradients in float64 and the terms beside E, chunk by chunk in float64."""

    def __init__(self, given: Given, name: str) -> None:
        self.given, self.xp = given, module_of(given.q)
        self.u, self.under = ROUNDOFF[name], UNDERFLOW[name] or float(np.finfo(np.float64).tiny)
        self.w = ROUNDOFF["float64" if name == "float64" else "float32"]
        zeros, q, k, v = self.xp.zeros, given.q.shape, given.k.shape, given.v.shape
        self.dq, self.dk, self.dv = zeros(q), zeros(k), zeros(v)
        self.of_rows = zeros(q[:3])
        # Of each key and column: squares of dS q, t P q and P dout; abs and sum terms of dk, abs terms of dv.
        self.rounded_dk, self.off_dk, self.other_dk = (zeros(k) for _ in range(3))
        self.rounded_dv, self.other_dv = zeros(v), zeros(v)
        self.largest_k, self.largest_q, self.largest_dout = (zeros(k[:2]) for _ in range(3))
        self.largest_dp, with_dlse = 0.0, given.changes.sink_logits is not None and given.dlse is not None
        self.least_share = LEAST_SHARE if with_dlse else 0.0
        for chunk in chunks(given, np.dtype(np.float64)):
            self._add(chunk)

    def _add(self, chunk: Chunk) -> None:
        xp, w = self.xp, self.w
        head, rows = (chunk.batch, chunk.kv), (chunk.batch, chunk.heads, chunk.rows)
        keys, weights, dscores = chunk.keys, chunk.weights, chunk.dscores
        self.dq[rows] = dscores @ keys
        self.dk[head] += over_rows(dscores, chunk.q)
        self.dv[head] += over_rows(weights, chunk.dout)
        key, value = (xp.sqrt((x**2).sum(axis=1).max()) for x in (keys, chunk.values))
        q, dout, out = (xp.sqrt((x**2).sum(axis=2, keepdims=True)) for x in (chunk.q, chunk.dout, chunk.out))
        r = w * (1 + self.given.scale * q * key + xp.abs(chunk.lse[..., None]))
        t = (4 + chunk.dout.shape[2] ** 0.5) * w * dout * xp.maximum(value, out)
        self.largest_dp = max(self.largest_dp, float((dout * xp.maximum(value, out)).max()))
        more_r, more_t = self._of_changes(chunk)
        r, t = r + w * more_r, t + w * more_t
        squares, sizes, off = keys**2, xp.abs(chunk.capped_dscores), t * chunk.q
        # Not **2, which is pow() on a GPU.
        weights2, dscores2 = weights * weights, dscores * dscores
        self.of_rows[rows] = (
            2 * self.u * xp.sqrt((dscores2 @ squares).max(axis=2))
            + 4 * r[..., 0] * (sizes @ xp.abs(keys)).max(axis=2)
            + t[..., 0] * xp.sqrt((weights2 @ squares).max(axis=2))
            + t[..., 0] * xp.abs(weights @ keys).max(axis=2)
        )
        self.rounded_dk[head] += over_rows(dscores2, chunk.q**2)
        self.off_dk[head] += over_rows(weights2, off**2)
        self.other_dk[head] += 4 * over_rows(sizes, r * xp.abs(chunk.q))
        self.other_dk[head] += xp.abs(weights.swapaxes(1, 2) @ off).sum(axis=0)
        self.rounded_dv[head] += over_rows(weights2, chunk.dout**2)
        self.other_dv[head] += 4 * over_rows(weights, r * xp.abs(chunk.dout))
        for most, array in (
            (self.largest_k, keys),
            (self.largest_q, chunk.q),
            (self.largest_dout, chunk.dout),
        ):
            most[head] = xp.maximum(most[head], xp.abs(array).max())

    def _of_changes(self, chunk: Chunk) -> tuple[Array, Array]:
        """What a soft cap and a sink add to r and t, over w."""
        xp, changes = self.xp, self.given.changes
        more_r, more_t = TANH * (changes.softcap or 0.0), 0.0
        if changes.sink_logits is not None:
            sinks = xp.asarray(changes.sink_logits)[chunk.heads].astype(np.float64)[:, None, None]
            sinks = xp.where(sinks == -np.inf, 0.0, xp.abs(sinks))
            more_r = more_r + sinks
            if chunk.dlse is not None:
                # Where there is no share, nothing but dlse is left of a row.
                dlse = xp.where(chunk.share == 0, 0.0, chunk.dlse)[..., None]
                share = xp.where(chunk.share == 0, 1.0, chunk.share)[..., None]
                more_t = 4 * (1 + xp.abs(chunk.lse[..., None]) + sinks) * xp.abs(dlse) / share
        return more_r, more_t

    def of_sinks(self) -> tuple[Array, Array]:
        """The gradient of sink_logits and the error allowed on it, (Hq,)."""
        xp, given = self.xp, self.given
        taken, of_rows = sink_terms(given)
        seen = of_rows != 0
        sizes = [
            xp.where(seen, xp.sqrt((widen(x, np.float64, xp) ** 2).sum(axis=3)), 0.0)
            for x in (given.dout, given.out)
        ]
        lse = xp.where(seen, xp.abs(widen(given.lse, np.float64, xp)), 0.0)
        sinks = xp.asarray(given.changes.sink_logits).astype(np.float64)[:, None]
        sinks = xp.where(sinks == -np.inf, 0.0, xp.abs(sinks))
        off = (4 + given.dout.shape[3] ** 0.5) * sizes[0] * sizes[1] + (1 + lse + sinks) * xp.abs(of_rows)
        allowed = 8 * self.w * (taken * off).sum(axis=(0, 2)) + float(np.finfo(np.float32).tiny)
        return -(taken * of_rows).sum(axis=(0, 2)), allowed

    def gradients(self) -> Gradients:
        """dq, dk and dv."""
        return self.given.scale * self.dq, self.given.scale * self.dk, self.dv

    def allowed(self, exact: Gradients) -> Gradients:
        """The error beside 2 E, (B, Hq, Sq), (B, Hkv, Skv) twice; 0 for rows and keys that see nothing."""
        xp, scale, masks = self.xp, self.given.scale, self.given.masks
        group = self.given.q.shape[1] // self.given.k.shape[1]
        n = keys_of_rows(masks, len(masks), xp)[:, None]
        m = xp.asarray(np.stack([group * mask.key_counts() for mask in masks]))[:, None]
        of_dk = 2 * self.u * xp.sqrt(self.rounded_dk) + xp.sqrt(self.off_dk) + self.other_dk
        of_dv = 2 * self.u * xp.sqrt(self.rounded_dv) + self.other_dv
        largest_k = xp.repeat(self.largest_k, group, axis=1)
        found = []
        for gradient, terms, own, factor in (
            (exact[0], n, scale * self.of_rows, max(1.0, scale) * largest_k),
            (exact[1], m, scale * of_dk.max(axis=3), max(1.0, scale) * self.largest_q),
            (exact[2], m, of_dv.max(axis=3), self.largest_dout),
        ):
            in_proportion = (self.u + 8 * self.w * xp.sqrt(terms)) * xp.abs(gradient).max(axis=3)
            lost = self.under * (1 + xp.sqrt(terms) * factor[..., None])
            lost = lost + self.least_share * terms * factor[..., None] * max(1.0, 2 * self.largest_dp)
            found.append(xp.where(terms > 0, own + in_proportion + lost, 0.0))
        return found[0], found[1], found[2]
