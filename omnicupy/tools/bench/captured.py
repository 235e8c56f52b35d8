"""bench captured: a captured step of decoding with many layers, one key longer at each replay, beside its kernels.

One graph counts the lengths up, plans on the device and calls attention for each layer, which has a cache of its own.
Device time stands over that of the same calls alone: on contiguous keys of the last length, whose plan the host made
before (`calls alone`), and of each kernel as the profiler saw it, where it runs (`kernels alone`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omnicupy.choose import pick
from omnicupy.serving.caches import CachedKV
from omnicupy.serving.rule import cached
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.torch_inputs import library

SUITE = "captured"
REPLAYS, WARM_UP = 40, 5
PROFILED = 10
SPARE = 128  # keys that the caches have room for beside those at the start

Say = Callable[[str], None]


@dataclass(frozen=True)
class Problem:
    """lengths: keys of each sequence at the start.  sizes: query heads, heads of keys, head_dim."""

    name: str
    lengths: tuple[int, ...]
    sizes: tuple[int, int, int] = (32, 8, 128)
    layers: int = 32

    @property
    def workload(self) -> str:
        """What a row of a record calls it."""
        heads, kv_heads, head_dim = self.sizes
        return f"{self.layers} layers, {self.name}, {heads} heads on {kv_heads} of {head_dim}"


PROBLEMS = (
    Problem("8 sequences of 4,096 keys", (4096,) * 8),
    Problem("8 sequences of 1,024 to 8,192 keys", tuple(range(1024, 8193, 1024))),
    Problem("a sequence of 32,768 keys", (32768,)),
)


class Step:
    """The layers of a problem and one step of them, on the GPU."""

    def __init__(self, problem: Problem, device: str) -> None:
        torch = library("torch")
        self.problem, self.rule = problem, cached()
        heads, kv_heads, head_dim = problem.sizes
        batch, capacity = len(problem.lengths), max(problem.lengths) + SPARE
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.lengths = torch.tensor(problem.lengths, dtype=torch.int32, device=device)
        self.q, self.out = (
            torch.randn((batch, heads, 1, head_dim), device=device).to(dtype) for _ in range(2)
        )
        shape = (batch, kv_heads, capacity, head_dim)
        caches = (
            [torch.randn(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(problem.layers)
        )
        self.layers = [CachedKV(k, v, self.lengths) for k, v in caches]

    def restart(self, more: int = 0) -> None:
        """The lengths of the start, or some keys more."""
        self.lengths.copy_(library("torch").tensor(self.problem.lengths) + more)

    def longer(self) -> None:
        """One key more for every sequence, and attention of every layer."""
        from omnicupy.torch import attention, plan

        self.lengths += 1
        step = plan(self.q, self.layers[0], self.rule)
        for layer in self.layers:
            attention(self.q, layer, mask=step, out=self.out)

    def alone(self, lengths: Sequence[int]) -> Callable[[], None]:
        """The calls of every layer on keys of given lengths in one piece, by masks that the host knows."""
        from omnicupy.torch import attention

        most = max(lengths)
        masks = [self.rule.mask(length, 1, most) for length in lengths]
        mask = masks[0] if len(set(lengths)) == 1 else masks

        def call() -> None:
            for layer in self.layers:
                attention(self.q, layer.k[:, :, :most], layer.v[:, :, :most], mask, out=self.out)

        return call


def captured(record: Record, say: Say) -> None:
    """A row for each problem. Raises ImportError without torch, ValueError without a GPU that it finds."""
    torch = library("torch")
    if not torch.cuda.is_available():
        raise ValueError(
            f"bench {SUITE}: expected a GPU that torch finds, found none; nothing can be captured"
        )
    for problem in PROBLEMS:
        figures = measure(Step(problem, "cuda"))
        record.add(workload=problem.workload, system=OURS, figures=figures, **{"pass": "forward"})
        say(f"{problem.workload}: {figures}")
        torch.cuda.empty_cache()


@pick.serve_every_kernel()
def measure(step: Step) -> dict[str, Any]:
    """Milliseconds of a replay, and over those of its kernels, at about the same lengths."""
    graph = torch_graph(step.longer)
    step.restart()
    whole = _median_ms(graph)
    middle = [length + WARM_UP + REPLAYS // 2 for length in step.problem.lengths]
    step.restart(WARM_UP + (REPLAYS - PROFILED) // 2)
    kernels = _kernels_ms(graph)
    alone = _median_ms(torch_graph(step.alone(middle)))
    found: dict[str, Any] = {"a replay, ms": round(whole, 4), "calls alone, ms": round(alone, 4)}
    found["time over calls alone"] = round(whole / alone, 4)
    if kernels is not None:
        found |= {
            "kernels alone, ms": round(kernels, 4),
            "time over kernels alone": round(whole / kernels, 4),
        }
    return found


def torch_graph(call: Callable[[], None]) -> Any:
    """A call as a CUDA graph of torch's, after one that loads its kernels."""
    torch = library("torch")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.stream(stream):
        call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            call()
    torch.cuda.synchronize()
    return graph


def _median_ms(graph: Any) -> float:
    """Device time of a replay, each launched ahead of the one before's end."""
    torch = library("torch")
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + WARM_UP + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    took: list[float] = [
        a.elapsed_time(b) for a, b in zip(events[WARM_UP:-1], events[WARM_UP + 1 :], strict=True)
    ]
    return statistics.median(took)


def _kernels_ms(graph: Any) -> float | None:
    """Time of the kernels of a replay, each by itself; None where the profiler sees none."""
    torch = library("torch")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            graph.replay()
        torch.cuda.synchronize()
    us = float(sum(one.self_device_time_total for one in profiled.key_averages()))
    return us / 1e3 / PROFILED if us else None
