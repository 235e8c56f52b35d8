"""A module that looks like CuPy and computes with NumPy, so that GPU-side code runs where there is no GPU.

It has what verification and benchmarks use, no more. Attention itself goes to the CPU engine.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from omnicupy import api
from omnicupy.serving.caches import CACHES, AnyKV, CachedKV, PagedKV
from omnicupy.tools import environment
from omnicupy.tools.bench import measure
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.workloads.workload import Workload


class Array(np.ndarray):
    """A NumPy array with the asynchronous memset of CuPy's memory pointers."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(memset_async=lambda value, size: None, ptr=0)


class Event:
    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass


class Graph:
    """Calls made while a stream was captured, and made again at each launch."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def launch(self, stream: Stream) -> None:
        for call in self.calls:
            call()


class Stream:
    captured: Graph | None = None  # of all streams: one is captured at a time
    null: Stream

    def __init__(self, non_blocking: bool = False) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def begin_capture(self) -> None:
        Stream.captured = Graph()

    def end_capture(self) -> Graph | None:
        captured, Stream.captured = Stream.captured, None
        return captured

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


Stream.null = Stream()


class MemoryHook:
    """Knows of no allocation: NumPy has no pool."""

    def __enter__(self) -> MemoryHook:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class CUDARuntimeError(RuntimeError):
    pass


class Device:
    id = 0
    compute_capability = "90"
    mem_info = (100 << 30, 141 << 30)
    broken = False

    def synchronize(self) -> None:
        if Device.broken:
            raise CUDARuntimeError("illegal memory access")


PROPERTIES = {"name": b"Fake H100", "multiProcessorCount": 132, "totalGlobalMem": 1 << 36}


def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put the module in CuPy's place, on a machine that says it has an H100."""
    fake = ModuleType("cupy")
    for name in (
        "array",
        "asarray",
        "ascontiguousarray",
        "broadcast_to",
        "concatenate",
        "zeros",
        "full",
        "flatnonzero",
        "matmul",
        "copyto",
        "invert",
        "from_dlpack",
    ):
        setattr(fake, name, getattr(np, name))
    fake.uint8 = np.uint8  # type: ignore[attr-defined]
    fake.empty = lambda shape, dtype: np.empty(
        min(shape, 1024) if isinstance(shape, int) else shape, dtype
    ).view(Array)  # type: ignore[attr-defined]
    fake.empty_like = np.empty_like  # type: ignore[attr-defined]
    fake.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None, free_bytes=lambda: 0)  # type: ignore[attr-defined]
    fake.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device,
        Event=Event,
        MemoryHook=MemoryHook,
        Stream=Stream,
        using_allocator=lambda allocator: nullcontext(),
        get_elapsed_time=lambda start, stop: 1e3 * (stop.at - start.at),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDevice=lambda: 0,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda device: PROPERTIES,
            runtimeGetVersion=lambda: 12090,
            driverGetVersion=lambda: 13000,
        ),
    )
    device = ModuleType("omnicupy.gpu.device")
    device.device_info = lambda device: SimpleNamespace(major=9, minor=0, sm_count=132, l2_bytes=50 << 20)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "omnicupy.gpu.device", device)
    monkeypatch.setattr(Device, "broken", False)
    monkeypatch.setattr(Stream, "captured", None)
    monkeypatch.setattr(environment, "query_smi", lambda fields: "")
    return fake


def serve(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Put the CPU engine in the place of what modules call."""
    for module in modules:
        for function in (attention, attention_backward, plan):
            if hasattr(module, function.__name__):
                monkeypatch.setattr(module, function.__name__, function)


def tiny_bench(monkeypatch: pytest.MonkeyPatch, workload: Workload, *modules: ModuleType) -> ModuleType:
    """The module in CuPy's place, without torch, for a `bench` whose every workload is this one. modules: those that
    call, as `serve` takes them.
    """
    fake = install(monkeypatch)
    serve(monkeypatch, measure, *modules)
    monkeypatch.setattr(measure, "gemm_tflops", lambda clock: ("fake", 778.0))
    monkeypatch.setattr("omnicupy.tools.bench.speeds.COPY_BYTES", 1000)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(bench_run, "by_name", lambda name: workload)
    return fake


def attention(q: Any, k: Any, v: Any = None, mask: Any = None, *, config: Any = None, **options: Any) -> Any:
    """The CPU engine in a kernel's place, which takes plain arrays alone."""
    if options.get("out") is not None:
        options["out"] = options["out"].view(np.ndarray)
    if isinstance(k, CACHES):
        return _called(api.attention, np.asarray(q), _plain(k), v, mask, **options)
    return _called(api.attention, *(np.asarray(x) for x in (q, k, v)), mask, **options)


def plan(q: Any, kv: AnyKV, mask: Any, *, config: Any = None, **options: Any) -> Any:
    """The CPU engine's step."""
    return api.plan(np.asarray(q), _plain(kv), mask, **options)


def _plain(kv: AnyKV) -> AnyKV:
    scales = {"k_scale": kv.k_scale, "v_scale": kv.v_scale}
    if isinstance(kv, PagedKV):
        arrays = (kv.k_pages, kv.v_pages, kv.page_table, kv.lengths)
        return PagedKV(*(np.asarray(one) for one in arrays), **scales)
    return CachedKV(*(np.asarray(one) for one in (kv.k, kv.v, kv.lengths)), **scales)


def attention_backward(*arrays: Any, config: Any = None, **options: Any) -> Any:
    """The CPU engine's gradients, as above. The last of `arrays` may be the mask."""
    plain = (np.asarray(one) if isinstance(one, np.ndarray) else one for one in arrays)
    return _called(api.attention_backward, *plain, **options)


def _called(function: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a call, which a graph makes again into the same arrays."""
    found = function(*arguments, **options)
    if Stream.captured is not None:

        def again() -> None:
            for target, made in zip(found, function(*arguments, **options), strict=True):
                target[...] = made

        Stream.captured.calls.append(again)
    return found
