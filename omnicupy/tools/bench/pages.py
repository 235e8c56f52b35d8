"""What pages cost: decoding from keys and values in pages, beside the same ones in one piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omnicupy.api import attention
from omnicupy.choose import variants
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.masks.mask import Mask
from omnicupy.reference import checked_rows
from omnicupy.serving.caches import AnyKV, CachedKV, PagedKV
from omnicupy.serving.rule import cached
from omnicupy.serving_api import plan
from omnicupy.tools.bench import decoding
from omnicupy.tools.bench.measure import Session, add_row, make_inputs, reason, rounded
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.workloads.workload import Workload, by_name

SIZES = (128, 64, 32, 16, 8, 1)  # keys of a page
WHOLE = f"{OURS}:contiguous"
SYSTEMS = (WHOLE, *(f"{OURS}:page{size}" for size in SIZES))
LEAST_BATCH, LEAST_BYTES = 8, 256e6
LONG = ("decode-d128-s131072-h32-k8-b1", "decode-d128-s131072-h28-k4-b1")


def workloads() -> tuple[str, ...]:
    """The rows of the suite `decode` that pages are held to: large batches, and one long sequence."""
    return (*filter(_is_large, decoding.workloads()), *LONG)


def _is_large(name: str) -> bool:
    of = by_name(name)
    rows, keys = of.mask().shape
    size = decoding.kv_bytes(of.batch, of.kv_heads, keys, of.head_dim)
    return rows == 1 and of.batch >= LEAST_BATCH and size >= LEAST_BYTES


def measure(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """Add a row per system to the record: time of a layer's call, the planner's work done before, as once a step.

    systems: of SYSTEMS. What cannot run or is wrong gets a row that says why.
    """
    import cupy

    mask = workload.mask()
    q, k, v = make_inputs(workload, mask, session.dtype)
    judge = checked_rows.CheckedRows((q, k, v), mask)
    lengths = cupy.full(workload.batch, mask.shape[1], np.int32)
    calls: dict[str, Callable[[], Any]] = {}
    known: dict[str, dict[str, Any]] = {}
    for name in systems:
        session.say(f"{workload.name}: {name}")
        try:
            kv = _caches(name, k, v, lengths)
            step = plan(q, kv, cached())
            calls[name] = _call(q, kv, step)
            wrong = judge.error(calls[name]())
            known[name] = {
                "spec": _word(step.kernel),
                "error": wrong,
                "correct": wrong <= checked_rows.TOLERANCE,
            }
        except Exception as error:  # what cannot run is its row's result
            calls.pop(name, None)
            add_row(session, workload, mask, name, {"problem": reason(error)})
    times = session.clock.interleaved(calls, session.samples)
    whole = times[WHOLE].median_ms if WHOLE in times else None
    for name in calls:
        figures = known[name] | _figures(session, workload, mask, times[name], whole)
        rate = f"{figures.get('copy_share', 0):.2f} of the copy"
        add_row(session, workload, mask, name, figures, rate)
    del calls
    cupy.get_default_memory_pool().free_all_blocks()


def _call(q: Any, kv: AnyKV, step: Any) -> Callable[[], Any]:
    return lambda: attention(q, kv, mask=step)


def _caches(name: str, k: Any, v: Any, lengths: Any) -> AnyKV:
    """Keys and values as a system has them. Raises ValueError for another name."""
    if name not in SYSTEMS:
        raise ValueError(f"{name}: the suite has {', '.join(SYSTEMS)}")
    if name == WHOLE:
        return CachedKV(k, v, lengths)
    return in_pages(k, v, lengths, int(name.removeprefix(f"{OURS}:page")))


def in_pages(k: Any, v: Any, lengths: Any, page_size: int) -> PagedKV:
    """The same keys in pages in random order: pools (pages, page_size, kv_heads, head_dim).

    Raises ValueError where pages do not divide the keys of a sequence.
    """
    import cupy

    batch, heads, keys, head_dim = k.shape
    if keys % page_size:
        raise ValueError(f"pages of {page_size} tokens do not divide {keys} keys")
    most = keys // page_size
    order = np.random.default_rng(0).permutation(batch * most).astype(np.int32)
    taken = cupy.asarray(np.argsort(order))  # page p holds the keys of place taken[p]

    def pool(array: Any) -> Any:
        bits = array.view(np.uint16).transpose(0, 2, 1, 3)  # libraries take no bfloat16
        pages = cupy.ascontiguousarray(bits).reshape(batch * most, page_size, heads, head_dim)[taken]
        return pages.view(array.dtype)

    table = cupy.asarray(order.reshape(batch, most))
    return PagedKV(pool(k), pool(v), table, lengths)


def _word(spec: Any) -> str:
    """The kernel, and the keys that it copies at once; "" on the CPU."""
    if spec is None:
        return ""
    return variants.word(spec) + (f"-page{spec.page}" if isinstance(spec, PagedSpec) else "")


def _figures(
    session: Session, workload: Workload, mask: Mask, took: Any, whole: float | None
) -> dict[str, Any]:
    found = {"ms": took.median_ms, "p10_ms": took.p10_ms, "p90_ms": took.p90_ms, "samples": took.samples}
    found["tflops"] = workload.flops(mask.pairs) / took.median_ms / 1e9
    copy = session.record.content.get("copy_tbps", 0.0)
    found |= decoding.copy_share(workload, mask.shape, took.median_ms, copy)
    if whole is not None:
        found["figures"] = rounded({"time over contiguous": took.median_ms / whole})
    return found
