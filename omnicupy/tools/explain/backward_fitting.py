"""Ceilings of the backward pass, fitted by least squares on benchmark records of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from omnicupy.choose import backward_prediction, variants
from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose.backward_ceilings import BackwardCeilings, FloatArray, KernelCeiling
from omnicupy.choose.backward_prediction import TERMS, PassWork
from omnicupy.choose.backward_waits import PlayedOnce, Waits, waited_share
from omnicupy.choose.ceilings import Ceilings, Device
from omnicupy.choose.prediction import NORM_POWER, beside_memory
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.tools.bench import records
from omnicupy.tools.bench.gradients import PASSES, asked
from omnicupy.tools.bench.records import OURS, Row
from omnicupy.tools.explain.devices import one_device
from omnicupy.tools.explain.least_squares import not_negative
from omnicupy.tools.workloads import words

# A work item's own time, and what it takes longer as a part of a split block, are fitted as those of so many elements
# that are owned: they go into fetching these and storing their gradients.
ITEM_ELEMENTS = 128 * 128
TURNS = 40  # of fitting and assigning anew
SETTLED = 1e-4
OTHERS = 4  # numbers of a pass: a launch, a megabyte ahead and behind, one beside tiles, one of the kernels between

# Kernels of one source, which handle masks and items alike: they differ in the time of a pair alone.
LIKE = {"ordered": "fused"}

REPEATED = ("choices", "same-bits")  # suites

Class = tuple[str, str, int, int]  # kernel, part, mean width, tokens owned


@dataclass(frozen=True)
class BackwardPoint:
    """One measurement of a backward pass: which kernels took how long for which work."""

    workload: str
    system: str
    spec: BackwardSpec
    work: PassWork
    us: float


@dataclass(frozen=True)
class BackwardResidual:
    """A measurement beside what the model says. error: predicted over measured, less one."""

    point: BackwardPoint
    predicted_us: float

    @property
    def error(self) -> float:
        """Share by which the prediction is too long."""
        return self.predicted_us / self.point.us - 1


@dataclass(frozen=True)
class BackwardFitted:
    """Ceilings, and how well they fit."""

    device: Device
    ceilings: BackwardCeilings
    residuals: tuple[BackwardResidual, ...]

    def __str__(self) -> str:
        of = self.ceilings
        lines = [f"{self.device.name}, {len(self.residuals)} measurements of the backward pass"]
        for one in of.of:
            kinds = ("partial", "causal", "skipped")
            extra = (getattr(one, f"{kind}_ps") / one.pair_ps for kind in kinds)
            partial, causal, skipped = extra
            lines.append(
                f"{one.kernel} {one.part} head_dim {one.head_dim:4}, {one.owned:3} owned: "
                f"{one.full_tflops(self.device.sm_count):4.0f} TFLOP/s over full tiles; partial {partial:+.0%}, causal "
                f"{causal:+.0%}, skipped {skipped:.0%} a pair; item {one.item_us:.2f} us, merged {one.merge_us:+.2f} us"
            )
        lines.append(
            f"launch {of.launch_us:.1f} us; ahead and behind {of.megabyte_us:.3f} us a MB, beside {of.beside_us:.3f}, "
            f"between {of.memory_us:.3f}"
        )
        errors = [abs(one.error) for one in self.residuals]
        worst = max(self.residuals, key=lambda one: abs(one.error))
        lines.append(
            f"error {np.median(errors):.1%} in the median, at most {abs(worst.error):.1%} ({worst.point.workload}, "
            f"{worst.point.system})"
        )
        return "\n".join(lines)


def from_files(paths: Sequence[Path], out: Path | None = None) -> BackwardFitted:
    """Fit the records of one device and put its ceilings into `out` (None: the library's own file).

    What a file has of the forward pass stays. Raises ValueError for records of several devices, and what fit() and
    records.load() raise.
    """
    contents = [records.load(path) for path in paths]
    device = one_device(contents)
    waits = PlayedOnce()
    measured = [point for content in contents for point in points(content, device, waits)]
    found = fit(measured, [path.name for path in paths])
    target = out or choose_ceilings.FILE
    kept = choose_ceilings.load(target) if target.exists() else []
    others = next((one for one in kept if one.device.name == device.name), Ceilings(device, ()))
    choose_ceilings.save(replace(others, backward=found), target)
    return BackwardFitted(device, found, tuple(residuals(found, measured)))


def points(content: dict[str, Any], device: Device, waits: Waits = waited_share) -> list[BackwardPoint]:
    """The measurements of a record that the model describes: right results of the Hopper kernels, backward alone.

    waits: as of backward_prediction.work_of.
    """
    found = []
    for row in content["rows"]:
        if not usable(row):
            continue
        spec = variants.parsed_kernels(row["spec"])
        if spec.kernel != "sm90" or spec.softcap:
            continue
        of = asked(row["system"].partition(":")[2])
        mask = words.of_record(row["workload"], row["shape"]).mask()
        work = backward_prediction.work_of(
            spec,
            records.problem_of(row, content),
            mask,
            device,
            deterministic=not of.free,
            wanted=of.wanted,
            keys=_keys_of(row, spec, free=of.free),
            waits=waits,
        )
        found.append(BackwardPoint(row["workload"], row["system"], spec, work, 1e3 * row["ms"]))
    return found


def _keys_of(row: Row, spec: BackwardSpec, *, free: bool) -> str:
    """The kernel that made dK and dV, "" where that is the one which calls get now. Older records do not name it: in
    any order it did not make dQ in the background yet.
    """
    older = "fused" if free and spec.fused is not None else ""
    return str(row.get("part") or older)


def usable(row: Row) -> bool:
    """True for a right result of our backward pass alone, but in suites that measure again what others do."""
    if row.get("suite") in REPEATED:
        return False
    ours = row["system"].startswith(OURS) and row.get("pass") == PASSES["bwd"].name
    return bool(ours and row.get("ms") and row.get("correct") and str(row.get("spec")).startswith("bwd "))


def fit(measured: Sequence[BackwardPoint], sources: Sequence[str] = ()) -> BackwardCeilings:
    """Ceilings that make the least squares of relative errors.

    For each kernel a time a pair at each head_dim and number of tokens owned, and, shared by these, what PARTIAL and
    CAUSAL pairs take longer, the time of a skipped pair, of a work item, and of a part of a split block; LIKE says
    which kernels have these in common. For all the launch and the times of a megabyte; none below zero. As in
    fitting.fit, fitting and assigning take turns. Raises ValueError where there are fewer measurements than numbers.
    """
    classes = sorted({_class_of(one) for point in measured for one in point.work.kernels})
    parts = sorted({_source_of(found) for found in classes})
    count = len(classes) + (len(TERMS) - 1) * len(parts) + OTHERS
    if len(measured) < count:
        raise ValueError(
            f"fit: the backward pass needs {count} measurements or more for {len(classes)} kernels, got "
            f"{len(measured)}; measure `bench fit --pass bwd`"
        )
    target = np.array([point.us for point in measured])
    numbers = np.concatenate(
        [
            np.full(len(classes), 2e-4),
            np.tile([2e-5, 1e-5, 2e-5, 2.0, 2.0], len(parts)),
            [15.0, 0.35, 0.1, 0.35],
        ]
    )
    for _ in range(TURNS):
        rows = np.array([_design(point, classes, parts, numbers) for point in measured])
        fitted = not_negative(rows / target[:, None], np.ones(len(target)))
        settled = np.allclose(fitted, numbers, rtol=SETTLED, atol=0)
        numbers = (numbers + fitted) / 2
        if settled:
            break
    return _ceilings(numbers, classes, parts, sources)


def residuals(ceilings: BackwardCeilings, measured: Sequence[BackwardPoint]) -> list[BackwardResidual]:
    """Each measurement beside its prediction."""
    return [
        BackwardResidual(point, backward_prediction.predict(point.work, ceilings).us) for point in measured
    ]


def known_residuals(ceilings: BackwardCeilings, measured: Sequence[BackwardPoint]) -> list[BackwardResidual]:
    """The same, without measurements of kernels that have no ceilings."""
    known = {(one.kernel, one.part) for one in ceilings.of}
    of = [point for point in measured if all(_class_of(one)[:2] in known for one in point.work.kernels)]
    return residuals(ceilings, of)


def _class_of(work: backward_prediction.KernelWork) -> Class:
    """Measurements of one class share the time of a pair."""
    kernel = work.kernel
    return kernel.kernel, kernel.part, backward_prediction.mean_columns(kernel), work.owned


def _source_of(of: Class) -> tuple[str, str]:
    """Classes of one kernel and one of these parts share all times but that of a pair."""
    return of[0], LIKE.get(of[1], of[1])


def _share(of: Class) -> FloatArray:
    """What each of the numbers of a class is multiplied by: an item is in proportion to what it owns."""
    elements = of[2] * of[3] / ITEM_ELEMENTS
    return np.array([1.0, 1.0, 1.0, 1.0, elements, elements])


def _columns(of: Class, classes: Sequence[Class], parts: Sequence[tuple[str, str]]) -> list[int]:
    """Where the numbers of a class stand, in the order of TERMS."""
    shared = len(classes) + (len(TERMS) - 1) * parts.index(_source_of(of))
    return [classes.index(of), *range(shared, shared + len(TERMS) - 1)]


def _design(
    point: BackwardPoint,
    classes: Sequence[Class],
    parts: Sequence[tuple[str, str]],
    numbers: FloatArray,
) -> FloatArray:
    """The charges of the slot that ends last under these numbers, and those of launches and memory: their sum at these
    numbers is the prediction, and their weights are how it changes with the numbers.
    """
    work, row = point.work, np.zeros(len(numbers))
    of = [_class_of(one) for one in work.kernels]
    columns = [_columns(one, classes, parts) for one in of]
    weights = [numbers[at] * _share(one) for at, one in zip(columns, of, strict=True)]
    charged = backward_prediction.loads(work, backward_prediction.assign(work, weights))
    times = np.einsum("skt,kt->s", charged, np.array(weights))
    last = charged[int(times.argmax())]
    longer = 1 + max(one.waits for one in work.kernels)
    us = float(times.max()) * longer + work.beside * float(numbers[-2])
    memory = work.megabytes * float(numbers[-1])
    both = beside_memory(us, memory) or 1.0
    for at, one, amounts in zip(columns, of, last, strict=True):
        row[at] += amounts * _share(one) * longer * (us / both) ** (NORM_POWER - 1)
    beside = work.beside * (us / both) ** (NORM_POWER - 1)
    megabytes = work.megabytes * (memory / both) ** (NORM_POWER - 1)
    row[-OTHERS:] = 1.0, work.prepared + work.converted, beside, megabytes
    return row


def _ceilings(
    numbers: FloatArray,
    classes: Sequence[Class],
    parts: Sequence[tuple[str, str]],
    sources: Sequence[str],
) -> BackwardCeilings:
    found = []
    for of in classes:
        values = numbers[_columns(of, classes, parts)] * _share(of)
        found.append(KernelCeiling(*of, *(1e6 * values[:4]).tolist(), *values[4:].tolist()))
    launch, megabyte, beside, memory = numbers[-OTHERS:].tolist()
    return BackwardCeilings(tuple(found), launch, megabyte, beside, memory, tuple(sources))
