"""Captured steps of decoding: layers with a cache each, by our library and by others, and as many copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.api import attention, prepare
from omnicupy.choose import pick, variants
from omnicupy.serving.caches import CachedKV
from omnicupy.serving.rule import cached
from omnicupy.serving_api import plan
from omnicupy.tools.bench import captured, peers, timing, torch_inputs
from omnicupy.tools.bench.decoding import ELEMENT_BYTES, kv_bytes
from omnicupy.tools.bench.layer_inputs import Layer, LayerJudge, e4m3_cache, make_layers
from omnicupy.tools.bench.measure import Session
from omnicupy.tools.bench.timing import Call, Timing
from omnicupy.tools.workloads.workload import Workload

BUDGET_S = 0.6  # most time that the samples of one step may take
NAN_BITS = 0xFFFF  # of both 16-bit dtypes


@dataclass
class Step:
    """A captured step of one system. outs: the layers' results, which each replay writes.  known: of its row.

    judges: what the results are held against, None for the stack's.
    """

    replay: Call
    outs: list[Any]
    known: dict[str, Any]
    cache_bytes: int
    judges: Sequence[LayerJudge] | None = None


class Stack:
    """The layers of a workload, and what their results are held against. cache_bytes: of a layer's K and V."""

    def __init__(self, session: Session, workload: Workload, layers_of: Callable[[int], int]) -> None:
        self.session, self.workload, self.mask = session, workload, workload.mask()
        keys = self.mask.shape[1]
        self.cache_bytes = kv_bytes(workload.batch, workload.kv_heads, keys, workload.head_dim)
        self.layers = make_layers(workload, self.mask, session.dtype, layers_of(self.cache_bytes))
        self._judges = [LayerJudge(layer, self.mask) for layer in self.layers]

    def error(self, step: Step) -> float:
        """The worst layer's error after one replay."""
        import cupy

        step.replay()
        cupy.cuda.Device().synchronize()
        judges = step.judges or self._judges
        return max(judge.error(out) for judge, out in zip(judges, step.outs, strict=True))


def planned(stack: Stack) -> Step:
    """Keys in one piece, by a mask that the host has prepared."""
    mask, layers = stack.mask, stack.layers
    outs = _poisoned(layers)
    prepare(*layers[0], mask, out=outs[0])

    def call() -> None:
        for layer, out in zip(layers, outs, strict=True):
            attention(*layer, mask, out=out)

    problem = stack.workload.problem(mask, stack.session.dtype)
    spec = pick.pick(stack.session.arch, problem, (mask,), stack.session.sm_count)
    return Step(graph_of(call), outs, {"kernel": variants.word(spec)}, stack.cache_bytes)


def by_lengths(stack: Stack) -> Step:
    """Lengths on the device."""
    lengths = _lengths(stack)
    caches = [CachedKV(layer.k, layer.v, lengths) for layer in stack.layers]
    return _cached(stack, caches, stack.cache_bytes)


def of_e4m3(stack: Stack) -> Step:
    """Lengths on the device, caches of e4m3, held against the numbers that they mean."""
    lengths = _lengths(stack)
    found = [e4m3_cache(layer, i) for i, layer in enumerate(stack.layers)]
    caches = [CachedKV(one.k, one.v, lengths, k_scale=one.k_scale, v_scale=one.v_scale) for one in found]
    step = _cached(stack, caches, stack.cache_bytes // ELEMENT_BYTES)
    step.judges = [
        LayerJudge(Layer(layer.q, *one.meant(layer.q.dtype)), stack.mask)
        for layer, one in zip(stack.layers, found, strict=True)
    ]
    return step


def _lengths(stack: Stack) -> Any:
    import cupy

    return cupy.full(stack.workload.batch, stack.mask.shape[1], np.int32)


def _cached(stack: Stack, caches: Sequence[CachedKV], cache_bytes: int) -> Step:
    """A plan of the lengths first, as once a step, then the layers."""
    queries = [layer.q for layer in stack.layers]
    outs = _poisoned(stack.layers)
    known: dict[str, Any] = {}

    def call() -> Any:
        step = plan(queries[0], caches[0], cached())
        for q, kv, out in zip(queries, caches, outs, strict=True):
            attention(q, kv, mask=step, out=out)
        if step.kernel:
            known["kernel"] = variants.word(step.kernel)
        return step

    return Step(graph_of(call), outs, known, cache_bytes)


def _poisoned(layers: Sequence[Layer]) -> list[Any]:
    """Room for the layers' results, NaN all over."""
    import cupy

    outs = [cupy.empty_like(layer.q) for layer in layers]
    for out in outs:
        out.view(np.uint16)[...] = NAN_BITS
    return outs


def theirs(stack: Stack, name: str) -> Step:
    """A rival's step: it is prepared once, for the first layer, and takes each layer's tensors in turn."""
    shared = torch_inputs.Shared(stack.workload, stack.mask, stack.layers[0])
    peer = peers.prepare(name, shared, stack.session.limit_s)
    tensors = [[torch_inputs.as_torch(array) for array in layer] for layer in stack.layers]
    results: list[Any] = []

    def call() -> None:
        results.clear()
        for q, k, v in tensors:
            shared.q, shared.k, shared.v = q, k, v
            results.append(peer.call())

    graph = captured.torch_graph(call)
    for result in results:
        result.fill_(float("nan"))
    graph.replay()  # ahead of copies that as_cupy may make
    known = {"first_call_s": round(peer.first_call_s, 3)}
    return Step(graph.replay, [torch_inputs.as_cupy(one) for one in results], known, stack.cache_bytes)


def copies(stack: Stack, cache_bytes: int) -> dict[str, Call]:
    """Captured copies that read and write so many bytes for each layer: the device's own, and those of a kernel.

    Raises what CuPy raises.
    """
    import cupy

    count = cache_bytes // 2 // ELEMENT_BYTES
    sources = [layer.k.view(np.uint16).reshape(-1)[:count].view(np.uint64) for layer in stack.layers]
    targets = [cupy.empty_like(source) for source in sources]

    def by_device() -> None:
        for source, target in zip(sources, targets, strict=True):
            cupy.copyto(target, source)

    def by_kernel() -> None:
        for source, target in zip(sources, targets, strict=True):
            cupy.invert(source, out=target)

    return {"a copy": graph_of(by_device), "a copying kernel": graph_of(by_kernel)}


def graph_of(call: Callable[[], Any]) -> Call:
    """A call captured on a stream of its own, after one that loads its kernels; what it returns lives as long."""
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        call()
        stream.synchronize()
        stream.begin_capture()
        try:
            kept = call()
        finally:  # else every later call would find the stream under capture
            graph = stream.end_capture()
    default = cupy.cuda.Stream.null

    def replay(kept: Any = kept) -> None:
        graph.launch(default)

    return replay


def in_turns(replays: Mapping[str, Call], samples: int) -> dict[str, Timing]:
    """Time of each replay, in turns, launched ahead of the device. A turn begins with one that is not timed: it carries
    out what the copies of the turn before have left in L2.
    """
    import cupy

    counts = {}
    for name, replay in replays.items():
        _events(replay)
        took = _ms(_events(replay))
        counts[name] = max(3, min(samples, int(1000 * BUDGET_S / max(took, 1e-3))))
    first = next(iter(replays.values()))
    events: dict[str, list[Any]] = {name: [] for name in replays}
    for turn in range(max(counts.values())):
        first()
        for name, replay in replays.items():
            if turn < counts[name]:
                events[name].append(_events(replay))
    cupy.cuda.Device().synchronize()
    return {name: timing.summarize([_ms(pair) for pair in of]) for name, of in events.items()}


def _events(replay: Call) -> tuple[Any, Any]:
    """The events around a replay."""
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    replay()
    stop.record()
    return start, stop


def _ms(events: tuple[Any, Any]) -> float:
    import cupy

    events[1].synchronize()
    return float(cupy.cuda.get_elapsed_time(*events))
