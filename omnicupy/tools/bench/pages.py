"""What pages and e4m3 cost: attention to caches of them, beside the same keys and values in one piece of 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
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
E4M3 = f"{OURS}:e4m3"
E4M3_SYSTEMS = (WHOLE, E4M3, f"{E4M3}-page16")
E4M3_SCALE = 0.0134  # of keys and of values: what brings random normal numbers near the ends of e4m3
OVER = "time over contiguous"  # of figures
LEAST_BATCH, LEAST_BYTES = 8, 256e6
LONG = ("decode-d128-s131072-h32-k8-b1", "decode-d128-s131072-h28-k4-b1")
# Rows behind a history, a whole prompt, and several short ones.
PROMPTS = (
    "decode-d128-s8192-q2048-h32-k8-b1",
    "decode-d128-s8192-q8192-h32-k8-b1",
    "decode-d128-s2048-q2048-h28-k4-b8",
)
OF_E4M3 = (
    *("decode-d128-s4096-h32-k8-b64", "decode-d128-s8192-h28-k4-b16", LONG[0], "decode-d128-s8192-h28-k4-b1"),
    *("decode-d128-s8192-h32-k8-b1", "decode-d128-s2048-h32-k8-b128", "decode-d64-s4096-h16-k16-b64"),
)


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

    systems: of SYSTEMS or of E4M3_SYSTEMS. What cannot run or is wrong gets a row that says why.
    """
    import cupy

    mask = workload.mask()
    q, k, v = make_inputs(workload, mask, session.dtype)
    codes = None
    if any(name.startswith(E4M3) for name in systems):
        (of_k, k), (of_v, v) = in_e4m3(k), in_e4m3(v)
        codes = of_k, of_v
    judge = checked_rows.CheckedRows((q, k, v), mask)
    lengths = cupy.full(workload.batch, mask.shape[1], np.int32)
    calls: dict[str, Callable[[], Any]] = {}
    known: dict[str, dict[str, Any]] = {}
    for name in systems:
        session.say(f"{workload.name}: {name}")
        try:
            kv = _caches(name, (k, v), codes, lengths)
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
        if name.startswith(E4M3) and "copy_share" in figures:
            figures["copy_share"] /= decoding.ELEMENT_BYTES  # of its own bytes
        rate = f"{figures.get('copy_share', 0):.2f} of the copy"
        add_row(session, workload, mask, name, figures, rate)
    del calls
    cupy.get_default_memory_pool().free_all_blocks()


def _call(q: Any, kv: AnyKV, step: Any) -> Callable[[], Any]:
    return lambda: attention(q, kv, mask=step)


def _caches(name: str, numbers: tuple[Any, Any], codes: tuple[Any, Any] | None, lengths: Any) -> AnyKV:
    """Keys and values as a system has them. numbers: of 16 bits.  codes: of e4m3, where they are made.

    Raises ValueError for another name.
    """
    known = SYSTEMS if codes is None else E4M3_SYSTEMS
    if name not in known:
        raise ValueError(f"{name}: the suite has {', '.join(known)}")
    scales: dict[str, Any] = {}
    if codes is not None and name != WHOLE:
        numbers, scales = codes, {"k_scale": E4M3_SCALE, "v_scale": E4M3_SCALE}
    _, of_pages, size = name.rpartition("page")
    return (
        in_pages(*numbers, lengths, int(size), **scales)
        if of_pages
        else CachedKV(*numbers, lengths, **scales)
    )


def in_e4m3(array: Any) -> tuple[Any, Any]:
    """Of an array of 16 bits the bytes of e4m3 under E4M3_SCALE, and the 16-bit numbers that they stand for."""
    import cupy

    every = np.arange(1 << 16, dtype=np.uint16).view(array.dtype).astype(np.float32)
    with np.errstate(all="ignore"):
        codes = np.clip(every / np.float32(E4M3_SCALE), -448, 448).astype(ml_dtypes.float8_e4m3fn)
        numbers = (codes.astype(np.float32) * np.float32(E4M3_SCALE)).astype(array.dtype)
    bits = array.view(np.uint16)
    found = cupy.asarray(numbers.view(np.uint16))[bits]
    return cupy.asarray(codes.view(np.uint8))[bits], found.view(array.dtype)


def in_pages(k: Any, v: Any, lengths: Any, page_size: int, **scales: Any) -> PagedKV:
    """The same keys in pages in random order: pools (pages, page_size, kv_heads, head_dim). scales: as of PagedKV.

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
        kind = np.uint16 if array.dtype.itemsize == 2 else np.uint8  # libraries take no bfloat16
        bits = array.view(kind).transpose(0, 2, 1, 3)
        pages = cupy.ascontiguousarray(bits).reshape(batch * most, page_size, heads, head_dim)[taken]
        return pages.view(array.dtype)

    table = cupy.asarray(order.reshape(batch, most))
    return PagedKV(pool(k), pool(v), table, lengths, **scales)


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
        found["figures"] = rounded({OVER: took.median_ms / whole})
    return found
