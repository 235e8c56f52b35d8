"""The calls on arrays, a thread for each rank: on NumPy arrays, and through a stand-in for NCCL that moves memory."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import gradient_cases
import numpy as np
import parallel_cases
import pytest
from gradient_cases import DTYPES, GradientCase

import omnicupy as oc
import omnicupy.parallel
from omnicupy.errors import UnsupportedError
from omnicupy.parallel import (
    NcclGroup,
    Plan,
    array_calls,
    attention_backward_of_ranks,
    attention_of_ranks,
    check,
    plan,
)

OPTIONS = {"scale": None, "return_lse": True, "config": None, "sink_logits": None, "softcap": None}
BACKWARD = {"scale": None, "config": None, "deterministic": True, "sink_logits": None, "softcap": None}


class Wire:
    """What threads hand each other: for each message a slot."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=30)
        self.slots: dict[Any, Any] = {}


class Threads:
    """The ranks of a call as threads."""

    def __init__(self, rank: int, size: int, wire: Wire) -> None:
        self.rank, self.size, self.wire = rank, size, wire

    def exchange(self, out: Any, given: Any, sizes: tuple[Sequence[int], Sequence[int]]) -> None:
        received, sent = sizes
        for peer, rows in enumerate(np.split(given, np.cumsum(sent)[:-1])):
            self.wire.slots[self.rank, peer] = rows
        self.wire.barrier.wait()
        parts = [self.wire.slots[peer, self.rank] for peer in range(self.size)]
        assert [len(part) for part in parts] == list(received)
        out[...] = np.concatenate(parts)
        self.wire.barrier.wait()

    def agree(self, made: Plan, call: check.Shared, limit: float) -> None:
        assert made.ranks == self.size


def _in_threads(size: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(size) as pool:
        return [one.result() for one in [pool.submit(work, rank) for rank in range(size)]]


def _shards(made: Plan, case: GradientCase) -> list[list[Any]]:
    """dout, q, k, v and dlse of each rank."""
    dout, q, k, v, _, _, dlse = case.arrays
    given = [(dout, False), (q, False), (k, True), (v, True), (dlse, False)]
    return [[made.shard(x, rank, 2, keys=keys) for rank in range(made.ranks)] for x, keys in given]


@pytest.mark.parametrize("kind", ["segments", "from_dense", "full", "ranges"])
def test_the_bits_of_one_process(kind: str) -> None:
    rng = np.random.default_rng(11)
    for turn in range(8):
        mask = parallel_cases.case(rng, kind).mask
        made = parallel_cases.made(rng, mask, 5)
        wide = {"value_dim": (None, 12, 3)[turn % 3], "with_dlse": True}
        case = gradient_cases.made([mask], (2, 1, 2), 8, DTYPES[turn % 4], seed=turn, **wide)
        given, wanted = _shards(made, case), ("q", "k", "v") if turn % 3 else ("q", "v")
        if turn % 2:
            _compare(made, given, wanted, {})
            continue
        kind_of_sinks = np.float64 if case.arrays.q.dtype == np.float64 else np.float32
        scores = {"sink_logits": rng.standard_normal(2).astype(kind_of_sinks), "softcap": 2.0}
        _compare(made, given, (*wanted, "sink_logits"), scores)


def _compare(made: Plan, given: list[list[Any]], wanted: Sequence[str], scores: dict[str, Any]) -> None:
    """Threads against one process, bit by bit. given: as `_shards`.  scores: sink_logits and softcap."""
    dout, q, k, v, dlse = given
    wire = Wire(made.ranks)

    def work(rank: int) -> Any:
        group = Threads(rank, made.ranks, wire)
        arrays = q[rank], k[rank], v[rank]
        out, lse = array_calls.attention(arrays, made, group, 0, 1, OPTIONS | scores)
        options = BACKWARD | {"dlse": dlse[rank], "wanted": wanted} | scores
        results = (dout[rank], out, lse)
        return (
            out,
            lse,
            *array_calls.attention_backward(arrays, results, made, group, 0, limit=1, options=options),
        )

    found = _in_threads(made.ranks, work)
    outs, lses = attention_of_ranks(q, k, v, made, return_lse=True, **scores)
    rest: dict[str, Any] = {"plan": made, "dlse": dlse, "wanted": wanted} | scores
    grads = attention_backward_of_ranks(dout, q, k, v, outs, lses, **rest)
    for rank in range(made.ranks):
        for a, side in zip(found[rank], (outs, lses, *grads), strict=True):
            assert (a is None) == (side is None)
            if a is not None:
                assert a.dtype == side[rank].dtype
                assert np.array_equal(a.view(np.uint8), side[rank].view(np.uint8))


@pytest.mark.parametrize("wanted", ["qkv", None, ("q", "x"), ("sink_logits",), ()])
def test_wanted_is_refused_on_every_rank_before_anything_travels(wanted: Any) -> None:
    made = plan(oc.causal(8), 2, rows=np.zeros(8, np.int64))  # rank 1 has no rows
    x = np.zeros((1, 1, 8, 4), np.float32)
    for rank in range(2):
        shard, group = made.shard(x, rank, 2), Threads(rank, 2, Wire(2))
        results, options = (shard, shard, shard[..., 0]), BACKWARD | {"dlse": None, "wanted": wanted}
        with pytest.raises((TypeError, ValueError), match=r"^wanted"):
            array_calls.attention_backward((shard,) * 3, results, made, group, 0, limit=1, options=options)


class NcclCommunicator:
    """NCCL's calls as CuPy has them, on host memory: what is sent is copied at the end of the group."""

    def __init__(self, rank: int, size: int, wire: Wire) -> None:
        self.rank, self.count, self.wire = rank, size, wire
        self.sent: dict[int, tuple[int, int]] = {}
        self.awaited: dict[int, tuple[int, int]] = {}

    def rank_id(self) -> int:
        return self.rank

    def size(self) -> int:
        return self.count

    def send(self, address: int, count: int, datatype: int, peer: int, stream: int) -> None:
        assert (datatype, stream) == (1, 7)
        assert peer not in self.sent
        self.sent[peer] = (address, count)
        _open.groups.append(self)

    def recv(self, address: int, count: int, datatype: int, peer: int, stream: int) -> None:
        assert (datatype, stream) == (1, 7)
        assert peer not in self.awaited
        self.awaited[peer] = (address, count)
        _open.groups.append(self)

    def allGather(self, source: int, target: int, count: int, datatype: int, stream: int) -> None:  # noqa: N802
        self.wire.slots[self.rank] = ctypes.string_at(source, count)
        self.wire.barrier.wait()
        for rank in range(self.count):
            ctypes.memmove(target + rank * count, self.wire.slots[rank], count)
        self.wire.barrier.wait()

    def finish(self) -> None:
        for peer, message in self.sent.items():
            self.wire.slots[self.rank, peer] = ctypes.string_at(*message)
        self.wire.barrier.wait()
        for peer, (address, count) in self.awaited.items():
            assert len(self.wire.slots[peer, self.rank]) == count
            ctypes.memmove(address, self.wire.slots[peer, self.rank], count)
        self.wire.barrier.wait()
        self.sent, self.awaited = {}, {}


_open = threading.local()


def _start() -> None:
    _open.groups = []


def _end() -> None:
    _open.mine.finish()


class OnDevice:
    """An array with the address that CuPy's have."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.data = SimpleNamespace(ptr=array.ctypes.data)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What NcclGroup asks of CuPy. late: whether a recorded event never comes.  captured: whether the stream is."""
    fake = SimpleNamespace(late=False, captured=False)
    event = SimpleNamespace
    stream = SimpleNamespace(
        ptr=7, record=lambda: event(done=not fake.late), is_capturing=lambda: fake.captured
    )
    nccl = SimpleNamespace(groupStart=_start, groupEnd=_end, NCCL_UINT8=1)
    fake.cuda = SimpleNamespace(nccl=nccl, get_current_stream=lambda: stream)
    fake.asarray = lambda x: OnDevice(np.array(x))
    fake.empty = lambda shape, dtype: OnDevice(np.empty(shape, dtype))
    fake.asnumpy = lambda x: x.array
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.mark.parametrize("dtype", DTYPES)
def test_nccl_moves_what_the_plan_says(cupy: Any, dtype: Any) -> None:
    rng, size = np.random.default_rng(0), 4
    counts = rng.integers(0, 4, (size, size))
    np.fill_diagonal(counts, 0)
    wire = Wire(size)
    given = [rng.standard_normal((int(counts[rank].sum()), 2, 3)).astype(dtype) for rank in range(size)]
    out = [np.zeros((int(counts[:, rank].sum()), 2, 3), dtype) for rank in range(size)]

    def work(rank: int) -> None:
        _open.mine = NcclCommunicator(rank, size, wire)
        group = NcclGroup(_open.mine)
        assert (group.rank, group.size) == (rank, size)
        group.exchange(
            OnDevice(out[rank]), OnDevice(given[rank]), (counts[:, rank].tolist(), counts[rank].tolist())
        )

    _in_threads(size, work)
    for rank in range(size):
        sent = [np.split(given[peer], np.cumsum(counts[peer])[:-1])[rank] for peer in range(size)]
        assert np.array_equal(out[rank].view(np.uint8), np.concatenate(sent).view(np.uint8))


def test_nccl_ranks_compare_their_plans_once(cupy: Any) -> None:
    wire, mask = Wire(2), oc.causal(8)
    same, other = plan(mask, 2), plan(mask, 2, rows=[1, 0] * 4)
    call = check.shared((np.zeros((3, 2, 4, 8)),) * 2, 0)

    def work(rank: int) -> str:
        group = NcclGroup(NcclCommunicator(rank, 2, wire))
        group.agree(same, call, 1)
        group.agree(plan(mask, 2), call, 1)  # an equal one: nobody is asked, or this thread would wait
        with pytest.raises(
            ValueError, match="plan differs between ranks: rank 1 came with another one than rank 0"
        ):
            group.agree(other if rank else plan(mask, 2, rows=[0, 1] * 4), call, 1)
        with pytest.raises(
            ValueError, match="call differs between ranks: rank 1 came with mask 0, 2, batch 3, 8 and"
        ):
            group.agree(same, call._replace(masks=(0, 2) if rank else (1,)), 1)
        many = tuple(range(1000))  # masks: more words than an error shows
        group.agree(same, call._replace(masks=many), 1)
        with pytest.raises(ValueError, match=r"rank 1 came with mask 0, 1, .*\.\.\. \(SHA-256 \w+\); rank 0"):
            group.agree(same, call._replace(masks=many, batch=4 if rank else 5), 1)
        cupy.captured = True
        with pytest.raises(UnsupportedError, match="CuPy arrays cannot be captured into a CUDA graph"):
            group.agree(same, call, 1)  # which they have compared
        return "done"

    assert _in_threads(2, work) == ["done"] * 2
    cupy.captured, cupy.late = False, True
    with pytest.raises(
        RuntimeError, match=r"not every rank came to compare plans within 0\.01 s \(rank 0 waited\)"
    ):
        NcclGroup(NcclCommunicator(0, 1, Wire(1))).agree(plan(mask, 1), call, 0.01)


def test_errors() -> None:
    made, array = plan(oc.causal(8), 2), np.zeros((1, 1, 4, 8), np.float32)

    class ndarray:  # noqa: N801 - known by this name
        __module__ = "cupy"
        shape, dtype = array.shape, array.dtype

    ndarray.__module__ = "cupy"
    on_gpu = ndarray()
    with pytest.raises(
        TypeError, match=r"group must be an omnicupy\.parallel\.NcclGroup for CuPy arrays, got NoneType"
    ):
        oc.parallel.attention(on_gpu, on_gpu, on_gpu, made)
    with pytest.raises(
        TypeError, match="q must be a tensor or a CuPy array, got ndarray; attention_of_ranks takes"
    ):
        oc.parallel.attention(array, array, array, made)
    with pytest.raises(TypeError, match="all be tensors or all CuPy arrays, got k of another kind"):
        oc.parallel.attention(on_gpu, object(), on_gpu, made)
    with pytest.raises(TypeError, match="attention has gradients of tensors by autograd"):
        oc.parallel.attention_backward(*[object()] * 6, plan=made, group=None)
    with pytest.raises(UnsupportedError, match="overlap must be None or False for CuPy arrays"):
        oc.parallel.attention(on_gpu, on_gpu, on_gpu, made, overlap=True)
    with pytest.raises(TypeError, match=r"expected a cupy\.cuda\.nccl\.NcclCommunicator, got int"):
        NcclGroup(3)
    with pytest.raises(
        ValueError, match="plan must be one for the 3 ranks of the group, got one for 2 on rank 0"
    ):
        array_calls.attention((array,) * 3, made, Threads(0, 3, Wire(3)), 0, 1, OPTIONS)
