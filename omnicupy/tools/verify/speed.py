"""The speed part of the report: every kernel on a few problems, beside the naive kernel and FlexAttention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omnicupy.api import attention
from omnicupy.jit.build import Track, silent
from omnicupy.masks.constructors import causal, full
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import random
from omnicupy.reference import checked_rows
from omnicupy.tools.bench import measure, peers, timing, torch_inputs
from omnicupy.tools.verify.cases import BASE, Case
from omnicupy.tools.verify.on_gpu import Target
from omnicupy.tools.workloads.workload import Workload

SAMPLES = 8
FLEX_LIMIT_S = 45.0
FLEX_MOST_COLUMNS = 256  # above it FlexAttention compiles for minutes


def _workload(name: str, sizes: tuple[int, int, int], mask: Callable[[], Mask]) -> Workload:
    return Workload(name, 2, sizes, mask, "")


WORKLOADS = (
    _workload("full, S 4096, D 64", (16, 16, 64), lambda: full(4096)),
    _workload("causal, S 4096, D 128", (16, 16, 128), lambda: causal(4096)),
    _workload("random, S 4096, D 64", (16, 16, 64), lambda: random(4096, 0)),
    _workload("random, S 4096, D 128", (16, 16, 128), lambda: random(4096, 0)),
    _workload("causal, S 2048, D 512", (8, 8, 512), lambda: causal(2048)),
)


@dataclass(frozen=True)
class Timed:
    """A kernel on a problem. error: of checked rows, over that of the same-precision reference (None: it
    failed).

    over_naive, over_flex: how many times faster than these; None where they did not run.
    """

    kernel: str
    workload: str
    error: float | None
    ms: float | None = None
    tflops: float | None = None
    over_naive: float | None = None
    over_flex: float | None = None
    problem: str = ""

    @property
    def passed(self) -> bool:
        """True where it ran and was right."""
        return not self.problem


def chosen(parts: Sequence[str]) -> list[Workload]:
    """The workloads whose name holds one of the parts, in any case; all without parts."""
    return [one for one in WORKLOADS if not parts or any(part.lower() in one.name.lower() for part in parts)]


def case_of(workload: Workload, mask: Mask) -> Case:
    """A case with the sizes of a workload, which the same kernels serve."""
    q_len, k_len = mask.shape
    case = replace(BASE, group="timed", mask="full", dtype="bfloat16", head_dim=workload.head_dim)
    case = replace(case, batch=workload.batch)
    return replace(case, q_len=q_len, k_len=k_len, q_heads=workload.q_heads, kv_heads=workload.kv_heads)


def run(
    target: Target, workloads: Sequence[Workload], track: Track = silent, *, with_flex: bool = True
) -> list[Timed]:
    """Every kernel of the target on every workload, in bfloat16."""
    found: list[Timed] = []
    for workload in track(workloads, "timing", len(workloads)):
        found.extend(_run_one(workload, target, with_flex))
    return found


def _run_one(workload: Workload, target: Target, with_flex: bool) -> list[Timed]:
    import cupy

    mask = workload.mask()
    case = case_of(workload, mask)
    arrays = measure.make_inputs(workload, mask, "bfloat16")
    judge = checked_rows.CheckedRows(arrays, mask)
    calls: dict[str, Callable[[], Any]] = {}
    errors: dict[str, float] = {}
    failed = []
    for variant in target.variants(case, [mask]):

        def call(config: Any = variant.config) -> Any:
            return attention(*arrays, mask, config=config)

        try:
            errors[variant.name] = judge.error(call())
            calls[variant.name] = call
        except Exception as error:
            failed.append(
                Timed(variant.name, workload.name, None, problem=f"{type(error).__name__}: {error}")
            )
    wanted = with_flex and calls and workload.head_dim <= FLEX_MOST_COLUMNS
    flex = _flex(workload, mask, arrays) if wanted else None
    if flex:
        calls["flex"] = flex
    times = timing.Clock(cupy).interleaved(calls, SAMPLES)
    flops = workload.flops(mask.pairs)
    return failed + [_timed(name, workload.name, errors[name], times, flops) for name in errors]


def _timed(name: str, workload: str, error: float, times: dict[str, timing.Timing], flops: float) -> Timed:
    ms = times[name].median_ms
    naive, flex = times.get("naive"), times.get("flex")
    wrong = f"error {error:.3g} of the reference's, allowed {checked_rows.TOLERANCE}"
    return Timed(
        kernel=name,
        workload=workload,
        error=error,
        ms=ms,
        tflops=flops / ms / 1e9,
        over_naive=naive.median_ms / ms if naive else None,
        over_flex=flex.median_ms / ms if flex else None,
        problem="" if error <= checked_rows.TOLERANCE else wrong,
    )


def _flex(workload: Workload, mask: Mask, arrays: tuple[Any, Any, Any]) -> Callable[[], Any] | None:
    """FlexAttention's call; None where torch is missing or it cannot run the problem."""
    try:
        return peers.prepare("flex", torch_inputs.Shared(workload, mask, arrays), FLEX_LIMIT_S).call
    except Exception:  # a rival that fails is a blank in the table, not a failure of ours
        return None
