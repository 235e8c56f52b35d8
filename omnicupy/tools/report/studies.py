"""The report's tables of studies: sparsity, the choice of tiles, and the cost model beside its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from omnicupy.choose import ceilings as choose_ceilings
from omnicupy.choose import pick, variants
from omnicupy.choose.ceilings import Ceilings
from omnicupy.tools.bench.records import Row, problem_of, table
from omnicupy.tools.explain import devices, fitting
from omnicupy.tools.report import sparsity
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.report.tables import NONE, PREDICTIONS
from omnicupy.tools.workloads import words
from omnicupy.tools.workloads.workload import NAMED

LEAST_DENSITY = 0.05  # below it launches and single tiles show


def lines(library: Library) -> str:
    """Time against executed pairs: the fitted line of each size and its residuals."""
    found = library.newest("sparsity")
    if not found:
        return NONE
    head = [
        "sizes",
        "masks",
        "constant, ms",
        "10^9 pairs a ms",
        "R^2",
        "largest residual",
        f"largest residual above {LEAST_DENSITY:.0%} density",
    ]
    rows = [head, ["---", *["---:"] * 6]]
    for group in sparsity.groups(found.rows):
        try:
            fit = sparsity.line(group)
        except ValueError:
            continue
        dense = [abs(residual) for density, residual in fit.residuals if density > LEAST_DENSITY]
        cells = [
            f"{len(fit.residuals)}",
            f"{fit.launch_ms:.4f}",
            f"{fit.pairs_per_ms / 1e9:.3f}",
            f"{fit.r_squared:.4f}",
        ]
        rows.append([group.name, *cells, f"{fit.worst:.1%}", f"{max(dense, default=0.0):.1%}"])
    return f"{found.source}\n\n{table(rows)}"


def crossings(library: Library) -> str:
    """Below which density each system is faster than the fastest dense rival, and full masks against none."""
    found = library.newest("sparsity")
    if not found:
        return NONE
    rows = [["sizes", "system", "faster than", "below density"], ["---", "---", "---", "---:"]]
    objects = [["sizes", "full mask", "time over mask=None"], ["---", "---", "---:"]]
    for group in sparsity.groups(found.rows):
        for one in sparsity.crossings(group):
            where = (
                f"{one.density:.0%}"
                if one.density is not None
                else {"faster": "always", "slower": "never"}[one.always]
            )
            rows.append(
                [group.name, *(plot_style.style(name).label for name in (one.system, one.rival)), where]
            )
        for name, ratio in sparsity.full_objects(group).items():
            objects.append([group.name, plot_style.style(name).label, f"{ratio:.3f}"])
    parts = [found.source, table(rows)] + ([table(objects)] if len(objects) > 2 else [])
    return "\n\n".join(parts)


def choices(library: Library) -> str:
    """What the table chooses beside the best tile that the search of all found."""
    parts = []
    head = ["workload", "chosen", "TFLOP/s", "best tile", "TFLOP/s", "best over chosen"]
    for suite in ("choices", "blocks", "tiles90", "tiles"):
        found = library.newest(suite)
        if not found:
            continue
        rows = [head, ["---", "---", "---:", "---", "---:", "---:"]]
        for name in dict.fromkeys(row["workload"] for row in found.rows):
            of = {
                row["spec"]: row
                for row in found.rows
                if row["workload"] == name and row.get("ms") and row.get("correct")
            }
            if not of:
                continue
            best = max(of.values(), key=lambda row: float(row["tflops"]))
            word = _chosen(found, best)
            mine = of.get(word)
            cells = [f"{mine['tflops']:.0f}" if mine else "", best["spec"], f"{best['tflops']:.0f}"]
            rows.append([name, word, *cells, f"{best['tflops'] / mine['tflops']:.3f}" if mine else ""])
        parts.append(f"{found.source}\n\n{table(rows)}")
    return "\n\n".join(parts) or NONE


def _chosen(found: Found, row: Row) -> str:
    """The word of the variant that the table has for a row's problem, with this suite's kernel."""
    content = found.content
    problem = problem_of(row, content)
    sm_count = devices.device_of(content).sm_count
    mappable = found.suite != "tiles"
    mask = words.of_record(row["workload"], row["shape"]).mask()
    return variants.word(pick.pick(content["arch"], problem, (mask,), sm_count, mappable=mappable))


def ceilings(library: Library) -> str:
    """The cost model's numbers of each device."""
    head = [
        "device",
        "kernel",
        "head_dim",
        "query rows of a tile",
        "full tiles, TFLOP/s",
        "partial pair, extra",
        "causal pair, extra",
        "skipped pair, of a full one",
        "work item, us",
        "launch, us",
        "a MB, us",
    ]
    rows = [head, ["---", "---", *["---:"] * 9]]
    for of in choose_ceilings.load():
        for one in of.of:
            cells = [f"{one.full_tflops(of.device.sm_count):.0f}"]
            cells += [f"{extra / one.pair_ps:+.0%}" for extra in (one.partial_ps, one.causal_ps)]
            cells += [
                f"{one.skipped_ps / one.pair_ps:.0%}",
                f"{one.item_us:.2f}",
                f"{one.launch_us:.1f}",
                f"{one.megabyte_us:.3f}",
            ]
            rows.append([of.device.name, one.kernel, str(one.head_dim), str(one.br), *cells])
    return table(rows)


def predictions(library: Library) -> str:
    """How well the model predicts: records that it was fitted on, the same held out, and records that it never saw."""
    rows = [*PREDICTIONS]
    for of in (one for one in choose_ceilings.load() if one.of):
        known = [name for name in of.sources if name in library.of]
        for name, content in library.of.items():
            if content.get("device") == of.device.name and content.get("gemm_tflops"):
                errors = fitting.residuals(of, library.points(name))
                rows += _errors([of.device.name, name, "yes" if name in known else "no"], errors)
        held_out = (
            fitting.held_out([point for name in known for point in library.points(name)]) if known else []
        )
        rows += _errors([of.device.name, ", ".join(known), "all but itself"], held_out)
    return table(rows) if len(rows) > 2 else NONE


def _errors(head: list[str], found: Sequence[fitting.Residual]) -> list[list[str]]:
    if not found:
        return []
    worst = max(found, key=lambda one: abs(one.error))
    cells = [
        str(len(found)),
        f"{np.median([abs(one.error) for one in found]):.1%}",
        f"{abs(worst.error):.1%}",
    ]
    return [[*head, *cells, f"{worst.point.workload}, {variants.word(worst.point.spec)}"]]


def predicted_models(library: Library) -> str:
    """The named workloads: predicted and measured time, and the error of a fit that saw none of them."""
    found = library.newest("vlm", "masks")
    known = [of for of in choose_ceilings.load() if found and of.device.name == found.content.get("device")]
    if not found or not known:
        return NONE
    rows = [
        ["workload", "measured, ms", "predicted, ms", "error", "error, all of these held out of the fit"],
        ["---", *["---:"] * 4],
    ]
    others = [point for name in known[0].sources if name in library.of for point in library.points(name)]
    others = [point for point in others if point.workload not in NAMED]
    held_out = residuals_of(found, fitting.fit(known[0].device, others), library) if others else []
    for one, other in zip_longest(residuals_of(found, known[0], library), held_out):
        rows.append(
            [
                one.point.workload,
                f"{one.point.us / 1e3:.3f}",
                f"{one.predicted_us / 1e3:.3f}",
                f"{one.error:+.1%}",
                f"{other.error:+.1%}" if other else "",
            ]
        )
    return f"{found.source}\n\n{table(rows)}"


def residuals_of(found: Found, known: Ceilings, library: Library) -> list[fitting.Residual]:
    """Our rows of a suite beside their predictions."""
    points = [
        point
        for part in found.parts
        for point in library.points(part.name)
        if point.suite == found.suite and point.workload in {row["workload"] for row in part.rows}
    ]
    return [one for one in fitting.residuals(known, points) if one.point.spec.kernel == "sm90"]
