"""Gradients as a tensor-core kernel computes them, tile by tile, right or with a fault of one's choice."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from gradient_cases import GradientCase

from omnicupy.call.arrays import narrow, widen

LOG2_E = math.log2(math.e)
# What may be wrong, and which gradients it is then to be seen in.
FAULTS = {
    "scale forgotten": "qk",
    "scale of dq forgotten": "q",
    "delta forgotten": "qk",
    "delta of the other sign": "qk",
    "dlse forgotten": "qk",
    "dlse of the other sign": "qk",
    "a masked pair leaks": "qkv",
    "a visible pair is lost": "qkv",
    "a key block is dropped": "q",
    "a row block is dropped": "kv",
    "the last keys of a tile are dropped": "q",
    "heads read another key head": "qkv",
    "lse of the row before": "qkv",
    "P of 8 bits": "v",
    "dS of 8 bits": "qk",
    "dq summed in 16 bits": "q",
    "dout rounded to bfloat16": "v",
    "half a group": "kv",
}


def gradients(
    case: GradientCase, width: int = 16, *, fault: str = "", scale_first: bool = False
) -> list[np.ndarray]:
    """dq, dk and dv: float32 products, P and dS rounded to the dtype of the inputs, `width` rows and keys a tile.

    scale_first: dS is scaled before it is rounded.  fault: one of FAULTS.
    """
    assert not fault or fault in FAULTS, fault
    dtype, arrays = case.arrays.q.dtype, case.arrays
    wide = np.float64 if dtype == np.float64 else np.float32
    masks = [case.masks[b % len(case.masks)].to_dense() for b in range(len(arrays.q))]
    results = [np.zeros(x.shape, wide) for x in arrays[1:4]]
    group, kv_heads = arrays.q.shape[1] // arrays.k.shape[1], arrays.k.shape[1]
    for b, h in np.ndindex(arrays.q.shape[:2]):
        with np.errstate(all="ignore"):  # of faults
            kv = (h + 1) % kv_heads if fault == "heads read another key head" else h // group
            one = _OneHead(case, (b, h, kv), masks[b], wide, fault)
            one.scale_first = scale_first
            dq, dk, dv = one.run(width)
            results[0][b, h] = dq
            if fault != "half a group" or h % group < (group + 1) // 2:
                results[1][b, h // group] += dk
                results[2][b, h // group] += dv
    with np.errstate(over="ignore"):
        return [narrow(x, dtype) for x in results]


def rounded(array: np.ndarray, dtype: Any) -> np.ndarray:
    """`array` rounded to dtype, in its own."""
    if dtype == array.dtype:
        return array
    return widen(narrow(np.ascontiguousarray(array, np.float32), dtype), array.dtype)


def four_bits(array: np.ndarray) -> np.ndarray:
    """With a mantissa of 4 bits, as 8-bit numbers have."""
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 16) / 16, exponent).astype(array.dtype)


class _OneHead:
    def __init__(
        self, case: GradientCase, place: tuple[int, int, int], dense: np.ndarray, wide: Any, fault: str
    ) -> None:
        (b, h, kv), a = place, case.arrays
        self.fault, self.dtype = fault, a.q.dtype
        self.scale_first = False
        self.scale = wide(a.q.shape[3] ** -0.5)
        empty, dead = ~dense.any(axis=1), ~dense.any(axis=0)
        dout, q, out = (np.where(empty[:, None], wide(0), widen(x[b, h], wide)) for x in (a.dout, a.q, a.out))
        self.k, self.v = (np.where(dead[:, None], wide(0), widen(x[b, kv], wide)) for x in (a.k, a.v))
        lse = np.roll(a.lse[b, h], 1) if fault == "lse of the row before" else a.lse[b, h]
        self.lse2 = np.where(np.isinf(lse) | empty, np.inf, lse.astype(np.float64) * LOG2_E).astype(wide)
        delta = (dout * out).sum(axis=1) * {"delta forgotten": 0, "delta of the other sign": -1}.get(fault, 1)
        if a.dlse is not None and fault != "dlse forgotten":
            delta = delta + (a.dlse[b, h] if fault == "dlse of the other sign" else -a.dlse[b, h])
        self.delta = np.where(empty, 0, delta).astype(wide)
        self.q, self.dout = q, rounded(dout, ml_dtypes.bfloat16) if "dout rounded" in fault else dout
        self.dense = self.seen(dense)

    def seen(self, dense: np.ndarray) -> np.ndarray:
        """The pairs that the engine takes as allowed: one is wrong, of those whose weight matters."""
        wrong = {"a masked pair leaks": ~dense, "a visible pair is lost": dense}.get(self.fault)
        if wrong is None:
            return dense
        weights = np.exp2(self.q @ self.k.T * self.scale * LOG2_E - self.lse2[:, None])
        places = np.argwhere(wrong & dense.any(axis=0) & (weights > 0.05))
        row, key = places[len(places) // 2]
        dense = dense.copy()
        dense[row, key] ^= True
        return dense

    def run(self, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        fault = self.fault
        dq, dk, dv = np.zeros_like(self.q), np.zeros_like(self.k), np.zeros_like(self.v)
        for k0 in range(0, len(self.k), width):
            for q0 in range(0, len(self.q), width):
                rows, keys = slice(q0, q0 + width), slice(k0, k0 + width)
                p, ds = self.tile(rows, keys)
                if not (fault == "a row block is dropped" and q0 == width):
                    dv[keys] += p.T @ self.dout[rows]
                    dk[keys] += ds.T @ self.q[rows]
                if not (fault == "a key block is dropped" and k0 == width):
                    last = -2 if fault == "the last keys of a tile are dropped" else None
                    dq[rows] += ds[:, :last] @ self.k[keys][:last]
                if fault == "dq summed in 16 bits":
                    dq[rows] = rounded(dq[rows], np.float16 if self.dtype.itemsize > 2 else self.dtype)
        factor = self.scale if not self.scale_first else self.scale.dtype.type(1)
        dq = dq if fault in ("scale forgotten", "scale of dq forgotten") else dq * factor
        return dq, dk if fault == "scale forgotten" else dk * factor, dv

    def tile(self, rows: slice, keys: slice) -> tuple[np.ndarray, np.ndarray]:
        """P and dS as they enter the products."""
        wide = self.q.dtype
        scores = self.q[rows] @ self.k[keys].T * wide.type(self.scale * LOG2_E)
        p = np.exp2(scores - self.lse2[rows, None])
        p = np.where(self.dense[rows, keys], p, wide.type(0))
        ds = p * (self.dout[rows] @ self.v[keys].T - self.delta[rows, None])
        if self.scale_first:
            ds = ds * self.scale
        p = four_bits(p) if self.fault == "P of 8 bits" else rounded(p, self.dtype)
        return p, four_bits(ds) if self.fault == "dS of 8 bits" else rounded(ds, self.dtype)
