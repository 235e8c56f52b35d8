"""GPU cases that are more than one call: tensors of more than 2**31 elements, streams, addresses, dropped
masks, calls that read what the call before wrote.

Each function prepares its inputs and returns a judge: variant -> (error over budget, problem or "").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omnicupy.api import attention
from omnicupy.masks.mask import Mask
from omnicupy.reference import budget as reference_budget
from omnicupy.tools import random_arrays
from omnicupy.tools.verify import inputs
from omnicupy.tools.verify.case_kernels import Variant
from omnicupy.tools.verify.cases import BASE, Case

Compare = Callable[[Variant], tuple[float, str]]

BIG_ROWS = 1_050_001  # times 16 heads times 128 columns is just above 2**31
BIG_BYTES = 20 * 2**30
BIG = ("big-q", "big-kv")  # tags of the cases that take so much, of both passes
CHAIN = 12  # calls in a row
CHECKED = 200  # rows compared around each place of interest

_BASE = replace(BASE, group="special", head_dim=128, q_heads=4, kv_heads=2, q_len=500, k_len=500)
CASES = (
    replace(_BASE, tag="big-q", mask="full", q_len=BIG_ROWS, k_len=96, q_heads=8, kv_heads=1, batch=2),
    replace(_BASE, tag="big-kv", mask="full", q_len=40, k_len=BIG_ROWS, q_heads=16, kv_heads=16),
    replace(_BASE, tag="streams"),
    replace(_BASE, tag="addresses"),
    replace(_BASE, tag="dropped-mask"),
    replace(_BASE, tag="chained"),
)


def _verdict(found: Iterable[reference_budget.Comparison]) -> tuple[float, str]:
    """What a judge says of results: the worst ratio, and what is wrong there."""
    worst = max(found, key=lambda one: one.ratio)
    return worst.ratio, "" if worst.ok else str(worst)


def filled(shape: tuple[int, int, int, int], seed: int) -> Any:
    """Random bfloat16 of a shape, made head by head so that no temporary is as large as the tensor."""
    import cupy

    storage = cupy.empty(shape, np.uint16)
    for b in range(shape[0]):
        for h in range(shape[1]):
            storage[b, h] = random_arrays.random_bits(shape[2:], seed + 31 * b + h, "bfloat16", 1.0, cupy)
    return storage.view(random_arrays.DTYPES["bfloat16"])


def _beyond_2_31_elements(case: Case, masks: Sequence[Mask]) -> Compare:
    """One tensor beyond 2**31 elements: all of the output is written, and rows at both ends and around
    element 2**31 are right.
    """
    import cupy

    if cupy.cuda.Device().mem_info[0] < BIG_BYTES:
        return lambda variant: (0.0, f"skipped: needs {BIG_BYTES >> 30} GiB of free device memory")
    q_shape = (case.batch, case.q_heads, case.q_len, case.head_dim)
    kv_shape = (case.batch, case.kv_heads, case.k_len, case.head_dim)
    q, k, v = filled(q_shape, 1), filled(kv_shape, 1000), filled(kv_shape, 2000)
    places = [(0, 0, 0), (case.batch - 1, case.q_heads - 1, max(0, case.q_len - CHECKED))]
    if np.prod(q_shape) > 2**31:
        b, h, row, _ = (int(i) for i in np.unravel_index(2**31, q_shape))
        places.append((b, h, max(0, row - CHECKED // 2)))
    group = case.q_heads // case.kv_heads
    expected = []
    for b, h, row in places:
        stop = min(case.q_len, row + CHECKED)
        one, kv = q[b : b + 1, h : h + 1, row:stop], slice(h // group, h // group + 1)
        budget = reference_budget.budget(one, k[b : b + 1, kv], v[b : b + 1, kv], masks[0].rows(row, stop))
        expected.append((b, h, row, stop, budget))

    def judge(variant: Variant) -> tuple[float, str]:
        out = inputs.nan_output(case, cupy)
        attention(q, k, v, masks[0], out=out, config=variant.config)
        ratio, problem = _verdict(
            reference_budget.compare(out[b : b + 1, h : h + 1, row:stop], None, budget)
            for b, h, row, stop, budget in expected
        )
        if problem:
            return ratio, problem
        bits = out.view(np.uint16)
        unwritten = sum(
            int(((bits[b, h] & 0x7F80) == 0x7F80).sum())
            for b in range(case.batch)
            for h in range(case.q_heads)
        )
        return ratio, f"{unwritten} elements were not written" if unwritten else ""

    return judge


def _streams(case: Case, masks: Sequence[Mask]) -> Compare:
    """A mask uploaded behind slow work on one stream is right at once on a second one."""
    import cupy

    made = inputs.inputs_of(case, masks, cupy)
    expected = reference_budget.budget(made.q, made.k, made.v, masks[0])
    slow = cupy.empty(2**28, np.uint8)

    def judge(variant: Variant) -> tuple[float, str]:
        mask = case.masks()[0]  # a new object: nothing of it is on the device yet
        first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        cupy.cuda.Device().synchronize()
        results = []
        for stream in (first, second):
            with stream:
                if stream is first:
                    for _ in range(20):
                        slow.data.memset_async(0, slow.nbytes)
                results.append(
                    attention(made.q, made.k, made.v, mask, return_lse=True, config=variant.config)
                )
        cupy.cuda.Device().synchronize()
        return _verdict(reference_budget.compare(result[0], result[1], expected) for result in results)

    return judge


def _addresses(case: Case, masks: Sequence[Mask]) -> Compare:
    """Tensors of one shape at other addresses, same mask object: each call reads its own."""
    import cupy

    sets = [inputs.inputs_of(replace(case, seed=seed), masks, cupy) for seed in (1, 2, 3)]
    expected = [reference_budget.budget(made.q, made.k, made.v, masks[0]) for made in sets]

    def judge(variant: Variant) -> tuple[float, str]:
        results = [attention(m.q, m.k, m.v, masks[0], return_lse=True, config=variant.config) for m in sets]
        return _verdict(
            reference_budget.compare(result[0], result[1], wanted)
            for result, wanted in zip(results, expected, strict=True)
        )

    return judge


def _dropped_mask(case: Case, masks: Sequence[Mask]) -> Compare:
    """A mask dropped while the kernel has yet to read it, its memory free for others to write."""
    import cupy

    made = inputs.inputs_of(case, masks, cupy)
    expected = reference_budget.budget(made.q, made.k, made.v, masks[0])
    slow = cupy.empty(2**28, np.uint8)

    def judge(variant: Variant) -> tuple[float, str]:
        mask = case.masks()[0]
        attention(made.q, made.k, made.v, mask, config=variant.config)
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            for _ in range(20):
                slow.data.memset_async(0, slow.nbytes)
            result = attention(made.q, made.k, made.v, mask, return_lse=True, config=variant.config)
        del mask
        litter = [cupy.full(size, 0x7FFFFFFF, np.int32) for size in (64, 256, 1024, 4096, 16384)]
        cupy.cuda.Device().synchronize()
        found = reference_budget.compare(result[0], result[1], expected)
        del litter
        return _verdict([found])

    return judge


def _calls_in_a_row(case: Case, masks: Sequence[Mask]) -> Compare:
    """The result of each call is q of the next one, nothing waits in between: thread blocks that come up early
    (omnicupy/gpu/launcher.py) must not read before it is written, nor write what is still read.
    """
    import cupy

    made = inputs.inputs_of(case, masks, cupy)

    def judge(variant: Variant) -> tuple[float, str]:

        def call(q: Any, out: Any = None) -> Any:
            return attention(q, made.k, made.v, masks[0], out=out, config=variant.config)

        results = [made.q]
        for _ in range(CHAIN):
            results.append(call(results[-1]))
        first, second = inputs.nan_output(case, cupy), inputs.nan_output(case, cupy)
        call(made.q, first)
        for _ in range(CHAIN // 2):  # to and fro: each call overwrites what the one before read
            call(first, second)
            call(second, first)
        cupy.cuda.Device().synchronize()
        q = made.q
        for step, result in enumerate((*results[1:], first)):
            alone = call(q)
            cupy.cuda.Device().synchronize()
            if not bool((alone.view(np.uint16) == result.view(np.uint16)).all()):
                return 0.0, f"call {step} of the chain differs from the same call alone"
            q = alone
        wanted = reference_budget.budget(results[-1], made.k, made.v, masks[0])
        return _verdict([reference_budget.compare(first, None, wanted)])

    return judge


SPECIAL: dict[str, Callable[[Case, Sequence[Mask]], Compare]] = {
    "big-q": _beyond_2_31_elements,
    "big-kv": _beyond_2_31_elements,
    "streams": _streams,
    "addresses": _addresses,
    "dropped-mask": _dropped_mask,
    "chained": _calls_in_a_row,
}
