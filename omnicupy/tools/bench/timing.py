"""Time on a GPU: device events, the L2 cache flushed between samples, systems interleaved, medians."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnicupy.tools.environment import query_smi

Call = Callable[[], Any]

FLUSH_BYTES = 256 * 2**20  # several times any L2 cache
# Writes of the flush buffer before each sample. Together they last longer than any Python call takes to
# launch, so the device never waits for the host inside a sample.
FLUSH_WRITES = 6
FLUSHES = ("write", "read")
_OUTPUTS = 8192  # of what is read: as many thread blocks
SAMPLES = 30
TURNS, IN_A_ROW, ALONE = 7, 100, 200  # of whole calls
BETWEEN = (
    50  # calls between waits for the device, before its launch queue is full, which would count as host time
)
REST_S = 0.05
SYSTEM_BUDGET_S = 4.0  # most time that the samples of one system may take


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 10th and 90th percentile of `samples` samples."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    samples: int


def summarize(samples: Sequence[float]) -> Timing:
    """The statistics of samples in milliseconds. Raises ValueError for none."""
    if not samples:
        raise ValueError("samples: expected at least one, got none; time the call first")
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(
        statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered)
    )


class Clock:
    """Times calls on CuPy's current stream with device events. xp: the cupy module.

    flush: "write" leaves lines in the L2 cache that have to go back to memory while a call runs, as a layer that writes
    much would. "read" reads a buffer of the same size behind that, so that the cache is full of lines that are dropped,
    as behind a layer that reads its weights.
    """

    def __init__(self, xp: Any, flush_bytes: int = FLUSH_BYTES, flush: str = FLUSHES[0]) -> None:
        if flush not in FLUSHES:
            raise ValueError(f"flush: expected one of {', '.join(FLUSHES)}, got {flush!r}")
        self._xp = xp
        self._flush = xp.empty(flush_bytes, xp.uint8)
        self._read: Any = None
        if flush == "read":
            words = xp.zeros(flush_bytes, xp.uint8).view("u4")
            self._read = words.reshape(math.gcd(words.size, _OUTPUTS), -1)

    def sample(self, call: Call, *, flush: bool = True) -> float:
        """Milliseconds of one call, from a cold L2 cache."""
        start, stop = self._xp.cuda.Event(), self._xp.cuda.Event()
        if flush:
            for _ in range(FLUSH_WRITES):
                self._flush.data.memset_async(0, self._flush.nbytes)
            if self._read is not None:
                self._read.max(axis=1)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(self._xp.cuda.get_elapsed_time(start, stop))

    def interleaved(self, systems: Mapping[str, Call], samples: int = SAMPLES) -> dict[str, Timing]:
        """Time several systems in turn, sample by sample, so that drifting clocks reach them alike.

        Each is warmed up first. Slow systems get fewer samples, at least three. Each turn has an order of its own, from
        a seed: a chip at its power limit has a higher clock for what follows a system that needs less, by up to 17%
        where calls take 50 ms, and no system follows the same one always.
        """
        found: dict[str, list[float]] = {name: [] for name in systems}
        counts = {}
        for name, call in systems.items():
            self.sample(call)
            took = self.sample(call)
            counts[name] = max(3, min(samples, int(1000 * SYSTEM_BUDGET_S / max(took, 1e-3))))
        orders, names = random.Random(0), list(systems)
        for turn in range(max(counts.values(), default=0)):
            orders.shuffle(names)
            for name in names:
                if turn < counts[name]:
                    found[name].append(self.sample(systems[name]))
        return {name: summarize(of_system) for name, of_system in found.items()}


def host_us(call: Call, synchronize: Call, calls: int = 200, between: int = BETWEEN) -> float:
    """Median host time of a warm call in microseconds: what it keeps the CPU busy, the device apart.

    between: calls after which the device is waited for, outside of what is timed.
    """
    _warm(call, synchronize)
    took = []
    for turn in range(calls):
        begin = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - begin)
        if turn % between == between - 1:
            synchronize()
    synchronize()
    return statistics.median(took) / 1e3


def latencies_us(
    systems: Mapping[str, Call], synchronize: Call, turns: int = TURNS, calls_alone: int = ALONE
) -> dict[str, tuple[float, float]]:
    """Time of a whole call, host included, nothing flushed: per call of a hundred in a row, and of one alone, the
    median of `calls_alone`.

    The systems take turns, so that a host that is busy for a while reaches all alike; of the turns the median. The
    hundred and those alone start from a rest each: what ran before may have brought the chip to its power limit,
    some systems sooner than others.
    """
    together: dict[str, list[float]] = {name: [] for name in systems}
    alone: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(turns):
        for name, call in systems.items():
            _rest(call, synchronize)
            begin = time.perf_counter_ns()
            for _ in range(IN_A_ROW):
                call()
            synchronize()
            together[name].append((time.perf_counter_ns() - begin) / IN_A_ROW / 1e3)
            _rest(call, synchronize)
            took = []
            for _ in range(calls_alone):
                begin = time.perf_counter_ns()
                call()
                synchronize()
                took.append((time.perf_counter_ns() - begin) / 1e3)
            alone[name].append(statistics.median(took))
    return {name: (statistics.median(together[name]), statistics.median(alone[name])) for name in systems}


def _rest(call: Call, synchronize: Call) -> None:
    """A pause, so that no system inherits the heat of another."""
    time.sleep(REST_S)
    _warm(call, synchronize)


def _warm(call: Call, synchronize: Call) -> None:
    for _ in range(5):
        call()
    synchronize()


def clocks() -> dict[str, str]:
    """Clocks in MHz, power in W and temperature in C now, as nvidia-smi gives them; {} without it."""
    fields = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    values = query_smi(",".join(fields))
    return dict(zip(fields, (part.strip() for part in values.split(",")), strict=False)) if values else {}
