"""The error that is allowed, row by row, and the comparison with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.call.arrays import DTYPE_NAMES, module_of, widen
from omnicupy.call.problem import scale_of
from omnicupy.masks.mask import Mask
from omnicupy.reference.attention import (
    Array,
    ScoreChanges,
    attention64,
    emulated_with_spread,
    keys_of_rows,
    masks_of,
)

# Unit roundoff (half the distance from 1 to the next number), and half the smallest number.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
TANH = 4  # what a soft cap's tanh may be off, in units of roundoff of 1
EXACT_KEYS = 64  # of a row, whose greatest weight is exactly 1 in every kernel (docs/design.md, Numbers)
UNDERFLOW = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150, "float64": 0.0}


@dataclass(frozen=True)
class Budget:
    """A reference result and the error allowed on it; all float64, of the inputs' array module.

    out: (B, Hq, Sq, Dv). lse: (B, Hq, Sq). out_allowed, lse_allowed: (B, Hq, Sq), zero for rows without keys.
    """

    out: Array
    lse: Array
    out_allowed: Array
    lse_allowed: Array


@dataclass(frozen=True)
class Comparison:
    """The worst row of a result. ratio: error over allowed error, inf where a NaN came or nothing is allowed.

    what: "out", "lse", or of gradients "dq", "dk", "dv". where: (batch element, query head, row), of dk and dv (batch
    element, key head, key). error: the largest absolute one there.
    """

    ratio: float
    what: str
    where: tuple[int, int, int]
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """True when the result is within the budget."""
        return self.ratio <= 1

    def __str__(self) -> str:
        b, h, token = self.where
        axis = "key" if self.what in ("dk", "dv") else "row"
        return (
            f"worst {self.what} at batch {b}, head {h}, {axis} {token}: error {self.error:.3g}, "
            f"allowed {self.allowed:.3g} (ratio {self.ratio:.3g})"
        )


def budget(
    q: Array, k: Array, v: Array, mask: Mask | Sequence[Mask], scale: float | None = None, **changes: Any
) -> Budget:
    """The reference result and the error allowed on each row. Arguments as in attention64; changes: its keywords.

    With u the unit roundoff of the inputs' dtype, w that of the arithmetic (float32, or float64 for float64
    inputs), n the keys that the row sees, and c = scale * |q| * max |k|, which bounds its scores:

    - out, largest absolute error of a row: 2 * (that of attention_emulated, at least _of_rounded_weights) + u *
      max |out| (one rounding of the output) + 2 * w * (1 + c) * max |v| (what one rounding of each score and
      weight can move) + 8 * sqrt(n) * w * max |out| (the floor below).
    - lse: 2 * (the largest error of attention_emulated over the rows of the head) + w * |lse| (one rounding to
      the dtype of lse; 4 times as much in float64, in which engines also convert to base 2 and back) + w * (1 + c)
      + 4 * sqrt(n) * w (the floor) + w * (D / 16 + 1) * (|lse| + log(n)) (what tensor cores cut off, below). A row
      has only one lse, on which the emulation may be exact by luck, so the head counts.

    A soft cap adds to c the error of its tanh, TANH * softcap, in both. With a sink, of which the weights of the keys
    have the share s = sigmoid(lse - sink), the third term of out counts s times, and what rounding moves in s comes
    to it: 4 * w * (1 + |lse| + |sink|) * (1 - s) * max |out|, and for a share that vanishes the smallest normal number
    of the arithmetic times max |v|.

    The floor is what sums of equal signs may lose: an engine adds n terms in another order than the emulation,
    each addition rounds, and where the terms are alike (constant keys or values, a head_dim of 1 or 2) all round
    to one side, while the emulation may be exact. Measured on the CPU engine for up to 9,000 such keys, tiles of
    32 to 256: at most 220 w of out and 80 w of lse. Of values with mixed signs max |out| is small, and so is the
    floor.

    Of 16-bit inputs a score is summed by tensor cores, 16 products at a time: D / 16 additions, each of which cuts
    off up to 2 * w of the sum, always towards 0. lse follows the row's greatest score, |lse| + log(n) at most, and
    where a sum grows to it evenly, w * (D / 16 + 1) times as much is lost. The emulation's products round both ways.

    The terms in w matter for float32 and float64, where only the order of sums tells the emulation from an
    engine; on outputs in float16 and bfloat16 they are far below the others. Rows without keys get none.
    """
    xp = module_of(q)
    name = DTYPE_NAMES[np.dtype(q.dtype)]
    sink_logits, softcap = changes.get("sink_logits"), changes.get("softcap")
    out, lse = attention64(q, k, v, mask, scale, **changes)
    emulated_out, emulated_lse, spread = emulated_with_spread(q, k, v, mask, scale, **changes)
    keys = keys_of_rows(mask, len(q), xp)[:, None]
    out_error = xp.abs(widen(emulated_out, np.float64, xp) - out).max(axis=3)
    out_error = xp.maximum(out_error, _of_rounded_weights(name, keys, spread))
    empty = lse == -np.inf
    lse_error = xp.abs(xp.where(empty, 0.0, widen(emulated_lse, np.float64, xp)) - xp.where(empty, 0.0, lse))
    score, value = _sizes(q, k, v, mask, scale)
    unit = ROUNDOFF[_arithmetic(name)]
    noise, floor = unit * (1 + score + TANH * (softcap or 0)), unit * xp.sqrt(keys)
    size = xp.abs(out).max(axis=3)
    share, of_sink = 1.0, 0.0
    if sink_logits is not None:
        share, of_sink = _sink_terms(sink_logits, lse, name)
    allowed = (
        2 * out_error + (ROUNDOFF[name] + 8 * floor) * size + UNDERFLOW[name] + 2 * noise * share * value
    )
    if sink_logits is not None:
        allowed = allowed + of_sink * size + float(np.finfo(_arithmetic(name)).tiny) * value
    lse_size = (4 if name == "float64" else 1) * xp.abs(xp.where(empty, 0.0, lse))
    lse_allowed = 2 * lse_error.max(axis=2, keepdims=True) + unit * lse_size + noise + 4 * floor
    lse_allowed = lse_allowed + _cut_off(name, q.shape[3]) * (lse_size + xp.log(xp.maximum(keys, 1)))
    return Budget(out, lse, xp.where(empty, 0.0, allowed), xp.where(empty, 0.0, lse_allowed))


def _of_rounded_weights(name: str, keys: Array, spread: Array) -> Array:
    """What rounding its weights to 16 bits takes a row's output off, u / 2 * spread, a root mean square.

    The emulation may be off by less by luck, as its greatest weight is exactly 1. A kernel's need not be: what it takes
    off the scores of more than EXACT_KEYS keys need not be their maximum. All weights are rounded at other places then.
    """
    rounded = ROUNDOFF[name] / 2 if name in ("float16", "bfloat16") else 0.0
    return module_of(keys).where(keys > EXACT_KEYS, rounded * spread, 0.0)


def _arithmetic(name: str) -> str:
    return "float64" if name == "float64" else "float32"


def _cut_off(name: str, head_dim: int) -> float:
    """What tensor cores may cut off of a score of 1 that is summed up evenly; nothing where there are none."""
    return ROUNDOFF["float32"] * (head_dim / 16 + 1) if name in ("float16", "bfloat16") else 0.0


def _sink_terms(sink_logits: Array, lse: Array, name: str) -> tuple[Array, Array]:
    """The share s of the keys, (B, Hq, Sq), and what it may be off relative to itself."""
    xp = module_of(lse)
    changes, heads = ScoreChanges(sink_logits), slice(0, lse.shape[1])
    share = xp.stack([changes.share(one, heads) for one in lse])
    sizes = 1 + xp.where(lse == -np.inf, 0.0, xp.abs(lse))
    sinks = xp.asarray(sink_logits).astype(np.float64)[:, None]
    sizes = sizes + xp.where(sinks == -np.inf, 0.0, xp.abs(sinks))
    return share, 4 * ROUNDOFF[_arithmetic(name)] * sizes * (1 - share)


def compare(out: Array, lse: Array | None, expected: Budget) -> Comparison:
    """The row of a result that uses most of its budget.

    out: (B, Hq, Sq, D) of any supported dtype, lse: (B, Hq, Sq) or None (not compared). NaN is never allowed.
    """
    xp = module_of(expected.out)
    error = xp.abs(widen(out, np.float64, xp) - expected.out).max(axis=3)
    found = [worst_row(error, expected.out_allowed, "out", xp)]
    if lse is not None:
        # Equal infinities agree; their difference would be NaN.
        lse = widen(lse, np.float64, xp)
        with np.errstate(invalid="ignore"):
            error = xp.where(lse == expected.lse, 0.0, xp.abs(lse - expected.lse))
        found.append(worst_row(error, expected.lse_allowed, "lse", xp))
    return max(found, key=lambda one: one.ratio)


def worst_row(error: Array, allowed: Array, what: str, xp: Any) -> Comparison:
    """The place of the largest error over allowed error, both (B, heads, tokens); NaN counts as infinite."""
    error = xp.where(xp.isnan(error), np.inf, error)
    known = allowed > 0
    ratio = xp.where(known, error / xp.where(known, allowed, 1.0), xp.where(error == 0, 0.0, np.inf))
    at = int(ratio.argmax())
    b, h, row = (int(i) for i in np.unravel_index(at, ratio.shape))
    where = (b, h, row)
    return Comparison(float(ratio[where]), what, where, float(error[where]), float(allowed[where]))


def _sizes(
    q: Array, k: Array, v: Array, mask: Mask | Sequence[Mask], scale: float | None
) -> tuple[Array, Array]:
    """A bound on |score|, (B, Hq, Sq), and the largest |v|, (B, Hq, 1), over the keys that some row sees."""
    xp = module_of(q)
    group = q.shape[1] // k.shape[1]
    norms = xp.sqrt((widen(q, np.float64, xp) ** 2).sum(axis=3))
    key = xp.empty((*k.shape[:2], 1))
    value = xp.empty((*k.shape[:2], 1))
    for b, one in enumerate(masks_of(mask, len(q))):
        live = xp.asarray(~one.dead_keys())[:, None]
        keys, values = (xp.where(live, widen(x[b], np.float64, xp), 0.0) for x in (k, v))
        key[b, :, 0] = xp.sqrt((keys**2).sum(axis=2).max(axis=1))
        value[b, :, 0] = xp.abs(values).max(axis=(1, 2))
    bound = (
        scale_of(scale, q.shape[3], DTYPE_NAMES[np.dtype(q.dtype)]) * norms * xp.repeat(key, group, axis=1)
    )
    return bound, xp.repeat(value, group, axis=1)
