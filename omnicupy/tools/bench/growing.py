"""bench growing: what eager steps of decoding cost the host where caches grow by a key a step, for many layers.

Three ways take turns, each at the same length: lengths on the device and one plan a step, a new mask of the host a
step, and torch's own attention. The device waits for the host: no call is large, and it is done before the next step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from omnicupy.masks.constructors import full
from omnicupy.tools.bench import captured
from omnicupy.tools.bench.captured import Problem
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.torch_inputs import library

SUITE = "growing"
CACHED, MASKS, SDPA = f"{OURS}:cached", f"{OURS}:masks", "sdpa"
PROBLEMS = (Problem("a sequence of 2,048 keys", (2048,)), Problem("8 sequences of 2,048 keys", (2048,) * 8))
STEPS, WARM_UP = 100, 10  # together fewer than captured.SPARE
CLOSE = 0.02  # of results, in float32 or bfloat16, over the largest element

Say = Callable[[str], None]


class Step(captured.Step):
    """The layers of a problem, whose sequences are of one length, and a step of them in each way."""

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem, device)
        self.keys = problem.lengths[0]

    def longer(self) -> None:
        """A key more for every sequence."""
        self.lengths += 1
        self.keys += 1

    def by_lengths(self) -> Any:
        """Attention of all layers on lengths of the device; the last layer's result."""
        from omnicupy.torch import attention, plan

        step = plan(self.q, self.layers[0], self.rule)
        return [attention(self.q, layer, mask=step) for layer in self.layers][-1]

    def by_masks(self) -> Any:
        """The same on a mask of this step."""
        from omnicupy.torch import attention

        mask, keys = full(1, self.keys), self.keys
        return [attention(self.q, of.k[:, :, :keys], of.v[:, :, :keys], mask) for of in self.layers][-1]

    def by_sdpa(self) -> Any:
        """The same by torch."""
        own, keys = library("torch").nn.functional.scaled_dot_product_attention, self.keys
        return [own(self.q, of.k[:, :, :keys], of.v[:, :, :keys], enable_gqa=True) for of in self.layers][-1]

    def ways(self) -> dict[str, Callable[[], Any]]:
        """What is timed, by system."""
        return {CACHED: self.by_lengths, MASKS: self.by_masks, SDPA: self.by_sdpa}


def growing(record: Record, say: Say) -> None:
    """A row for each problem and way. Raises ImportError without torch, ValueError without a GPU that it finds."""
    torch = library("torch")
    if not torch.cuda.is_available():
        raise ValueError(f"bench {SUITE}: expected a GPU that torch finds, found none; nothing is launched")
    for problem in PROBLEMS:
        for system, figures in measure(Step(problem, "cuda")).items():
            record.add(workload=problem.workload, system=system, figures=figures, **{"pass": "forward"})
            say(f"{problem.workload}: {system}: {figures}")
        torch.cuda.empty_cache()


def measure(step: Step) -> dict[str, dict[str, Any]]:
    """Milliseconds that a step keeps the host busy, by system."""
    torch, ways = library("torch"), step.ways()
    wait = torch.cuda.synchronize if step.q.is_cuda else lambda: None
    took: dict[str, list[float]] = {system: [] for system in ways}
    with torch.no_grad():
        for turn in range(WARM_UP + STEPS):
            step.longer()
            results = {}
            for system, way in ways.items():
                wait()
                begin = time.perf_counter()
                results[system] = way()
                if turn >= WARM_UP:
                    took[system].append(1e3 * (time.perf_counter() - begin))
    medians = {system: statistics.median(of) for system, of in took.items()}
    found = {}
    for system, ms in medians.items():
        shown: dict[str, Any] = {"a step, ms": round(ms, 4), "least, ms": round(min(took[system]), 4)}
        shown |= {"a layer, us": round(1e3 * ms / step.problem.layers, 2)}
        shown |= {"time over SDPA": round(ms / medians[SDPA], 4)}
        found[system] = shown | {"correct": _agree(results[system], results[SDPA])}
    return found


def _agree(one: Any, other: Any) -> bool:
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())
