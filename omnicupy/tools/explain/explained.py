"""What the explanations of both passes say alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from omnicupy.call.problem import Problem
from omnicupy.choose.backward_prediction import PassPrediction
from omnicupy.choose.prediction import Prediction
from omnicupy.masks.stats import MaskStats
from omnicupy.tools.explain.waste import Waste
from omnicupy.tools.workloads.workload import Workload

INDENT = " " * 11


@dataclass(frozen=True)
class Measured:
    """A variant's time on the GPU at hand. error: of checked rows, over the same-precision reference's."""

    ms: float
    error: float


class Explained:
    """One pass explained; a dataclass with these fields.

    note: whose ceilings they are where they are not of the device at hand, else "".
    """

    workload: Workload
    problem: Problem
    prediction: Prediction | PassPrediction
    wastes: tuple[Waste, ...]
    note: str
    measured: Measured | None

    @property
    def flops(self) -> float:
        """Useful operations."""
        raise NotImplementedError

    @property
    def predicted_ms(self) -> float:
        """The predicted time."""
        return self.prediction.us / 1e3

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one; None where nothing was measured."""
        return None if self.measured is None else self.predicted_ms / self.measured.ms - 1

    def _json(self) -> dict[str, Any]:
        """The time, and what it is made of."""
        return {
            "parts_us": self.prediction.parts_us,
            "balance": self.prediction.balance,
            "work_items": self.prediction.items,
            "slots": self.prediction.slots,
            "measured": None if self.measured is None else asdict(self.measured),
            "error": self.error,
            "wastes": [asdict(one) for one in self.wastes],
        }

    def _problem(self) -> str:
        of = self.problem
        return (
            f"problem    {self.workload.name}: {of.dtype}, batch {of.batch}, {of.q_heads} query heads on "
            f"{of.kv_heads}, head_dim {of.head_dim}"
        )

    def _predicted(self) -> list[str]:
        of = self.prediction
        shares = ", ".join(f"{name} {us / of.us:.1%}" for name, us in of.parts_us.items() if us)
        return [
            f"work       {of.items:,} work items for {of.slots} thread blocks at once; balance {of.balance:.1%}",
            f"predicted  {self.predicted_ms:.4f} ms, {self.flops / of.us / 1e6:.0f} TFLOP/s useful",
            f"{INDENT}{shares}",
        ]

    def _measured(self) -> list[str]:
        """The note, and what was measured."""
        lines = [f"{INDENT}{self.note}"] if self.note else []
        if self.measured is not None and self.error is not None:
            lines.append(
                f"measured   {self.measured.ms:.4f} ms, {self.flops / self.measured.ms / 1e9:.0f} TFLOP/s useful; "
                f"the prediction is {abs(self.error):.1%} too {'long' if self.error > 0 else 'short'}"
            )
        return lines


def mask_lines(stats: MaskStats) -> list[str]:
    """The figures of a mask, in the columns of an explanation."""
    return [
        line.replace("  ", "   ", 1) if line[0] != " " else f" {line}" for line in str(stats).splitlines()
    ]
