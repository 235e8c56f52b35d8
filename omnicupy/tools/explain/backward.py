"""Where the time of a backward pass goes, by the cost model and, with a GPU, by measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omnicupy.call.problem import Problem
from omnicupy.choose import backward_prediction, backward_table, variants
from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose.backward_ceilings import BackwardCeilings, KernelCeiling
from omnicupy.choose.backward_prediction import KernelWork, PassPrediction
from omnicupy.choose.ceilings import Ceilings
from omnicupy.errors import UnsupportedError
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.masks.mask import Mask
from omnicupy.masks.stats import MaskStats
from omnicupy.reference import checked_rows
from omnicupy.tools import environment
from omnicupy.tools.bench import measure, timing
from omnicupy.tools.bench.gradients import PASSES, Asked, Gradients
from omnicupy.tools.explain.explained import INDENT, Explained, Measured, mask_lines
from omnicupy.tools.explain.run import check_items, device_at_hand
from omnicupy.tools.explain.waste import Waste, waste_lines, wastes
from omnicupy.tools.workloads.workload import Workload


@dataclass(frozen=True)
class BackwardExplanation(Explained):
    """One backward pass explained. deterministic: of the call.  kernels: those that walk tiles, in the order of their
    launches, beside their speeds and the figures of the mask cut for each. The rest: as in Explained.
    """

    workload: Workload
    problem: Problem
    deterministic: bool
    kernels: tuple[KernelWork, ...]
    speeds: tuple[KernelCeiling, ...]
    stats: tuple[MaskStats, ...]
    device: choose_ceilings.Device
    prediction: PassPrediction
    wastes: tuple[Waste, ...]
    note: str = ""
    measured: Measured | None = None

    @property
    def flops(self) -> float:
        """Useful operations of the pass, as `bench --pass bwd` counts them."""
        return PASSES["bwd"].flops * self.workload.flops(self.stats[0].pairs)

    @property
    def named(self) -> list[str]:
        """Each kernel in words: "sm90 ordered 64x128-s2-w12"."""
        return [f"{of.kernel.kernel} {of.kernel.part} {_tile(of)}" for of in self.kernels]

    def as_json(self) -> dict[str, Any]:
        """All figures, for programs."""
        names = (*self.stats[0].__dataclass_fields__, "density", "tiles", "empty", "executed", "waste")
        return {
            "workload": self.workload.name,
            "pass": PASSES["bwd"].name,
            "problem": asdict(self.problem),
            "deterministic": self.deterministic,
            "kernels": [
                {
                    "kernel": name,
                    "us": self.prediction.kernels_us[of.kernel.part],
                    "ceiling": asdict(speeds),
                    "stats": {name: getattr(stats, name) for name in names},
                }
                for name, of, speeds, stats in zip(
                    self.named, self.kernels, self.speeds, self.stats, strict=True
                )
            ],
            "device": self.device.name,
            "note": self.note,
            "predicted_ms": self.predicted_ms,
            "bound_ms": self.prediction.bound_us / 1e3,
            **self._json(),
        }

    def __str__(self) -> str:
        executed = max(1, self.stats[0].executed)
        return "\n".join((*self._sizes(), *self._time(), *waste_lines(self.wastes, executed)))

    def _sizes(self) -> list[str]:
        order = "in one order" if self.deterministic else "in any order"
        lines = [
            self._problem(),
            f"pass       backward, sums {order}",
            f"kernels    {', '.join(self.named)} for {self.kernels[0].kernel.arch}",
        ]
        for number, stats in enumerate(self.stats):
            lines += mask_lines(stats)[2 if number else 0 :]  # the mask and its pairs are the same ones
        return lines

    def _time(self) -> list[str]:
        of = self.prediction
        lines = self._predicted()
        if len(self.kernels) > 1:
            each = ", ".join(f"{name} {us / of.us:.1%}" for name, us in of.kernels_us.items())
            lines.append(f"{INDENT}by kernels: {each}")
        lines.append(
            f"bound      {of.bound_us / 1e3:.4f} ms with the allowed pairs alone, as FULL tiles; the prediction is "
            f"{of.us / of.bound_us:.2f} x that"
        )
        start = f"ceilings   {self.device.name}: "
        for work, one in zip(self.kernels, self.speeds, strict=True):
            tile = f"{work.kernel.br} x {work.kernel.bc}"
            skipped = (
                f"; one that a warpgroup skips takes {one.skipped_ps / one.pair_ps:.0%} of its time"
                if one.part == "dq"
                else ""
            )
            lines.append(
                f"{start}{one.part} {one.full_tflops(self.device.sm_count):.0f} TFLOP/s over full tiles of {tile}; "
                f"a pair of a partial tile takes {one.partial_ps / one.pair_ps:+.0%}, "
                f"of a causal one {one.causal_ps / one.pair_ps:+.0%}{skipped}"
            )
            start = INDENT
        return [*lines, *self._measured()]


def run(workload: Workload, dtype: str, *, deterministic: bool = True) -> BackwardExplanation:
    """Explain the backward pass of a workload: with a GPU on it and measured there, else on the device of the ceilings.

    dtype: "bfloat16" or "float16".  deterministic: of the call. Raises ValueError for more work items than can be
    played, UnsupportedError where the model or the library does not serve the problem.
    """
    gpu = environment.has_gpu()
    known, name = choose_ceilings.load(), environment.device()["name"] if gpu else None
    having, ceilings, note = _nearest(known, name)
    device, arch = device_at_hand(having, gpu)
    mask = workload.mask()
    problem = workload.problem(mask, dtype)
    if gpu:
        spec = backward_table.select(arch, problem, (mask,), device.sm_count, deterministic=deterministic)
    else:
        spec = backward_table.chosen_for(arch, problem, (mask,), deterministic=deterministic)
    owned = min(spec.dkdv.bc, spec.dq.br)
    check_items(problem, -(-max(mask.shape) // owned))
    work = backward_prediction.work_of(spec, problem, mask, device, deterministic=deterministic)
    first = work.kernels[0].kernel
    if gpu:
        measure.check_memory(workload, mask)
    return BackwardExplanation(
        workload,
        problem,
        deterministic,
        work.kernels,
        tuple(backward_prediction.ceilings_of(work, ceilings)),
        tuple(mask.stats(one.kernel.br, one.kernel.bc) for one in work.kernels),
        device if gpu else having.device,
        backward_prediction.predict(work, ceilings),
        tuple(wastes(mask, mask.blocks(first.br, first.bc))),
        note,
        _measure(workload, mask, dtype, deterministic=deterministic) if gpu else None,
    )


def _tile(work: KernelWork) -> str:
    of = work.kernel
    return variants.tile_word(TileShape(of.br, of.bc, of.stages, of.warps))


def _nearest(devices: Sequence[Ceilings], name: str | None) -> tuple[Ceilings, BackwardCeilings, str]:
    """The ceilings of a device by its name, and "" or a sentence that says whose they are instead."""
    having = [(one, one.backward) for one in devices if one.backward is not None]
    if not having:
        raise UnsupportedError(
            "explain: no ceilings of the backward pass are known; measure `bench fit --pass bwd` and fit them with "
            "`explain --pass bwd --fit RECORD`"
        )
    for one, backward in having:
        if one.device.name == name:
            return one, backward, ""
    found, backward = having[0]
    asked = f"{name} has not been measured" if name else "there is no GPU here"
    return found, backward, f"{asked}: these are the ceilings of {found.device.name}"


def _measure(workload: Workload, mask: Mask, dtype: str, *, deterministic: bool) -> Measured:
    """The median time of a call for all gradients from a cold L2 cache, after these were held against the reference."""
    import cupy

    made = Gradients(workload, mask, measure.make_inputs(workload, mask, dtype), dtype)
    call = made.call(PASSES["bwd"], mask, None, Asked(free=not deterministic))
    error = made.judge().error(call())
    if not error <= checked_rows.TOLERANCE:
        raise ValueError(
            f"explain: the gradients are wrong (error {error:.3g} of the reference's, allowed "
            f"{checked_rows.TOLERANCE}); verify them (`python cli.py verify`)"
        )
    return Measured(timing.Clock(cupy).interleaved({"call": call})["call"].median_ms, error)
