"""Backward cases that are more than one call: tensors of more than 2**31 elements, streams, addresses, dropped masks,
gradients of gradients, captured graphs, memory that holds no zeros.

Each function prepares its inputs and returns a judge: variant -> (error over budget, problem or ""). forward: makes out
and lse, as attention does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omnicupy.api import attention_backward
from omnicupy.call.arrays import module_of, widen
from omnicupy.masks.mask import Mask
from omnicupy.tools.verify.backward_big import beyond_2_31_elements, worst
from omnicupy.tools.verify.backward_cases import BackwardCase, backward_of
from omnicupy.tools.verify.backward_inputs import bits_of, given_of
from omnicupy.tools.verify.backward_judges import Forward, GradientJudge, different_bits
from omnicupy.tools.verify.case_kernels import Variant
from omnicupy.tools.verify.cases import BASE
from omnicupy.tools.verify.special_cases import BIG_ROWS, CHAIN

Compare = Callable[[Variant], tuple[float, str]]

SLOW_BYTES = 2**28
NEAR = 0.05  # relative difference of gradients whose sums had other orders, a chain of calls later

_SHAPE = replace(BASE, group="special", head_dim=128, q_heads=4, kv_heads=2, q_len=500, k_len=500)
_BASE = replace(backward_of(_SHAPE, 0), dlse=True)
_SPLIT = replace(_BASE, mask="full", q_len=5000, k_len=200, q_heads=4, kv_heads=1, given=True)
_BIG = replace(_BASE, mask="full", dlse=False, given=True)
CASES = (
    replace(_BIG, tag="big-q", q_len=BIG_ROWS, k_len=96, q_heads=8, kv_heads=1, batch=2),
    replace(_BIG, tag="big-kv", q_len=40, k_len=BIG_ROWS, q_heads=16, kv_heads=16),
    replace(_BASE, tag="streams"),
    replace(_BASE, tag="addresses"),
    replace(_BASE, tag="dropped-mask"),
    replace(_BASE, tag="chained", dlse=False),
    replace(_BASE, tag="graph", given=True),
    replace(_BASE, tag="graph", given=True, head_dim=64, mask="holes"),
    *(replace(_SPLIT, tag=tag) for tag in ("streams", "graph", "no-zeros")),
    replace(_SPLIT, tag="chained", dlse=False, given=False),
    replace(_BASE, tag="no-zeros", given=True),
    replace(_BASE, tag="no-zeros", given=True, head_dim=320, mask="holes", q_len=333),
)


def _judge_of(case: BackwardCase, masks: Sequence[Mask], forward: Forward) -> GradientJudge:
    import cupy

    return GradientJudge(case, masks, cupy, call=attention_backward, forward=forward)


def _busy(stream: Any) -> None:
    """Work that keeps a stream busy for some milliseconds."""
    import cupy

    with stream:
        slow = cupy.empty(SLOW_BYTES, np.uint8)
        for _ in range(20):
            slow.data.memset_async(0, slow.nbytes)


def _differ(these: Sequence[Any], those: Sequence[Any], variant: Variant) -> bool:
    """True where the gradients of two calls are not the same bits, or where sums may have any order not near."""
    if variant.deterministic:
        return different_bits(these, those) > 0
    xp = module_of(those[0])
    pairs = ((widen(a, np.float64, xp), widen(b, np.float64, xp)) for a, b in zip(these, those, strict=True))
    return any(float(((a - b) ** 2).sum()) > NEAR**2 * float((b**2).sum()) for a, b in pairs)


def _streams(case: BackwardCase, masks: Sequence[Mask], forward: Forward) -> Compare:
    """A mask uploaded behind slow work on one stream is right at once on a second one."""
    import cupy

    of_case = _judge_of(case, masks, forward)

    def judge(variant: Variant) -> tuple[float, str]:
        mask = case.masks()[0]  # a new object: nothing of it is on the device yet
        first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        cupy.cuda.Device().synchronize()
        _busy(first)
        results = []
        for stream in (first, second):
            with stream:
                results.append(of_case.gradients(variant.options, mask))
        cupy.cuda.Device().synchronize()
        return worst([of_case.judge(result) for result in results])

    return judge


def _addresses(case: BackwardCase, masks: Sequence[Mask], forward: Forward) -> Compare:
    """Tensors of one shape at other addresses, same mask object: each call reads its own."""
    sets = [_judge_of(replace(case, seed=seed), masks, forward) for seed in (1, 2, 3)]

    def judge(variant: Variant) -> tuple[float, str]:
        results = [one.gradients(variant.options) for one in sets]
        return worst([one.judge(result) for one, result in zip(sets, results, strict=True)])

    return judge


def _dropped_mask(case: BackwardCase, masks: Sequence[Mask], forward: Forward) -> Compare:
    """A mask dropped while the kernels have yet to read it, its memory free for others to write."""
    import cupy

    of_case = _judge_of(case, masks, forward)

    def judge(variant: Variant) -> tuple[float, str]:
        mask = case.masks()[0]
        of_case.gradients(variant.options, mask)
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        _busy(stream)
        with stream:
            result = of_case.gradients(variant.options, mask)
        del mask
        litter = [cupy.full(size, 0x7FFFFFFF, np.int32) for size in (64, 256, 1024, 4096, 16384)]
        cupy.cuda.Device().synchronize()
        found = of_case.judge(result)
        del litter
        return found

    return judge


def _chained(case: BackwardCase, masks: Sequence[Mask], forward: Forward) -> Compare:
    """The dq of each call is the dout of the next one, nothing waits in between: no kernel of a call may read or write
    before what it needs is there.
    """
    import cupy

    of_case = _judge_of(case, masks, forward)
    _, q, k, v, out, lse = of_case.made.arrays

    def judge(variant: Variant) -> tuple[float, str]:

        def call(dout: Any, dq: Any = None) -> Any:
            given = None if dq is None else (dq, None, None)
            return attention_backward(dout, q, k, v, out, lse, masks[0], out_grads=given, **variant.options)

        first = of_case.gradients(variant.options)
        results = [call(of_case.made.dout)]
        for _ in range(CHAIN):
            results.append(call(results[-1][0]))
        here, there = cupy.empty_like(first[0]), cupy.empty_like(first[0])
        call(of_case.made.dout, here)
        for _ in range(CHAIN // 2):  # to and fro: each call overwrites what the one before read
            call(here, there)
            call(there, here)
        cupy.cuda.Device().synchronize()
        dout = of_case.made.dout
        for step, result in enumerate(results):
            alone = call(dout)
            cupy.cuda.Device().synchronize()
            if _differ(result, alone, variant):
                return 0.0, f"call {step} of the chain differs from the same call alone"
            dout = alone[0]
        if _differ((here,), results[-1][:1], variant):
            return 0.0, "the calls to and fro differ from the same calls into new arrays"
        return of_case.judge(first)

    return judge


def _graph(case: BackwardCase, masks: Sequence[Mask], forward: Forward) -> Compare:
    """Forward and backward captured into one graph, which is replayed on other inputs in the same memory."""
    import cupy

    sets = [_judge_of(replace(case, seed=seed), masks, forward) for seed in (1, 2, 3)]

    def judge(variant: Variant) -> tuple[float, str]:
        made = sets[0].made
        dout, q, k, v, out, _ = buffers = [array.copy() for array in made.arrays]
        dlse, grads = made.dlse.copy(), given_of(case, made, cupy)

        def both() -> Any:
            _, lse = forward(q, k, v, masks[0], return_lse=True, out=out)
            attention_backward(
                dout, q, k, v, out, lse, masks[0], dlse=dlse, out_grads=grads, **variant.options
            )
            return lse

        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            both()  # makes all that may not be made while the stream is captured
            stream.synchronize()
            stream.begin_capture()
            kept = both()
            graph = stream.end_capture()
        found = []
        for one in (*sets, sets[0]):
            for target, array in zip(
                (*buffers[:4], dlse), (*one.made.arrays[:4], one.made.dlse), strict=True
            ):
                bits_of(target)[...] = bits_of(array)
            for array in (out, *(grads or ())):
                bits_of(array)[...] = 0x7FFF
            cupy.cuda.Device().synchronize()
            graph.launch(stream)
            stream.synchronize()
            found.append(one.judge(grads))
        del kept
        return worst(found)

    return judge


def _no_zeros(case: BackwardCase, masks: Sequence[Mask], forward: Forward) -> Compare:
    """All memory that a call takes, on a new stream and for a new mask, holds bytes of 0xFF."""
    import cupy

    of_case = _judge_of(case, masks, forward)

    def full_of_ones(size: int) -> Any:
        memory = cupy.get_default_memory_pool().malloc(size)
        memory.memset(0xFF, size)
        cupy.cuda.runtime.deviceSynchronize()
        return memory

    def judge(variant: Variant) -> tuple[float, str]:
        found = []
        for _ in range(2):
            stream = cupy.cuda.Stream(non_blocking=True)
            cupy.cuda.Device().synchronize()
            with cupy.cuda.using_allocator(full_of_ones), stream:
                result = of_case.gradients(variant.options, case.masks()[0])
            stream.synchronize()
            found.append(of_case.judge(result))
        return worst(found)

    return judge


SPECIAL: dict[str, Callable[[BackwardCase, Sequence[Mask], Forward], Compare]] = {
    "big-q": beyond_2_31_elements,
    "big-kv": beyond_2_31_elements,
    "streams": _streams,
    "addresses": _addresses,
    "dropped-mask": _dropped_mask,
    "chained": _chained,
    "graph": _graph,
    "no-zeros": _no_zeros,
}
