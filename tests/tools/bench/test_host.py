"""bench host: ways of calling attention on torch tensors, on the CPU's as if they were CUDA's, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy_gpu
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from omnicupy.masks.constructors import causal  # noqa: E402
from omnicupy.tools.bench import host, host_torch, timing  # noqa: E402
from omnicupy.tools.bench import run as bench_run  # noqa: E402
from omnicupy.tools.bench.records import Record  # noqa: E402

SHAPE = (1, 2, 16, 8)
OURS, NODE = "omnicupy", "a node that does nothing"
MASK, BOTH = "torch, mask", "torch, forward and backward"
FORWARDS = (OURS, "sdpa", NODE)
NAMES = {
    *((name, MASK) for name in FORWARDS[:2]),
    *((name, f"{BOTH}{more}") for name in FORWARDS for more in ("", ", calling thread", ", a layer of 4")),
    (OURS, f"{BOTH}, captured"),
    *((name, f"{BOTH}{more}") for name in ("sdpa-flash", "flex") for more in ("", ", a layer of 4")),
}


class Graph:
    """A CUDA graph: counts its launches, and what ran while it was captured."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch on the CPU as if it had a GPU whose cuDNN kernels are missing. `captures`: graphs that were captured.
    `backends`: chosen kernels, in order. `threads`: of each backward pass of ours, may autograd take its own?
    `no_flex`: FlexAttention cannot be compiled.
    """
    fake = SimpleNamespace(captures=[], backends=[], threads=[], passes=0, no_flex=False)
    real = torch.randn

    def randn(*shape: Any, device: str, **options: Any) -> Any:
        assert device == "cuda"
        return real(*shape, **options)

    @contextmanager
    def graph(captured: Graph) -> Iterator[None]:
        before = fake.passes
        yield
        fake.captures.append((captured, fake.passes - before))

    @contextmanager
    def sdpa_kernel(backend: Any) -> Iterator[None]:
        fake.backends.append(backend)
        if backend == torch.nn.attention.SDPBackend.CUDNN_ATTENTION:
            raise RuntimeError("No available kernel")
        yield

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            fake.passes += 1
            fake.threads.append(torch._C._is_multithreading_enabled())
            return real(*arguments)

        return call

    def flex(length: int) -> Any:
        assert length == SHAPE[2]
        if fake.no_flex:
            raise TypeError("no Triton")
        return lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(torch.autograd, "grad", counted(torch.autograd.grad))
    monkeypatch.setattr(torch.Tensor, "backward", counted(torch.Tensor.backward))
    monkeypatch.setattr(host_torch, "_flex", flex)
    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", sdpa_kernel)
    for name, stand_in in {
        "is_available": lambda: True,
        "synchronize": lambda: None,
        "Stream": lambda: None,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(host_torch, "LAYERS", 4)
    monkeypatch.setattr(host_torch, "LAYER", f"{BOTH}, a layer of 4")
    return fake


def _ways(said: list[str]) -> dict[tuple[str, str], host_torch.Way]:
    return host_torch.ways(SHAPE, causal(SHAPE[2]), said.append)


def test_each_way_makes_what_its_name_says(cuda: Any) -> None:
    said: list[str] = []
    ways = _ways(said)
    assert set(ways) == NAMES
    assert said == ["warm call: sdpa-cudnn: left out: RuntimeError: No available kernel"]
    assert ways[OURS, MASK].call().shape == SHAPE
    found = {name: ways[name, BOTH].call() for name in FORWARDS}
    for ours, own in zip(found[OURS], found["sdpa"], strict=True):
        assert (ours.float() - own.float()).abs().max() < 0.05
        assert ours.float().abs().max() > 0.1
    assert [one.shape for one in found[NODE]] == [SHAPE] * 3


def test_a_stack_has_one_backward_pass_and_gradients_of_its_own(cuda: Any) -> None:
    way = _ways([])[OURS, f"{BOTH}, a layer of 4"]
    assert way.calls == 4
    before = cuda.passes
    trained = way.call()
    assert (len(trained), cuda.passes) == (1 + 2 * 4, before + 1)
    first = [one.grad.clone() for one in trained]
    assert all(torch.equal(one.grad, grad) for one, grad in zip(way.call(), first, strict=True))


def test_each_layer_of_a_stack_reads_the_one_before(cuda: Any) -> None:
    def causally(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    problem = host_torch._Problem(SHAPE)
    trained = problem.stack(causally)()
    exact = [one.detach().double().requires_grad_() for one in trained]
    out, rest = exact[0], iter(exact[1:])
    for k in rest:
        out = causally(out, k, next(rest))
    for one, own in zip(trained, torch.autograd.grad(out, exact, problem.dout.double()), strict=True):
        assert (one.grad.double() - own).abs().max() < 0.05 * own.abs().max()


def test_what_cannot_be_compiled_is_left_out(cuda: Any) -> None:
    cuda.no_flex = True
    said: list[str] = []
    assert set(_ways(said)) == {name for name in NAMES if name[0] != "flex"}
    assert said[-1] == "warm call: flex: left out: TypeError: no Triton"


def test_a_captured_call_is_launched_alone(cuda: Any) -> None:
    ways = _ways([])
    ((graph, passes),) = cuda.captures
    assert passes == 1
    before = cuda.passes
    ways[OURS, f"{BOTH}, captured"].host_us(lambda: None, 10)
    assert graph.replays == 10 + 5  # those that warm up
    assert cuda.passes == before


@pytest.mark.parametrize(("more", "own"), [("", True), (", calling thread", False), (", a layer of 4", True)])
def test_where_gradients_are_made_is_said_around_the_calls(cuda: Any, more: str, own: bool) -> None:
    way = _ways([])[OURS, f"{BOTH}{more}"]
    cuda.threads.clear()
    assert way.host_us(lambda: None, 20) > 0
    assert cuda.threads == [own] * (5 + 20 // way.calls)
    assert torch._C._is_multithreading_enabled()


def test_a_kernel_of_torch_is_chosen_around_the_calls(cuda: Any) -> None:
    way = _ways([])["sdpa-flash", BOTH]
    cuda.backends.clear()
    way.host_us(lambda: None, 10)
    assert cuda.backends == [torch.nn.attention.SDPBackend.FLASH_ATTENTION]


def test_time_is_that_of_one_call_and_the_launch_queue_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def host_us(call: Callable[[], Any], synchronize: Any, calls: int, between: int) -> float:
        asked.append((calls, between))
        return 64.0

    monkeypatch.setattr(timing, "host_us", host_us)
    assert host_torch.Way(lambda: None).host_us(lambda: None, 100) == 64
    assert host_torch.Way(lambda: None, 32).host_us(lambda: None, 100) == 2
    assert asked == [(100, timing.BETWEEN), (host_torch.LEAST_CALLS, 1)]


def test_the_device_is_waited_for_as_often_as_is_said() -> None:
    order: list[str] = []
    timing.host_us(lambda: order.append("c"), lambda: order.append("s"), 5, 2)
    assert "".join(order) == "cccccs" + "ccsccs" + "cs"


def test_the_record_has_a_median_for_each_way(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_gpu.install(monkeypatch)
    monkeypatch.setattr(host, "HOST_CALLS", 2)
    monkeypatch.setattr(host, "HOST_ROUNDS", 2)
    asked: list[Any] = []

    def ways(shape: Any, mask: Any, say: Any) -> Any:  # of a smaller problem
        asked.append((shape, mask.shape))
        return real(SHAPE, causal(SHAPE[2]), say)

    real = host_torch.ways
    monkeypatch.setattr(host_torch, "ways", ways)
    monkeypatch.setattr(host, "attention", lambda *arrays, **options: asked.append(options))
    record, said = Record(None, {}), []
    host.warm_calls(record, said.append)
    rows = record.rows
    assert {(row["workload"], row["pass"]) for row in rows} == {("warm call", "forward")}
    assert [row["system"] for row in rows] == [*FORWARDS, "sdpa-flash", "flex"]
    of_arrays = {(OURS, name) for name in ("mask", "no mask", "mask, lse", "mask, out")}
    found = {(row["system"], name.removeprefix("host_us, ")) for row in rows for name in row["figures"]}
    assert found == NAMES | of_arrays
    assert all(value > 0 for row in rows for value in row["figures"].values())
    assert [line.partition(": host_us")[0] for line in said[1:3]] == ["warm call", "warm call, sdpa"]
    assert asked[0] == ((1, 8, 256, 64), (256, 256))
    assert [options for options in asked[1:] if options.get("return_lse")]


def test_without_a_gpu_of_torch_s_there_is_no_such_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _ways([]) == {}
    monkeypatch.setattr(host_torch, "find_spec", lambda name: None)
    assert _ways([]) == {}


@pytest.mark.parametrize(("timed", "count"), [("fwd", 1), ("fwd+bwd", 0)])
def test_masks_alone_are_built_beside_calls_of_the_forward_pass(
    timed: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setitem(bench_run.CPU_HOST, "build", lambda record, say: built.append(record.suite))
    monkeypatch.setattr(bench_run, "_run_suite", lambda session, suite, options: None)
    monkeypatch.setattr(bench_run.Session, "start", lambda record, **settings: SimpleNamespace(record=record))
    bench_run._run_suites(
        bench_run.Options(("build",), timed=timed), Record(None, {}), lambda line: None, gpu=True
    )
    assert len(built) == count
