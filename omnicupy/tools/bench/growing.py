"""bench growing: what eager steps of decoding cost the host where caches grow by a key a step, for many layers.

Lengths on the device and one plan a step, a new mask of the host a step, and torch's own attention, by FlashAttention
and by the kernel that torch chooses. Ways take turns, some steps in a row each and at the same lengths. The device
waits for the host: no call is large, and it is done before the next step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from omnicupy.masks.constructors import full
from omnicupy.tools.bench import captured
from omnicupy.tools.bench.captured import Problem
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.torch_inputs import library

SUITE = "growing"
CACHED, MASKS, FLASH, SDPA = f"{OURS}:cached", f"{OURS}:masks", "sdpa-flash", "sdpa"
PROBLEMS = (Problem("a sequence of 2,048 keys", (2048,)), Problem("8 sequences of 2,048 keys", (2048,) * 8))
TURNS, IN_A_ROW = 9, 12  # together fewer keys than captured.SPARE; of each row the first step is not counted
ROW_MS = 100.0  # a row ends after that
CLOSE = 0.02  # of results, in float32 or bfloat16, over the largest element

Say = Callable[[str], None]
Around = Callable[[], AbstractContextManager[Any]]


class Step(captured.Step):
    """The layers of a problem, whose sequences are of one length, and a step of them in each way, a key longer."""

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem, device)
        self.restart()

    def restart(self, more: int = 0) -> None:
        """The lengths of the start, or some keys more."""
        super().restart(more)
        self.keys = self.problem.lengths[0] + more

    def by_lengths(self) -> Any:
        """Attention of all layers on lengths of the device; the last layer's result."""
        from omnicupy.torch import attention, plan

        self.lengths += 1
        step = plan(self.q, self.layers[0], self.rule)
        for layer in self.layers:
            out = attention(self.q, layer, mask=step)
        return out

    def by_masks(self) -> Any:
        """The same on a mask of this step."""
        from omnicupy.torch import attention

        self.keys += 1
        mask, keys = full(1, self.keys), self.keys
        for of in self.layers:
            out = attention(self.q, of.k[:, :, :keys], of.v[:, :, :keys], mask)
        return out

    def by_sdpa(self) -> Any:
        """The same by torch."""
        own = library("torch").nn.functional.scaled_dot_product_attention
        self.keys += 1
        keys = self.keys
        for of in self.layers:
            out = own(self.q, of.k[:, :, :keys], of.v[:, :, :keys], enable_gqa=True)
        return out

    def ways(self) -> dict[str, tuple[Callable[[], Any], Around]]:
        """What is timed, by system, and what stands around a row of it."""
        nn = library("torch.nn.attention")
        flash = partial(nn.sdpa_kernel, nn.SDPBackend.FLASH_ATTENTION)
        found: dict[str, tuple[Callable[[], Any], Around]] = {CACHED: (self.by_lengths, nullcontext)}
        return found | {
            MASKS: (self.by_masks, nullcontext),
            FLASH: (self.by_sdpa, flash),
            SDPA: (self.by_sdpa, nullcontext),
        }


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
    ways = step.ways()
    took: dict[str, list[float]] = {system: [] for system in ways}
    results: dict[str, Any] = {}
    with library("torch").no_grad():
        for turn in range(TURNS):
            for system, (way, around) in ways.items():
                step.restart(turn * IN_A_ROW)
                with around():
                    row, results[system] = _row(way, step.q.is_cuda)
                took[system] += row if turn else []  # kernels are loaded in the first one
    medians = {system: statistics.median(of) for system, of in took.items()}
    found = {}
    for system, ms in medians.items():
        shown: dict[str, Any] = {"a step, ms": round(ms, 4), "least, ms": round(min(took[system]), 4)}
        shown |= {"a layer, us": round(1e3 * ms / step.problem.layers, 2)}
        shown |= {"time over FlashAttention's": round(ms / medians[FLASH], 4)}
        found[system] = shown | {"correct": _agree(results[system], results[FLASH])}
    return found


def _row(way: Callable[[], Any], is_cuda: bool) -> tuple[list[float], Any]:
    """Milliseconds of the steps of a row but the first, and the first one's result."""
    wait = library("torch").cuda.synchronize if is_cuda else lambda: None
    first, took = way(), [0.0]
    while len(took) < IN_A_ROW and (len(took) < 2 or sum(took) < ROW_MS):
        wait()
        begin = time.perf_counter()
        way()
        took.append(1e3 * (time.perf_counter() - begin))
    return took[1:], first


def _agree(one: Any, other: Any) -> bool:
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())
