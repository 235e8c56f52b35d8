"""The report's tables of the cost model of the backward pass."""

from __future__ import annotations

import numpy as np

from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose.backward_ceilings import BackwardCeilings
from omnicupy.choose.ceilings import Device
from omnicupy.tools.bench.gradients import IN_ANY_ORDER, PASSES, asked
from omnicupy.tools.bench.records import OURS, Row, table
from omnicupy.tools.explain import backward_fitting
from omnicupy.tools.explain.backward_fitting import BackwardResidual
from omnicupy.tools.report.library import Library
from omnicupy.tools.report.tables import NONE, PREDICTIONS

ALLOWED = 0.15  # error of a prediction of a workload outside of the fit
UNSEEN, CHOICES = (f"{suite} {PASSES['bwd'].name}" for suite in ("unseen", "choices"))
CLOSE = 0.05  # by which the best form or tile may be faster than what a call gets


def _known() -> list[tuple[Device, BackwardCeilings]]:
    return [(of.device, of.backward) for of in choose_ceilings.load() if of.backward is not None]


def ceilings(library: Library) -> str:
    """The numbers of each kernel on each device."""
    head = [
        *("device", "kernel", "head_dim", "tokens owned", "full tiles, TFLOP/s", "partial pair, extra"),
        *(
            "causal pair, extra",
            "skipped pair, of a full one",
            "work item, us",
            "part of a split block, extra us",
        ),
    ]
    rows = [head, ["---", "---", *["---:"] * 8]]
    lines = []
    for device, of in _known():
        for one in of.of:
            extra = [f"{value / one.pair_ps:+.0%}" for value in (one.partial_ps, one.causal_ps)]
            skipped = f"{one.skipped_ps / one.pair_ps:.0%}" if one.part == "dq" else ""
            cells = [f"{one.full_tflops(device.sm_count):.0f}", *extra, skipped]
            cells += [f"{one.item_us:.2f}", f"{one.merge_us:.2f}"]
            rows.append([device.name, one.part, str(one.head_dim), str(one.owned), *cells])
        lines.append(
            f"{device.name}: {of.launch_us:.1f} us for the launches, {of.megabyte_us:.3f} us for a MB that the "
            f"launches ahead and behind read or write, {of.beside_us:.3f} us where a warp does so beside tiles, "
            f"{of.memory_us:.3f} us for one that the kernels between them fetch and store. "
            f"Fitted on {', '.join(of.sources)}."
        )
    return "\n\n".join([table(rows), *lines]) if lines else NONE


def predictions(library: Library) -> str:
    """How well the model predicts each record of the backward pass."""
    rows = [*PREDICTIONS]
    for device, of in _known():
        for name, content in library.of.items():
            if content.get("device") != device.name:
                continue
            errors = backward_fitting.known_residuals(of, library.backward_points(name))
            if not errors:
                continue
            worst = max(errors, key=lambda one: abs(one.error))
            cells = [
                str(len(errors)),
                f"{np.median([abs(one.error) for one in errors]):.1%}",
                f"{abs(worst.error):.1%}",
            ]
            fitted = "yes" if name in of.sources else "no"
            rows.append([device.name, name, fitted, *cells, f"{worst.point.workload}, {worst.point.system}"])
    return table(rows) if len(rows) > 2 else NONE


def unseen(library: Library) -> str:
    """The workloads that the model is judged by: measured and predicted time, in one order and in any."""
    found = library.newest(UNSEEN)
    known = [of for device, of in _known() if found and device.name == found.content.get("device")]
    if not found or not known:
        return NONE
    names = {row["workload"] for row in found.rows}
    errors = {
        (one.point.workload, one.point.system): one
        for part in reversed(found.parts)
        for one in backward_fitting.known_residuals(known[0], library.backward_points(part.name))
        if one.point.workload in names
    }
    head = [
        "workload",
        "measured, ms",
        "predicted, ms",
        "error",
        "in any order: measured, ms",
        "predicted, ms",
        "error",
    ]
    rows = [head, ["---", *["---:"] * 6]]
    for name in dict.fromkeys(row["workload"] for row in found.rows):
        pair = [errors.get((name, system)) for system in (OURS, IN_ANY_ORDER)]
        if any(pair):
            rows.append([name, *(cell for one in pair for cell in _cells(one))])
    within = sum(abs(one.error) <= ALLOWED for one in errors.values())
    beyond = [
        f"{name} ({_order(system)})" for (name, system), one in errors.items() if abs(one.error) > ALLOWED
    ]
    said = f"{within} of {len(errors)} predictions are within {ALLOWED:.0%}"
    said += f"; not so: {', '.join(beyond)}." if beyond else "."
    return f"{found.source}\n\n{table(rows)}\n\n{said}"


def _cells(one: BackwardResidual | None) -> list[str]:
    if one is None:
        return [""] * 3
    return [f"{one.point.us / 1e3:.3f}", f"{one.predicted_us / 1e3:.3f}", f"{one.error:+.1%}"]


def _order(system: str) -> str:
    return "any order" if system == IN_ANY_ORDER else "default"


def choices(library: Library) -> str:
    """What calls get beside the fastest form or tile of those that may take its place, in one order and in any."""
    found = library.newest(CHOICES)
    if not found:
        return NONE
    head = ["workload", "default, TFLOP/s", "fastest", "TFLOP/s", "over the default"]
    head += ["in any order, TFLOP/s", "fastest", "TFLOP/s", "over it"]
    rows, ratios = [head, ["---", *["---:", "---", "---:", "---:"] * 2]], []
    for name in dict.fromkeys(row["workload"] for row in found.rows):
        of = {
            row["system"]: row
            for row in found.rows
            if row["workload"] == name and row.get("ms") and row.get("correct")
        }
        cells = [name]
        for form in (OURS, IN_ANY_ORDER):
            best = max(
                (row for row in of.values() if form == IN_ANY_ORDER or not _free(row)),
                key=lambda row: float(row["tflops"]),
                default=None,
            )
            mine = of.get(form)
            if mine is None or best is None:
                cells += [""] * 4
                continue
            ratios.append(best["tflops"] / mine["tflops"])
            cells += [f"{mine['tflops']:.0f}", _word(best), f"{best['tflops']:.0f}", f"{ratios[-1]:.3f}"]
        rows.append(cells)
    close = sum(ratio <= 1 + CLOSE for ratio in ratios)
    return (
        f"{found.source}\n\n{table(rows)}\n\n{close} of {len(ratios)} are within {CLOSE:.0%} of the fastest."
    )


def _free(row: Row) -> bool:
    """May its sums have any order?"""
    return asked(row["system"].partition(":")[2]).free


def _word(row: Row) -> str:
    return row["system"].partition(":")[2] or "the default"
