"""Gradients of tensors of more than 2**31 elements, judged in chunks of rows and keys, whose references add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from omnicupy.api import attention_backward
from omnicupy.masks.mask import Mask
from omnicupy.reference import gradient_budget
from omnicupy.reference.gradient_budget import GradientBudget
from omnicupy.tools.verify.backward_cases import BackwardCase
from omnicupy.tools.verify.backward_inputs import BackwardInputs, given_of
from omnicupy.tools.verify.backward_judges import Forward, different_bits
from omnicupy.tools.verify.case_kernels import Variant
from omnicupy.tools.verify.special_cases import filled

BIG_BYTES = 40 * 2**30
CHUNK = 1 << 17  # tokens whose reference is made at a time


def worst(found: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """Of results of a judge the one with the largest error, a wrong one first."""
    return max(found, key=lambda one: (bool(one[1]), one[0]))


def beyond_2_31_elements(
    case: BackwardCase, masks: Sequence[Mask], forward: Forward
) -> Callable[[Variant], tuple[float, str]]:
    """Tensors beyond 2**31 elements: every gradient is right everywhere, and the same twice."""
    import cupy

    if cupy.cuda.Device().mem_info[0] < BIG_BYTES:
        return lambda variant: (0.0, f"skipped: needs {BIG_BYTES >> 30} GiB of free device memory")
    q_shape = (case.batch, case.q_heads, case.q_len, case.head_dim)
    kv_shape = (case.batch, case.kv_heads, case.k_len, case.head_dim)
    q, k, v, dout = filled(q_shape, 1), filled(kv_shape, 1000), filled(kv_shape, 2000), filled(q_shape, 3000)
    out, lse = forward(q, k, v, masks[0], return_lse=True)
    made = BackwardInputs(dout, q, k, v, out, lse, None)

    @cache  # so that heads and kernels share what is made of a part
    def part(row: int, row_stop: int, key: int, key_stop: int) -> Mask:
        found: Mask = masks[0][row:row_stop, key:key_stop]
        return found

    def call(variant: Variant) -> Any:
        given = given_of(case, made, cupy)
        return attention_backward(*made.arrays, masks[0], out_grads=given, **variant.options)

    def judge(variant: Variant) -> tuple[float, str]:
        result = call(variant)
        if variant.deterministic and (count := different_bits(result, call(variant))):
            return 0.0, f"{count} elements differ over 2 repetitions"
        group = case.q_heads // case.kv_heads
        heads = [
            (b, kv, slice(kv * group, kv * group + group))
            for b in range(case.batch)
            for kv in range(case.kv_heads)
        ]
        found = []
        for b, kv, of in heads:
            own = slice(b, b + 1), of
            keys = slice(b, b + 1), slice(kv, kv + 1)
            one = BackwardInputs(dout[own], q[own], k[keys], v[keys], out[own], lse[own], None)
            found.append(_in_chunks(one, (result[0][own], result[1][keys], result[2][keys]), part))
        return worst(found)

    return judge


def _in_chunks(
    made: BackwardInputs, gradients: tuple[Any, Any, Any], part_of: Callable[[int, int, int, int], Mask]
) -> tuple[float, str]:
    """Judges the gradients of one key head by references of CHUNK rows and CHUNK keys, which add up.

    part_of: the mask of rows and keys, first and stop of each.
    """
    import cupy

    found = []
    dk, dv = _Sum(cupy, gradients[1].shape), _Sum(cupy, gradients[2].shape)
    q_len, k_len = made.q.shape[2], made.k.shape[2]
    for row in range(0, q_len, CHUNK):
        rows = slice(row, min(q_len, row + CHUNK))
        dout, q, out, lse = (array[:, :, rows] for array in (made.dout, made.q, made.out, made.lse))
        dq = _Sum(cupy, q.shape)
        for key in range(0, k_len, CHUNK):
            keys = slice(key, min(k_len, key + CHUNK))
            k, v = made.k[:, :, keys], made.v[:, :, keys]
            mask = part_of(rows.start, rows.stop, keys.start, keys.stop)
            part = gradient_budget.budget(dout, q, k, v, mask, out=out, lse=lse)
            for total, at, i in ((dq, slice(None), 0), (dk, keys, 1), (dv, keys, 2)):
                total.add(at, part.exact[i], part.allowed[i])
        found.append(_compared((gradients[0][:, :, rows], None, None), (dq, dk, dv)))
    found.append(_compared((None, *gradients[1:]), (dq, dk, dv)))
    return worst(found)


class _Sum:
    """A gradient (1, heads, tokens, columns) of several parts, and the sum of the errors allowed on them."""

    def __init__(self, xp: Any, shape: tuple[int, ...]) -> None:
        self.exact, self.allowed = xp.zeros(shape, np.float64), xp.zeros(shape[:3], np.float64)

    def add(self, at: slice, exact: Any, allowed: Any) -> None:
        """Add a part, at some of the tokens."""
        self.exact[:, :, at] += exact
        self.allowed[:, :, at] += allowed


def _compared(gradients: tuple[Any, Any, Any], sums: tuple[_Sum, _Sum, _Sum]) -> tuple[float, str]:
    dq, dk, dv = sums
    expected = GradientBudget((dq.exact, dk.exact, dv.exact), (dq.allowed, dk.allowed, dv.allowed))
    found = gradient_budget.compare(gradients, expected)
    return found.ratio, "" if found.ok else str(found)
