"""What a record of the sparsity suite shows: time against executed pairs, and where one system overtakes another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from omnicupy.tools.bench.records import OURS, Row

SPARSE, DENSE = "sparse", "full"
NO_MASK = f"{OURS}:nomask"


@dataclass(frozen=True)
class Group:
    """Workloads of one size that differ by their mask alone. sizes: head_dim and tokens.

    sparse: rows of the sparse masks, by ascending density.  dense: rows of the full one.
    """

    sizes: tuple[int, int]
    sparse: tuple[Row, ...]
    dense: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The sizes in words."""
        return f"D {self.sizes[0]}, S {self.sizes[1]}"

    def systems(self) -> list[str]:
        """Systems with a time on some mask that is not full, ours first."""
        found = dict.fromkeys(row["system"] for row in self.sparse if row["density"] < 1)
        return sorted(found, key=lambda name: (name != OURS, list(found).index(name)))

    def curve(self, system: str) -> list[tuple[float, float]]:
        """(density, ms) of a system by ascending density, the medians of masks of one density; full ones too."""
        rows = [row for row in (*self.sparse, *self.dense) if row["system"] == system]
        return sorted((row["density"], row["ms"]) for row in rows)

    def dense_ms(self, system: str) -> float | None:
        """The time of dense attention on a system, None where it was not measured."""
        return next((row["ms"] for row in self.dense if row["system"] == system), None)

    def best_dense(self) -> tuple[str, float] | None:
        """The rival that is fastest without a mask, and its milliseconds; None without any."""
        found = [(row["ms"], row["system"]) for row in self.dense if not row["system"].startswith(OURS)]
        return (min(found)[1], min(found)[0]) if found else None


@dataclass(frozen=True)
class Line:
    """ms = launch_ms + executed pairs over pairs_per_ms, both fitted by least squares of relative errors.

    launch_ms: what a call takes that has no pairs: besides its launch also memory and work items, of which there are as
    many at any density.  r_squared: of milliseconds, not of relative errors.
    residuals: (density, measured over fitted, less one) of each mask.
    """

    launch_ms: float
    pairs_per_ms: float
    r_squared: float
    residuals: tuple[tuple[float, float], ...]

    @property
    def worst(self) -> float:
        """The largest residual."""
        return max((abs(residual) for _, residual in self.residuals), default=0.0)


@dataclass(frozen=True)
class Crossing:
    """Below `density` a system is faster than a rival. None where it always or never is: `always` says which, as
    "faster" or "slower"; else that is "".
    """

    system: str
    rival: str
    density: float | None
    always: str = ""


def groups(rows: Iterable[Row]) -> list[Group]:
    """The groups of a record's rows that hold sparse masks; rows without a right result are left out."""
    sparse: dict[tuple[int, int], list[Row]] = {}
    dense: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        if not row.get("ms") or row.get("correct") is False or "shape" not in row:
            continue
        kind = str(row["workload"]).partition("-")[0]
        sizes = row["shape"][5], row["shape"][3]
        if kind in (SPARSE, DENSE):
            (sparse if kind == SPARSE else dense).setdefault(sizes, []).append(row)
    return [
        Group(
            sizes,
            tuple(sorted(of_group, key=lambda row: float(row["density"]))),
            tuple(dense.get(sizes, [])),
        )
        for sizes, of_group in sparse.items()
    ]


def executed_pairs(row: Row) -> float:
    """Pairs of the visited tiles of all heads and batch elements of one of our rows."""
    batch, heads, _, q_len, k_len, _ = row["shape"]
    return float(batch * heads * q_len * k_len * row["density"] / row["useful"])


def line(group: Group) -> Line:
    """Time against executed pairs of our rows. Raises ValueError for fewer than three masks."""
    rows = [row for row in group.sparse if row["system"] == OURS]
    if len(rows) < 3:
        raise ValueError(f"sparsity: a line needs three masks or more of {group.name}, got {len(rows)}")
    pairs, ms = np.array([executed_pairs(row) for row in rows]), np.array([row["ms"] for row in rows])
    design = np.column_stack([np.ones(len(rows)), pairs / pairs.max()])
    launch, slope = np.linalg.lstsq(design / ms[:, None], np.ones(len(rows)), rcond=None)[0]
    fitted = design @ np.array([launch, slope])
    spread = float(((ms - ms.mean()) ** 2).sum())
    return Line(
        float(launch),
        float(pairs.max() / slope),
        1 - float(((ms - fitted) ** 2).sum()) / spread,
        tuple((float(row["density"]), float(m / f - 1)) for row, m, f in zip(rows, ms, fitted, strict=True)),
    )


def crossing(group: Group, system: str, rival_ms: float, rival: str) -> Crossing:
    """Below which density `system` takes less than `rival_ms`, the time of a rival that looks at every pair.

    Between two masks times are interpolated, both on logarithmic scales.
    """
    curve = _one_time_a_density(group.curve(system))
    below = [ms < rival_ms for _, ms in curve]
    if not curve or all(below) or not any(below):
        return Crossing(system, rival, None, "faster" if curve and all(below) else "slower")
    for (x0, y0), (x1, y1) in reversed(list(pairwise(curve))):
        if y0 < rival_ms <= y1:
            share = float(np.log(rival_ms / y0) / np.log(y1 / y0))
            return Crossing(system, rival, float(x0 * (x1 / x0) ** share))
    return Crossing(system, rival, None, "slower")


def crossings(group: Group) -> list[Crossing]:
    """Each system's crossing with the rival that is fastest without a mask; [] where none was measured."""
    best = group.best_dense()
    if best is None:
        return []
    return [crossing(group, system, best[1], best[0]) for system in group.systems()]


def full_objects(group: Group) -> dict[str, float]:
    """Full masks made in several ways: time over that of no mask at all, by the words of measure.FULL_OBJECTS."""
    none = group.dense_ms(NO_MASK)
    if not none:
        return {}
    found = {row["system"]: row["ms"] / none for row in group.dense if row["system"].startswith(OURS)}
    return {name: ratio for name, ratio in found.items() if name != NO_MASK}


def _one_time_a_density(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Masks of nearly one density (within a tenth) as their means, so that noise makes no crossing."""
    found: list[list[tuple[float, float]]] = []
    for density, ms in curve:
        if found and density <= 1.1 * found[-1][0][0]:
            found[-1].append((density, ms))
        else:
            found.append([(density, ms)])
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in found]
