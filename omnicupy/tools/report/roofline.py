"""The bounds of each measurement: tensor cores, exponentials and memory, from what the record itself measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omnicupy.choose import prediction
from omnicupy.tools.bench.records import OURS, Row, caption, problem_of
from omnicupy.tools.explain import devices
from omnicupy.tools.report import style as plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Content = dict[str, Any]

# ex2 a clock of one multiprocessor: CUDA C++ Programming Guide, table "Throughput of native arithmetic
# instructions", compute capability 9.0.
EX2_A_CLOCK = 16
MOST_SHOWN = 2.0  # times the matrix product's rate: a ceiling above it bounds nothing


@dataclass(frozen=True)
class Bounds:
    """What one call can take at least, in milliseconds, and what it took. executed: pairs of visited tiles count.

    tensor: its products at the rate of the run's large matrix product.  exponentials: one ex2 a pair at the clock
    before the run; None where that is not recorded.  memory: q, k, v and the result once at the rate of the run's
    copies, None likewise.  intensity: useful operations a byte of these.
    """

    workload: str
    spec: str
    head_dim: int
    ms: float
    tensor: float
    exponentials: float | None
    memory: float | None
    intensity: float
    tflops: float

    @property
    def bound(self) -> tuple[str, float]:
        """The bound that is longest, and its time."""
        of = {"tensor cores": self.tensor, "exponentials": self.exponentials, "memory": self.memory}
        known = {name: ms for name, ms in of.items() if ms is not None}
        name = max(known, key=lambda one: known[one])
        return name, known[name]


def bounds(rows: Iterable[Row], content: Content) -> list[Bounds]:
    """The bounds of our right results in a record; [] for a record without a matrix product."""
    gemm = content.get("gemm_tflops")
    rate = ex2_tera(content)
    found = []
    for row in rows:
        if (
            not gemm
            or not row["system"].startswith(OURS)
            or not row.get("executed_tflops")
            or not row.get("correct")
        ):
            continue
        problem = problem_of(row, content)
        flops = row["executed_tflops"] * row["ms"] * 1e9
        size = prediction.operand_bytes(problem)
        found.append(
            Bounds(
                row["workload"],
                row["spec"],
                problem.head_dim,
                row["ms"],
                flops / gemm / 1e9,
                flops / (4 * problem.head_dim) / rate / 1e9 if rate else None,
                size / content["copy_tbps"] / 1e9 if content.get("copy_tbps") else None,
                row["tflops"] * row["ms"] * 1e9 / size,
                row["tflops"],
            )
        )
    return found


def ex2_tera(content: Content) -> float | None:
    """10^12 exponentials a second of a record's device at its clock before the run; None where that is unknown."""
    clock = (content.get("clocks_before") or {}).get("clocks.sm")
    if not clock:
        return None
    return EX2_A_CLOCK * devices.device_of(content).sm_count * float(clock) / 1e6


def picture(rows: Sequence[Row], content: Content) -> Figure:
    """Rates against operations a byte, below the three ceilings of the run."""
    found = [one for one in bounds(rows, content) if "plain" not in one.spec]
    made, axes = plot_style.figure("Roofline", caption(content), (8.0, 5.4))
    panel = axes[0, 0]
    dims = sorted({one.head_dim for one in found})
    kernels = sorted({one.spec.partition("-")[0] for one in found}, reverse=True)
    markers = dict(zip(dims, "os^Dvp", strict=False))
    for kernel in kernels:
        for dim in dims:
            of = [one for one in found if one.head_dim == dim and one.spec.startswith(kernel)]
            panel.plot(
                [one.intensity for one in of],
                [one.tflops for one in of],
                linestyle="none",
                marker=markers[dim],
                markersize=7,
                markerfacecolor="#4f86c6" if kernel == kernels[0] else "none",
                markeredgecolor=plot_style.INK,
                label=f"{kernel}, D {dim}" if of else None,
            )
    low, high = min(one.intensity for one in found) / 2, max(one.intensity for one in found) * 2
    panel.hlines(
        content["gemm_tflops"],
        low,
        high,
        colors=plot_style.INK,
        linestyles="-",
        label="8192^3 matrix product",
    )
    rate = ex2_tera(content)
    dashes = ((0, (6, 2)), (0, (3, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 1)), (0, (2, 4)))
    if rate:
        near = [dim for dim in dims if 4 * dim * rate < MOST_SHOWN * content["gemm_tflops"]]
        for dim, dash in zip(near, dashes, strict=False):
            level, name = 4 * dim * rate, f"exponentials, D {dim}"
            panel.hlines(level, low, high, colors="#d1495b", linestyles=[dash], label=name)
    if content.get("copy_tbps"):
        reach = [low, min(high, content["gemm_tflops"] / content["copy_tbps"])]
        panel.plot(
            reach,
            [content["copy_tbps"] * one for one in reach],
            color="#2a9d62",
            linestyle="-.",
            label="copies",
        )
    plot_style.logarithmic(panel, "x")
    plot_style.logarithmic(panel, "y")
    plot_style.label(panel, "", "useful operations a byte of q, k, v and the result", "useful TFLOP/s")
    plot_style.legend(made, axes.flat)
    return made
