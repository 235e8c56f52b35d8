"""Ceilings of the cost model, fitted by least squares on benchmark records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose import prediction, table, variants
from omnicupy.choose.ceilings import Ceiling, Ceilings, Device, FloatArray
from omnicupy.choose.prediction import TERMS, Work
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools.bench import records
from omnicupy.tools.bench.records import OURS, Row
from omnicupy.tools.explain.devices import device_of, one_device
from omnicupy.tools.explain.least_squares import not_negative
from omnicupy.tools.explain.tile_costs import fit_tiles
from omnicupy.tools.workloads import words

# A work item's own time is fitted as that of so many query elements and in proportion for other blocks, because it goes
# into fetching Q and storing the result.
ITEM_ELEMENTS = 128 * 128
TURNS = 40  # of fitting and assigning anew
SETTLED = 1e-4
# Columns after those of the head_dims: all but one of TERMS, the launch and megabytes.
SHARED = len(TERMS) + 1


@dataclass(frozen=True)
class Point:
    """One measurement: which variant took how long for which work."""

    workload: str
    suite: str
    spec: AttnSpec
    work: Work
    us: float


@dataclass(frozen=True)
class Residual:
    """A measurement beside what the model says. error: predicted over measured, less one."""

    point: Point
    predicted_us: float

    @property
    def error(self) -> float:
        """Share by which the prediction is too long."""
        return self.predicted_us / self.point.us - 1


@dataclass(frozen=True)
class Fitted:
    """Ceilings, how well they fit, and how well fits on all other measurements predict each one."""

    ceilings: Ceilings
    residuals: tuple[Residual, ...]
    held_out: tuple[Residual, ...]

    def __str__(self) -> str:
        sm_count = self.ceilings.device.sm_count
        lines = [f"{self.ceilings.device.name}, {len(self.residuals)} measurements"]
        for one in self.ceilings.of:
            partial, causal, skipped = (
                extra / one.pair_ps for extra in (one.partial_ps, one.causal_ps, one.skipped_ps)
            )
            lines.append(
                f"{one.kernel} head_dim {one.head_dim:4}, {one.br:3} rows: {one.full_tflops(sm_count):4.0f} TFLOP/s "
                f"over full tiles; partial {partial:+.0%}, causal {causal:+.0%}, skipped {skipped:.0%} a pair; "
                f"item {one.item_us:.2f} us; launch {one.launch_us:.1f} us + {one.megabyte_us:.3f} us a MB"
            )
        for name, of in (("fitted", self.residuals), ("held out", self.held_out)):
            worst = max(of, key=lambda one: abs(one.error), default=None)
            if worst:
                errors = [abs(one.error) for one in of]
                lines.append(
                    f"{name:9} error {np.median(errors):.1%} in the median, at most {abs(worst.error):.1%} "
                    f"({worst.point.workload}, {variants.word(worst.point.spec)})"
                )
        return "\n".join(lines)


def from_files(paths: Sequence[Path], out: Path | None = None) -> Fitted:
    """Fit the records of one device and put its ceilings into `out` (None: the library's own file).

    Raises ValueError for records of several devices, and what fit() and records.load() raise.
    """
    contents = [records.load(path) for path in paths]
    device = one_device(contents)
    measured = [point for content in contents for point in points(content)]
    ceilings = fit(device, measured, [path.name for path in paths])
    target = out or choose_ceilings.FILE
    kept = _kept(device, target)
    tiles = fit_tiles(contents, device) or kept.tiles
    ceilings = replace(ceilings, tiles=tiles, backward=kept.backward)
    choose_ceilings.save(ceilings, target)
    return Fitted(ceilings, tuple(residuals(ceilings, measured)), tuple(held_out(measured)))


def _kept(device: Device, path: Path) -> Ceilings:
    """What a file has for a device: the costs of competing tiles stay where no record tells them, and those of the
    backward pass.
    """
    known = choose_ceilings.load(path) if path.exists() else []
    return next((one for one in known if one.device.name == device.name), Ceilings(device, ()))


def points(content: dict[str, Any]) -> list[Point]:
    """The measurements of a record that the model describes: right results of what the table chose, then or now.

    Of a choice of now on a problem with fewer rows than its tile, nothing: it would not be chosen there.
    """
    device, arch, dtype = device_of(content), content["arch"], content["dtype"]
    found = []
    for row in content["rows"]:
        if not _usable(row):
            continue
        problem = records.problem_of(row, content)
        spec = variants.parse(row["spec"], arch, dtype, problem.head_dim, problem.value_dim)
        if row["system"] != OURS and (
            spec not in _table(arch, dtype, spec.head_dim, spec.value_dim)
            or spec.tokens(problem.group) > problem.q_len
        ):
            continue
        mask = words.of_record(row["workload"], row["shape"]).mask()
        blocks = mask.blocks(spec.tokens(problem.group), spec.bc)
        work = prediction.work_of(spec, problem, blocks, device)
        suite = records.suite_of(row, content)
        found.append(Point(row["workload"], suite, spec, work, 1e3 * row["ms"]))
    return found


def fit(device: Device, measured: Sequence[Point], sources: Sequence[str] = ()) -> Ceilings:
    """Ceilings that make the least squares of relative errors.

    For each kernel a time a pair at each head_dim and tile height, and, shared by these, what PARTIAL and CAUSAL
    pairs take longer, the time of a skipped pair, of a work item and of a launch; for all kernels that of a megabyte,
    which the kernel with the most measurements tells, because memory is the device's; none below zero. Which
    multiprocessor ends last, and how much of its time memory hides, depend on them, so fitting and assigning take
    turns. Raises ValueError when a kernel has fewer measurements than numbers.
    """
    found: list[Ceiling] = []
    for kernel, of_kernel in _by_kernel(measured):
        found += _fit_kernel(kernel, of_kernel, found[0].megabyte_us if found else None)
    if not found:
        raise ValueError(
            "fit: the records hold no measurement of a variant that the table names; measure vlm and dense"
        )
    return Ceilings(device, tuple(found), tuple(sources))


def residuals(ceilings: Ceilings, measured: Sequence[Point]) -> list[Residual]:
    """Each measurement beside its prediction; those of kernels without ceilings are left out."""
    known = {one.kernel for one in ceilings.of}
    return [
        Residual(
            point,
            prediction.predict(
                point.work, ceilings.at(point.spec.kernel, point.spec.mean_columns, point.spec.rows)
            ).us,
        )
        for point in measured
        if point.spec.kernel in known
    ]


def held_out(measured: Sequence[Point]) -> list[Residual]:
    """Each measurement beside what a fit on all others says; those that are alone in their class are left out.

    Which multiprocessor ends last, and how much of its time memory hides, is taken from the fit on all of them.
    """
    found: list[Residual] = []
    megabyte_us = None
    for _, of_kernel in _by_kernel(measured):
        classes = sorted({_class_of(point) for point in of_kernel})
        numbers = _numbers(of_kernel, classes, megabyte_us)
        rows = np.array(list(_design(of_kernel, classes, numbers)))
        target = np.array([point.us for point in of_kernel])
        for place, point in enumerate(of_kernel):
            others = np.arange(len(of_kernel)) != place
            if (rows[others, classes.index(_class_of(point))] > 0).any():
                without = _solve(rows[others], target[others], megabyte_us)
                found.append(Residual(point, float(rows[place] @ without)))
        megabyte_us = float(numbers[-1]) if megabyte_us is None else megabyte_us
    return found


def _by_kernel(measured: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """The measurements of each kernel, that with the most of them first."""
    found: dict[str, list[Point]] = {}
    for point in measured:
        found.setdefault(point.spec.kernel, []).append(point)
    return sorted(found.items(), key=lambda one: -len(one[1]))


def _usable(row: Row) -> bool:
    ours = row["system"].startswith(OURS) and records.is_forward(row)
    tiles = row.get("spec") not in (None, "naive") and not row["spec"].startswith(variants.FEW_ROWS)
    return bool(ours and row.get("ms") and row.get("correct") and tiles)


def _table(arch: str, dtype: str, head_dim: int, value_dim: int) -> set[AttnSpec]:
    """The variants that pick can give: the first row of each shape or all that compete, with and without maps."""
    serving = [row for row in table.TABLE if row.serves(arch, dtype, head_dim, value_dim)]
    found = set()
    for rows in (serving, [row for row in serving if row.kernel != "sm90"]):
        first = {(row.shape, row.br if row.competes else 0): row for row in reversed(rows)}
        found |= {row.spec(arch, dtype, head_dim, value_dim) for row in first.values()}
    return found


def _class_of(point: Point) -> tuple[int, int]:
    """Measurements of one class share the time of a pair: mean width and tile height."""
    return point.spec.mean_columns, point.spec.rows


def _fit_kernel(kernel: str, measured: Sequence[Point], megabyte_us: float | None) -> list[Ceiling]:
    classes = sorted({_class_of(point) for point in measured})
    needed = len(classes) + SHARED
    if len(measured) < needed:
        raise ValueError(
            f"fit: kernel {kernel!r} needs {needed} measurements or more for {len(classes)} classes, got "
            f"{len(measured)}; measure more workloads"
        )
    numbers = _numbers(measured, classes, megabyte_us).tolist()
    partial, causal, skipped, item, *others = numbers[len(classes) :]
    extra = (partial * 1e6, causal * 1e6, skipped * 1e6)
    return [
        Ceiling(kernel, dim, br, pair * 1e6, *extra, item * dim * br / ITEM_ELEMENTS, *others)
        for (dim, br), pair in zip(classes, numbers, strict=False)
    ]


def _numbers(
    measured: Sequence[Point], classes: Sequence[tuple[int, int]], megabyte_us: float | None
) -> FloatArray:
    """Microseconds of a pair of each class, then of what they share, in the order of Ceiling.weights_us; the time of a
    work item is that of ITEM_ELEMENTS. megabyte_us: where it is known.
    """
    target = np.array([point.us for point in measured])
    numbers = np.array([1e-4] * len(classes) + [2e-5, 1e-5, 1e-5, 1.0, 5.0, 0.1])  # a start
    for _ in range(TURNS):
        rows = np.array(list(_design(measured, classes, numbers)))
        fitted = _solve(rows, target, megabyte_us)
        settled = np.allclose(fitted, numbers, rtol=SETTLED, atol=0)
        numbers = (numbers + fitted) / 2  # whole steps may go to and fro between two assignments for ever
        if settled:
            break
    return numbers


def _design(
    measured: Sequence[Point], classes: Sequence[tuple[int, int]], numbers: FloatArray
) -> Iterator[FloatArray]:
    """For each measurement the charges of the slot that ends last under these numbers, and those of memory and the
    launch: their sum at these numbers is the prediction, and their weights are how it changes with the numbers.
    """
    count = len(classes)
    for point in measured:
        column = classes.index(_class_of(point))
        dim, br = classes[column]
        share = np.array([*[1.0] * (len(TERMS) - 1), dim * br / ITEM_ELEMENTS])
        weights = share * np.array([numbers[column], *numbers[count:-2]])
        charged = prediction.loads(point.work, prediction.assign(point.work, weights))
        last = charged[int((charged @ weights).argmax())]
        us, memory_us = float(last @ weights), float(point.work.megabytes * numbers[-1])
        both = prediction.beside_memory(us, memory_us) or 1.0
        last = last * share * (us / both) ** (prediction.NORM_POWER - 1)
        megabytes = point.work.megabytes * (memory_us / both) ** (prediction.NORM_POWER - 1)
        row = np.zeros(len(numbers))
        row[column], row[count:-2], row[-2:] = last[0], last[1:], (1.0, megabytes)
        yield row


def _solve(rows: FloatArray, target: FloatArray, megabyte_us: float | None) -> FloatArray:
    """Numbers of the least squares of relative errors; megabyte_us is the last of them where it is known."""
    shares = rows / target[:, None]
    if megabyte_us is None:
        return not_negative(shares, np.ones(len(target)))
    rest = not_negative(shares[:, :-1], 1 - shares[:, -1] * megabyte_us)
    return np.append(rest, megabyte_us)
