"""Captured graphs on a device: beside eager work, after what they read was dropped, and their memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from busy_gpu import spinner

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.gpu import stream_memory
from omnicupy.gpu.workspace import COUNTER_BYTES
from omnicupy.jit.spec import AttnSpec

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")

ROUNDS = 300
_SM90: dict[str, Any] = {"arch": "sm_90a", "kernel": "sm90", "stages": 2, "warps": 12}
SPEC = AttnSpec(dtype="float16", head_dim=128, br=128, bc=128, **_SM90)


@pytest.fixture(autouse=True)
def _all_done() -> Iterator[None]:
    yield
    cp.cuda.Device().synchronize()


@pytest.fixture
def hopper() -> int:
    """The number of multiprocessors: the kernel with work counters is Hopper's."""
    if cp.cuda.Device().compute_capability != "90":
        pytest.skip("work counters are used on compute capability 9.0 alone")
    return int(cp.cuda.Device().attributes["MultiProcessorCount"])


@pytest.fixture(scope="module")
def spin() -> Callable[[], None]:
    return spinner(cp)


def _stream() -> Any:
    return cp.cuda.Stream(non_blocking=True)


def _inputs(heads: int, q_len: int, k_len: int, kv_heads: int = 1, seed: int = 0) -> list[Any]:
    cp.random.seed(seed)
    shapes = ((1, heads, q_len, 128), (1, kv_heads, k_len, 128), (1, kv_heads, k_len, 128))
    made = [cp.random.standard_normal(shape, np.float32).astype(np.float16) for shape in shapes]
    cp.cuda.Device().synchronize()  # streams of the tests do not wait for the one that made them
    return made


def _tail_of_half_a_wave(sms: int) -> tuple[int, int, int]:
    """heads, q_len, k_len with equal work items, four and a half for each multiprocessor, and rows that are not split.

    While one half of the multiprocessors has ended, the other half works on its last item and will ask the counter once
    more: there the blocks of another launch come up and ask their counter.
    """
    return 4 * sms + sms // 2, 128, 8192


def _split(sms: int) -> tuple[int, int, int]:
    """heads, q_len, k_len with few rows and many keys: every row is split over several thread blocks."""
    return 4, 256, 1 << 17


def _captured(
    stream: Any, arrays: list[Any], out: Any, mask: Any = None, mode: Any = None, **options: Any
) -> Any:
    with stream:
        stream.begin_capture(mode)
        try:
            oc.attention(*arrays, mask, out=out, **options)
        finally:  # else every later call would find the stream under capture
            graph = stream.end_capture()
        return graph


class _SideBySide:
    """A graph captured on one stream, replayed on another beside eager calls on the first one, on other inputs."""

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        self.home, self.other, self.graph = _stream(), _stream(), None
        self.arrays = [_inputs(*sizes, seed=seed) for seed in range(2)]
        self.outs = [cp.empty_like(q) for q, _, _ in self.arrays]
        with self.home:
            self.wanted = [oc.attention(*arrays, config=SPEC).copy() for arrays in self.arrays]
            oc.prepare(*self.arrays[0], out=self.outs[0], config=SPEC)
        cp.cuda.Device().synchronize()

    def capture(self) -> None:
        self.graph = _captured(self.home, self.arrays[0], self.outs[0], config=SPEC)

    def bad_rounds(self, rounds: int = ROUNDS) -> tuple[int, int]:
        """Of the graph's and of the eager outputs, how many were not what they should be."""
        bad = [0, 0]
        for _ in range(rounds):
            for out in self.outs:
                out.fill(np.nan)
            cp.cuda.Device().synchronize()
            if self.graph is not None:
                self.graph.launch(self.other)
            with self.home:
                oc.attention(*self.arrays[1], out=self.outs[1], config=SPEC)
            cp.cuda.Device().synchronize()
            for i in range(2):  # bits: NaN does not equal itself
                same = (self.outs[i].view(np.uint16) == self.wanted[i].view(np.uint16)).all()
                bad[i] += not bool(same)
        return bad[0], bad[1]


@pytest.mark.parametrize("sizes", [_tail_of_half_a_wave, _split])
def test_a_graph_beside_eager_work_leaves_no_row_unwritten(hopper: int, sizes: Any) -> None:
    work = _SideBySide(sizes(hopper))
    work.capture()
    assert work.bad_rounds() == (0, 0)


def test_a_launch_whose_counter_another_one_moved_leaves_rows_unwritten(hopper: int) -> None:
    """The test above can fail. Left to themselves, graph and eager work with common counters did not in 300 rounds."""
    work = _SideBySide(_tail_of_half_a_wave(hopper))
    memory = stream_memory.memory_of(int(cp.cuda.Device().id), work.home)
    taken = cp.cuda.MemoryPointer(cp.cuda.UnownedMemory(memory.counters, COUNTER_BYTES, None), 0)
    cp.ndarray((1,), np.int32, taken)[...] = hopper  # items that nobody works on
    work.outs[1].fill(np.nan)
    cp.cuda.Device().synchronize()
    with work.home:
        oc.attention(*work.arrays[1], out=work.outs[1], config=SPEC)
        assert bool(cp.isnan(work.outs[1]).any())
    assert work.bad_rounds(1)[1] == 0  # the launch left the counter at zero


def test_two_graphs_of_one_stream_may_run_side_by_side(hopper: int) -> None:
    work = _SideBySide(_tail_of_half_a_wave(hopper))
    with work.home:
        oc.prepare(*work.arrays[1], out=work.outs[1], config=SPEC)
    graphs = [
        _captured(work.home, arrays, out, config=SPEC)
        for arrays, out in zip(work.arrays, work.outs, strict=True)
    ]
    for _ in range(ROUNDS):
        for out in work.outs:
            out.fill(np.nan)
        cp.cuda.Device().synchronize()
        for graph, stream in zip(graphs, (work.home, work.other), strict=True):
            graph.launch(stream)
        cp.cuda.Device().synchronize()
        for out, wanted in zip(work.outs, work.wanted, strict=True):
            assert bool((out.view(np.uint16) == wanted.view(np.uint16)).all())


def _replays_right(graph: Any, out: Any, wanted: Any, home: Any) -> None:
    """Also when all memory that was freed of the stream `home` holds something else."""
    gc.collect()
    cp.cuda.Device().synchronize()
    with home:
        taken = [cp.full(1 << bits, 0x7F7F7F7F, np.int32) for bits in range(7, 15) for _ in range(300)]
    for _ in range(20):
        out.fill(np.nan)
        cp.cuda.Device().synchronize()
        graph.launch(_stream())
        cp.cuda.Device().synchronize()
        assert cp.asnumpy(out).tobytes() == cp.asnumpy(wanted).tobytes()
    del taken


def test_a_graph_without_a_mask_replays_after_many_other_shapes() -> None:
    arrays = _inputs(8, 1024, 1024, 8)
    stream, out = _stream(), cp.empty_like(arrays[0])
    with stream:
        wanted = oc.attention(*arrays, out=out).copy()
    cp.cuda.Device().synchronize()
    graph = _captured(stream, arrays, out)
    with stream:
        for tokens in range(1, 301):
            oc.attention(*[x[:, :1, :tokens] for x in arrays])
    check_masks._full.cache_clear()
    _replays_right(graph, out, wanted, stream)


def test_a_graph_with_a_list_of_masks_replays_after_many_other_lists() -> None:
    arrays = [cp.concatenate([x, x]) for x in _inputs(4, 512, 512, 4)]
    stream, out, first = _stream(), cp.empty_like(arrays[0]), oc.causal(512)
    others = [oc.random(512, seed) for seed in range(41)]
    cp.cuda.Device().synchronize()
    with stream:
        wanted = oc.attention(*arrays, [first, others[0]], out=out).copy()
    cp.cuda.Device().synchronize()
    graph = _captured(stream, arrays, out, [first, others[0]])
    with stream:
        for other in others[1:]:
            oc.attention(*arrays, [first, other])
    _replays_right(graph, out, wanted, stream)


def test_a_graph_keeps_what_it_reads_when_its_mask_is_dropped() -> None:
    arrays, mask = _inputs(8, 1024, 1024, 8), oc.random(1024, 1)
    stream, out = _stream(), cp.empty_like(arrays[0])
    with stream:
        wanted = oc.attention(*arrays, mask, out=out).copy()
    cp.cuda.Device().synchronize()
    graph = _captured(stream, arrays, out, mask)
    del mask
    _replays_right(graph, out, wanted, stream)


def test_a_mask_may_be_dropped_during_a_capture() -> None:
    arrays, mask, other = _inputs(8, 1024, 1024, 8), oc.random(1024, 1), oc.random(1024, 2)
    home, stream = _stream(), _stream()
    out = cp.empty_like(arrays[0])
    with home:
        oc.attention(*arrays, other)
        wanted = oc.attention(*arrays, mask, out=out).copy()
    with stream:
        oc.attention(*arrays, other)
        oc.prepare(*arrays, mask, out=out)
        cp.cuda.Device().synchronize()
        stream.begin_capture()
        oc.attention(*arrays, mask, out=out)
        del mask, other
        gc.collect()
        assert not home.is_capturing()
        graph = stream.end_capture()
    _replays_right(graph, out, wanted, home)


def test_a_graph_comes_after_a_copy_that_a_busy_stream_was_given(spin: Callable[[], None]) -> None:
    arrays = _inputs(8, 1024, 1024, 8)
    home, stream, out = _stream(), _stream(), cp.empty_like(arrays[0])
    wanted = oc.attention(*arrays, oc.random(1024, 7))
    mask = oc.random(1024, 7)
    cp.cuda.Device().synchronize()
    with home:
        spin()
        busy = home.record()
        oc.prepare(*arrays, mask, out=out)
    assert not busy.done
    graph = _captured(stream, arrays, out, mask)
    graph.launch(stream)
    stream.synchronize()
    assert cp.asnumpy(out).tobytes() == cp.asnumpy(wanted).tobytes()


@pytest.mark.parametrize("mode", ["Global", "ThreadLocal", "Relaxed"])
def test_after_one_call_every_stream_can_be_captured(hopper: int, mode: str) -> None:
    """Six captures at once, more than there are spare workspaces, in modes that forbid to allocate."""
    arrays = _inputs(*_split(hopper))
    streams, outs = [_stream() for _ in range(6)], [cp.empty_like(arrays[0]) for _ in range(6)]
    wanted = oc.attention(*arrays, out=outs[0], config=SPEC).copy()
    cp.cuda.Device().synchronize()
    number = getattr(cp.cuda.runtime, f"streamCaptureMode{mode}")
    graphs = [
        _captured(stream, arrays, out, mode=number, config=SPEC)
        for stream, out in zip(streams, outs, strict=True)
    ]
    for out in outs:
        out.fill(np.nan)
    cp.cuda.Device().synchronize()
    for graph, stream in zip(graphs, streams, strict=True):
        graph.launch(stream)
    cp.cuda.Device().synchronize()
    for out in outs:
        assert cp.asnumpy(out).tobytes() == cp.asnumpy(wanted).tobytes()


def _wait_for_ends(graphs: int) -> None:
    """CUDA tells of a graph's end on a thread of its own, a moment later."""
    deadline = time.monotonic() + 10
    while len(stream_memory._captures) > graphs and time.monotonic() < deadline:
        time.sleep(0.01)
        stream_memory.prepare(int(cp.cuda.Device().id), None)


def test_a_thousand_dropped_captures_give_their_memory_back(hopper: int) -> None:
    gc.collect()
    _wait_for_ends(0)
    arrays, mask = _inputs(*_split(hopper)), oc.full(256, 1 << 17)
    stream, out, pool = _stream(), cp.empty_like(arrays[0]), cp.get_default_memory_pool()
    with stream:
        oc.attention(*arrays, mask, out=out, config=SPEC)
    cp.cuda.Device().synchronize()
    stream_memory.prepare(int(cp.cuda.Device().id), None)
    before = pool.used_bytes()
    held = [_captured(stream, arrays, out, mask, config=SPEC) for _ in range(20)]
    assert pool.used_bytes() > before + 19 * (1 << 16)  # each has a workspace
    for graph in held:
        graph.launch(stream)
    del held, graph
    for _ in range(1000):
        _captured(stream, arrays, out, mask, config=SPEC)
    cp.cuda.Device().synchronize()
    _wait_for_ends(0)
    assert len(stream_memory._captures) == 0
    assert pool.used_bytes() <= before + (1 << 14)  # sets of counters are kept
