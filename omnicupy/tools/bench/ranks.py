"""bench parallel: a call that the ranks of a process group share, beside one device with everything, in one run.

    torchrun --nproc-per-node 2 -m omnicupy bench parallel --out FILE

Every rank runs this. A sample begins on all devices at once, and the slowest rank's time counts, the exchange included.
The first rank writes the record.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from omnicupy import parallel as several
from omnicupy.parallel import Plan, plan
from omnicupy.parallel.make import NAMES
from omnicupy.parallel.overlap import Overlap
from omnicupy.tools.bench import captured_ranks, overlap_ways
from omnicupy.tools.bench.overlap_ways import BEHIND, DEFAULT, ON_CPU, ON_GPU, PREDICTED
from omnicupy.tools.bench.process_group import is_first, process_group
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.timing import FLUSH_BYTES
from omnicupy.tools.bench.torch_passes import forward, forward_and_backward, gradients
from omnicupy.tools.workloads.workload import Workload, by_name

Say = Callable[[str], None]
SAMPLES, WARM_UP = 20, 3
FLUSH_WRITES = 40  # of the flush buffer: a backward pass takes Python longer to launch
CLOSE = 0.02  # of the largest element: what 16-bit results of other tiles may differ by
SEED = 0
LIMIT_S = 60.0  # of an exchange on the CPU


def parallel(record: Record, say: Say, workloads: Sequence[Workload] = ()) -> None:
    """workloads: instead of the suite's own. Raises what `process_group` raises."""
    import torch.distributed as dist

    with process_group("parallel") as device:
        record.set(ranks=dist.get_world_size(), samples=SAMPLES)
        on_gpu = device.type == "cuda"
        own = [by_name(name) for name in (ON_GPU if on_gpu else ON_CPU)]
        # Those that no other run measures come first: a run may end early.
        for one in workloads or [*(overlap_ways.grown(dist.get_world_size()) if on_gpu else []), *own]:
            Problem(one, device).measure(record, say)


@dataclass
class _Figures:
    """Milliseconds: one device with everything, all ranks by way of overlap, and the parts of a call without."""

    alone: float
    whole: dict[str, float]
    exchange: float
    launch: float


class Problem:
    """A workload on this rank: the whole arrays, and what is its own under a plan."""

    def __init__(self, workload: Workload, device: Any) -> None:
        import torch
        import torch.distributed as dist

        self.workload, self.device, self.mask = workload, device, workload.mask()
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(SEED)  # the same arrays on every rank
        (q_len, k_len), batch, dim = self.mask.shape, workload.batch, workload.head_dim
        shapes = [(batch, workload.q_heads, q_len, dim)] * 2 + [(batch, workload.kv_heads, k_len, dim)] * 2
        self.dout, *self.arrays = (
            torch.randn(one, generator=generator, device=device).to(dtype) for one in shapes
        )
        size = FLUSH_BYTES if device.type == "cuda" else 0
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)
        self._signal = torch.zeros(1, device=device)
        self._found: dict[Callable[..., Any], float] = {}

    def measure(self, record: Record, say: Say) -> None:
        """A row for each pass: under the plan by every way of overlap, under other assignments by the usual ones."""
        heads, on_gpu = self.workload.sizes, self.device.type == "cuda"
        chosen = plan(self.mask, self.ranks, heads=heads)
        others = [name for name in NAMES[:3] if on_gpu and name != chosen.name and name != "contiguous"]
        for rows in (None, "contiguous", *others):
            made = chosen if rows is None else plan(self.mask, self.ranks, heads=heads, rows=rows)
            if rows == chosen.name:
                continue
            ways = overlap_ways.ways(made, self.workload, on_gpu=on_gpu, every=rows is None)
            own = self._own(made)
            calls = {name: partial(_calls()[0], plan=made, overlap=way) for name, way in ways.items()}
            checked = self._checked(made, ways) | captured_ranks.checked(self, own, calls)
            for timed, run in (("forward", forward), ("forward+backward", forward_and_backward)):
                figures = self._shown(made, self._figures(made, timed == "forward+backward", ways)) | checked
                alone = run(ours_alone(self), self.arrays, self.dout)
                figures |= captured_ranks.figures(self, own, run, calls, alone)
                workload = f"{self.workload.name}{f', {rows}' if rows else ''}, {self.ranks} ranks, {timed}"
                record.add(workload=workload, system="omnicupy", figures=figures, **{"pass": "forward"})
                if is_first():
                    say(f"{workload}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))

    def _shown(self, made: Plan, found: _Figures) -> dict[str, Any]:
        """A row's figures. "all ranks" is the call as it is by default."""
        whole = found.whole.get(PREDICTED if DEFAULT is None else BEHIND, found.whole[BEHIND])
        figures = {"ranks": self.ranks, "assignment": made.name} | {
            "one device, ms": round(found.alone, 4),
            "all ranks, ms": round(whole, 4),
            "efficiency": round(found.alone / whole / self.ranks, 3),
            **{f"{name}, ms": round(took, 4) for name, took in found.whole.items()},
            "exchange alone, ms": round(found.exchange, 4),
            "slowest launch alone, ms": round(found.launch, 4),
            "received, MB": round(self._received(made) / 1e6, 2),
        }
        if PREDICTED in found.whole:  # of this rank; one writes the record
            figures["overlap"] = str(overlap_ways.steps(made, self.rank, self.workload, None))
        return figures

    def _received(self, made: Plan) -> int:
        """Bytes of K and V that the rank which receives most gets, of all batch elements."""
        needed = max(sum(made.exchange(rank).received) for rank in range(self.ranks))
        k = self.arrays[1]
        return int(2 * needed * k.shape[0] * k.shape[1] * k.shape[3] * k.element_size())

    def _own(self, made: Plan) -> list[Any]:
        """dout, q, k and v of this rank."""
        q, k, v = self.arrays
        given = [(self.dout, False), (q, False), (k, True), (v, True)]
        return [made.shard(x, self.rank, keys=keys) for x, keys in given]

    def _checked(self, made: Plan, ways: dict[str, Overlap]) -> dict[str, Any]:
        """How far this rank's results are from those of one device, and whether they come again to the bit."""
        import torch

        shared, on_one = _calls()
        dout, *own = self._own(made)
        alone = gradients(lambda *x: on_one(*x, self.mask), self.arrays, self.dout)
        far, same = 0.0, True
        for way in ways.values():
            turns = [gradients(partial(shared, plan=made, overlap=way), own, dout) for _ in range(2)]
            for at, (mine, whole) in enumerate(zip(turns[0], alone, strict=True)):
                expected = made.shard(whole, self.rank, keys=at > 1)
                if mine.numel():
                    gap = (mine.double() - expected.double()).abs().max()
                    found = float(gap / whole.double().abs().max())
                    # NaN is larger than no number.
                    far = max(far, found if math.isfinite(found) else math.inf)
            same = same and all(torch.equal(a, b) for a, b in zip(*turns, strict=True))
        worst, differs = self.slowest(far), self.slowest(0.0 if same else 1.0)
        shown = round(worst, 6) if math.isfinite(worst) else None
        return {"largest difference": shown, "right": worst <= CLOSE, "same bits": differs == 0}

    def _figures(self, made: Plan, backward: bool, ways: dict[str, Overlap]) -> _Figures:
        from omnicupy.parallel import check, peers
        from omnicupy.parallel.ranks import ranks_of
        from omnicupy.parallel.trip import Trip, sides, widths_of

        shared, on_one = _calls()
        dout, q, k, v = self._own(made)
        trip = Trip(made, ranks_of(None), 0, hides=False)
        peers.connect(trip, made, 0, (k, v), check.AUTO, LIMIT_S)
        local = made.local(self.rank)

        def exchanged(k: Any, v: Any) -> Any:
            if not made.travels():
                return [k, v]
            buffer, pending = trip.there((k, v), slice(None), (0, trip.own), LIMIT_S)
            pending.wait()
            return sides(buffer, widths_of((k, v)))

        def way() -> None:
            found = exchanged(k, v)
            if backward and made.travels():
                returned, pending = trip.back(found, False, LIMIT_S)
                pending.wait()
                trip.add(found, returned)

        keys, values = exchanged(k, v)
        run = forward_and_backward if backward else forward
        empty: Callable[[], Any] = lambda: None  # noqa: E731 - a rank without rows
        launch = run(lambda *x: on_one(*x, local), [q, keys, values], dout) if local is not None else empty
        return _Figures(
            self._alone(run),
            {
                name: self.time(run(partial(shared, plan=made, overlap=way), [q, k, v], dout))
                for name, way in ways.items()
            },
            self.time(way),
            self.time(launch),
        )

    def _alone(self, run: Callable[..., Any]) -> float:
        """Milliseconds of one device with everything, by either pass of torch_passes; once for all plans."""
        if run not in self._found:
            self._found[run] = self.time(run(ours_alone(self), self.arrays, self.dout))
        return self._found[run]

    def time(self, call: Callable[[], Any]) -> float:
        """Milliseconds of a call on the slowest rank, the median of samples."""
        import torch.distributed as dist

        took = []
        for turn in range(WARM_UP + SAMPLES):
            self._wait()
            dist.barrier()
            self._wait()
            sample = self._between_events(call) if self.device.type == "cuda" else self._on_the_clock(call)
            if turn >= WARM_UP:
                took.append(sample)
        return statistics.median(self._slowest_of(took))

    def _between_events(self, call: Callable[[], Any]) -> float:
        """From a cold L2 cache, and behind writes that last longer than Python takes to launch the call.

        The devices wait for each other behind the writes: their hosts are not at one place at one time, and a rank that
        began sooner would count its waiting as exchange.
        """
        import torch
        import torch.distributed as dist

        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSH_WRITES):
            self._flush.zero_()
        dist.all_reduce(self._signal)
        start.record()
        call()
        stop.record()
        self._wait()
        return float(start.elapsed_time(stop))

    def _on_the_clock(self, call: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def slowest(self, value: float) -> float:
        return self._slowest_of([value])[0]

    def _slowest_of(self, values: list[float]) -> list[float]:
        """The greatest of each value over the ranks."""
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [float(one) for one in found.tolist()]


def _calls() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The call of several ranks and that of one device."""
    import omnicupy.torch as ours

    return several.attention, ours.attention


def ours_alone(problem: Problem) -> Callable[..., Any]:
    """The call of one device, with everything."""
    return lambda *x: _calls()[1](*x, problem.mask)
