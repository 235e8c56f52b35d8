"""What stands behind `explain`: where the time of one call goes, by the cost model and, with a GPU, by measuring."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from omnicupy.api import attention
from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, pick, prediction, variants
from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose.ceilings import Ceiling, Ceilings
from omnicupy.choose.prediction import Prediction
from omnicupy.errors import UnsupportedError
from omnicupy.jit import archs
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.mask import Mask
from omnicupy.masks.stats import MaskStats
from omnicupy.reference import checked_rows
from omnicupy.tools import environment
from omnicupy.tools.bench import measure, timing
from omnicupy.tools.explain.explained import INDENT, Explained, Measured, mask_lines
from omnicupy.tools.explain.waste import Waste, waste_lines, wastes
from omnicupy.tools.workloads.workload import Workload

MOST_ITEMS = 2_000_000  # of the model: a few seconds
DEFAULT_ARCH = "sm_90"  # without a GPU: that of the ceilings that ship with the library


@dataclass(frozen=True)
class Explanation(Explained):
    """One call explained. backward: the kernels of its backward pass in words, and those where sums may have any order.
    The rest: as in Explained.
    """

    workload: Workload
    problem: Problem
    spec: AttnSpec
    stats: MaskStats
    ceilings: Ceilings
    ceiling: Ceiling
    prediction: Prediction
    wastes: tuple[Waste, ...]
    backward: tuple[str, str]
    note: str = ""
    measured: Measured | None = None

    @property
    def flops(self) -> float:
        """Useful operations of the call."""
        return self.workload.flops(self.stats.pairs)

    def as_json(self) -> dict[str, Any]:
        """All figures, for programs."""
        names = (*self.stats.__dataclass_fields__, "density", "tiles", "empty", "executed", "waste")
        return {
            "workload": self.workload.name,
            "problem": asdict(self.problem),
            "variant": variants.word(self.spec),
            "backward": dict(zip(("deterministic", "any_order"), self.backward, strict=True)),
            "stats": {name: getattr(self.stats, name) for name in names},
            "ceilings": {**asdict(self.ceiling), "device": self.ceilings.device.name, "note": self.note},
            "predicted_ms": self.predicted_ms,
            **self._json(),
        }

    def __str__(self) -> str:
        return "\n".join(
            (*self._sizes(), *self._time(), *waste_lines(self.wastes, max(1, self.stats.executed)))
        )

    def _sizes(self) -> list[str]:
        return [
            self._problem(),
            f"variant    {variants.word(self.spec)} for {self.spec.arch}",
            f"gradients  {self.backward[0]}",
            f"{INDENT}with deterministic=False: {self.backward[1]}",
            *mask_lines(self.stats),
        ]

    def _time(self) -> list[str]:
        rate = self.ceiling.full_tflops(self.ceilings.device.sm_count)
        return [
            *self._predicted(),
            f"ceilings   {self.ceilings.device.name}: {rate:.0f} TFLOP/s over full tiles; a pair of a partial "
            f"tile takes {self.ceiling.partial_ps / self.ceiling.pair_ps:+.0%}, of a causal one "
            f"{self.ceiling.causal_ps / self.ceiling.pair_ps:+.0%}; one that a warpgroup skips takes "
            f"{self.ceiling.skipped_ps / self.ceiling.pair_ps:.0%} of its time",
            *self._measured(),
        ]


def run(workload: Workload, dtype: str, variant: str | None = None) -> Explanation:
    """Explain a call of a workload: with a GPU on it and measured there, else on the device of the ceilings.

    dtype: "bfloat16" or "float16".  variant: a word of bench.configs, None for what a call gets. Raises ValueError
    for a word of another form and for more work items than can be played, UnsupportedError where the model or the
    library does not serve the problem.
    """
    gpu = environment.has_gpu()
    known, name = choose_ceilings.load(), environment.device()["name"] if gpu else None
    device, arch = device_at_hand(known[0], gpu)
    mask = workload.mask()
    problem = workload.problem(mask, dtype)
    if variant:
        spec = variants.parse(variant, arch, dtype, problem.head_dim, problem.value_dim)
    else:
        choose = pick.select if gpu else pick.pick  # tuned choices are of the GPU at hand
        spec = choose(arch, problem, (mask,), device.sm_count)
    ceilings, note = choose_ceilings.nearest(known, name, spec.kernel)
    device = device if gpu else ceilings.device
    height = spec.tokens(problem.group)
    check_items(problem, -(-problem.q_len // height))
    if gpu:
        measure.check_memory(workload, mask)
    blocks = mask.blocks(height, spec.bc)
    ceiling = ceilings.at(spec.kernel, spec.mean_columns, spec.rows)
    return Explanation(
        workload,
        problem,
        spec,
        mask.stats(height, spec.bc),
        ceilings,
        ceiling,
        prediction.predict(prediction.work_of(spec, problem, blocks, device), ceiling),
        tuple(wastes(mask, blocks)),
        _backward(arch, problem, mask, device.sm_count, tuned=gpu),
        note,
        _measure(workload, mask, spec) if gpu else None,
    )


def _backward(arch: str, problem: Problem, mask: Mask, sm_count: int, *, tuned: bool) -> tuple[str, str]:
    """The kernels of the call's backward pass, and those where sums may have any order; or why there are none. tuned:
    are the user's choices looked up?
    """

    def kernels(deterministic: bool) -> str:
        try:
            if tuned:
                spec = backward_table.select(arch, problem, (mask,), sm_count, deterministic=deterministic)
            else:
                spec = backward_table.chosen_for(arch, problem, (mask,), deterministic=deterministic)
        except UnsupportedError as error:
            return str(error)
        name, tile = ("ordered", spec.ordered) if deterministic else ("fused", spec.fused)
        if tile is None:
            return f"{variants.word(replace(spec, fused=None, ordered=None))} for {spec.arch}"
        return f"{spec.kernel} {name} {variants.tile_word(tile)} for {spec.arch}"

    return kernels(True), kernels(False)


def check_items(problem: Problem, rows: int) -> None:
    """Raises ValueError for more work items than are played one by one. rows: block rows, or blocks of keys."""
    if (items := problem.batch * problem.q_heads * rows) > MOST_ITEMS:
        raise ValueError(
            f"explain: expected at most {MOST_ITEMS} block rows of all heads, whose turns are played one by one, got "
            f"{items}; give a smaller --batch"
        )


def device_at_hand(ceilings: Ceilings, gpu: bool) -> tuple[choose_ceilings.Device, str]:
    """The device that is described and its architecture."""
    if not gpu:
        return ceilings.device, DEFAULT_ARCH
    import cupy

    from omnicupy.gpu.device import device_info

    info = device_info(cupy.cuda.Device().id)
    named = choose_ceilings.Device(environment.device()["name"], info.sm_count, info.l2_bytes)
    return named, archs.arch_of(info.major, info.minor)


def _measure(workload: Workload, mask: Mask, spec: AttnSpec) -> Measured:
    """The median time of a call from a cold L2 cache, after its checked rows were held against the reference."""
    import cupy

    arrays = measure.make_inputs(workload, mask, spec.dtype)

    def call() -> Any:
        return attention(*arrays, mask, config=spec)

    error = checked_rows.CheckedRows(arrays, mask).error(call())
    if not error <= checked_rows.TOLERANCE:
        raise ValueError(
            f"explain: {variants.word(spec)} gives a wrong result (error {error:.3g} of the reference's, allowed "
            f"{checked_rows.TOLERANCE}); verify it (`python cli.py verify`)"
        )
    return Measured(timing.Clock(cupy).interleaved({"call": call})["call"].median_ms, error)
