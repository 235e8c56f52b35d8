"""Calls of several ranks as CUDA graphs, for `bench parallel`: how long replays take, and what they give on other
inputs; beside them calls in a row, whose time is the host's where that is longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from omnicupy.tools.bench.torch_passes import gradients

Call = Callable[[], Any]
Calls = Mapping[str, Callable[..., Any]]  # of q, k and v, by the name of a way of overlap
PASSES = 3  # calls ahead of a capture
IN_A_ROW = 30
# Threads of the process group look at events meanwhile, which "global" forbids.
MODE = "thread_local"


class Timed(Protocol):
    """What is needed of a ranks.Problem."""

    device: Any

    def time(self, call: Call) -> float:
        """Milliseconds on the slowest rank, from events."""

    def slowest(self, value: float) -> float:
        """The greatest over the ranks."""


class Captured:
    """A call as a CUDA graph, which a call of this replays. results: what a replay writes to."""

    def __init__(self, call: Call) -> None:
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(PASSES):
                call()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode=MODE):
            self.results = call()

    def __call__(self) -> Any:
        self.graph.replay()
        return self.results


def captured(problem: Timed, call: Call) -> Captured | str:
    """The call as a graph; where a rank could not capture it, on all ranks why not, since no rank may replay alone."""
    made, why = None, ""
    try:
        made = Captured(call)
    except Exception as error:
        cause: BaseException = error
        while cause.__context__ is not None:  # the end of a capture that failed raises, too
            cause = cause.__context__
        why = f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0][:200]}"
    if problem.slowest(1.0 if why else 0.0):
        return why or "another rank could not capture it"
    assert made is not None
    return made


def figures(
    problem: Timed, own: list[Any], run: Callable[..., Call], calls: Calls, alone: Call
) -> dict[str, Any]:
    """Milliseconds of replays by each way, and of calls in a row. own: dout, q, k and v of this rank.  run: a pass of
    torch_passes.  alone: the same pass on one device with everything.
    """
    if problem.device.type != "cuda":
        return {}
    dout, *given = own
    found: dict[str, Any] = {"one device, in a row, ms": in_a_row(problem, alone)}
    for name, call in calls.items():
        eager = run(call, given, dout)
        found[f"{name}, in a row, ms"] = in_a_row(problem, eager)
        graph = captured(problem, eager)
        if isinstance(graph, str):
            found[f"{name}, captured"] = graph
            continue
        found[f"{name}, captured, ms"] = round(problem.time(graph), 4)
        found[f"{name}, captured, in a row, ms"] = in_a_row(problem, graph)
    return found


def in_a_row(problem: Timed, call: Call) -> float:
    """Milliseconds of a call, host included, of IN_A_ROW that begin together on all ranks."""
    import torch

    call()
    torch.cuda.synchronize()
    problem.slowest(0.0)  # waits for the other ranks
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(IN_A_ROW):
        call()
    torch.cuda.synchronize()
    return round(problem.slowest(1e3 * (time.perf_counter() - begin) / IN_A_ROW), 4)


def checked(problem: Timed, own: list[Any], calls: Calls) -> dict[str, Any]:
    """Whether both passes give the bits of eager calls in a replay, and in one more on other inputs in the same
    memory.
    """
    if problem.device.type != "cuda":
        return {}
    import torch

    same = True
    for call in calls.values():
        dout, *given = (one.clone() for one in own)

        def both(call: Callable[..., Any] = call, given: list[Any] = given, dout: Any = dout) -> list[Any]:
            return gradients(call, given, dout)

        graph = captured(problem, both)
        if isinstance(graph, str):
            return {"captured bits": graph}
        for _ in range(2):
            expected = both()
            for one in graph.results:
                one.fill_(torch.nan)
            same = same and all(torch.equal(a, b) for a, b in zip(expected, graph(), strict=True))
            for one in (dout, *given):
                one.copy_(one.flip(1))  # heads
    return {"captured bits": problem.slowest(0.0 if same else 1.0) == 0}
