"""The report's tables of times: each is made from the newest record of its suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omnicupy.tools.bench.records import OURS, Row, table
from omnicupy.tools.bench.suites import GPU_SUITES, OTHER_SUITES
from omnicupy.tools.report import plots, roofline
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.heads import cell, head
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.workloads.workload import by_name

NONE = "No record of this suite yet."
# The head of a table that says how well a cost model predicts each record.
PREDICTIONS = (
    [
        "device",
        "record",
        "in the fit",
        "measurements",
        "median error",
        "largest error",
        "measurement with it",
    ],
    ["---", "---", "---", "---:", "---:", "---:", "---"],
)


def records_used(library: Library) -> str:
    """Every record: what it holds, where it was measured, and the calibration of its run."""
    lines = [
        [
            "record",
            "suites",
            "device",
            "driver",
            "NVRTC",
            "commit",
            "8192^3 matrix product",
            "copies",
            "clock before, after",
        ],
        [*["---"] * 6, "---:", "---:", "---:"],
    ]
    for name, content in library.of.items():
        gemm, copy = content.get("gemm_tflops"), content.get("copy_tbps")
        clocks = [
            str((content.get(f"clocks_{when}") or {}).get("clocks.sm", "")) for when in ("before", "after")
        ]
        lines.append(
            [
                f"[{name}](results/{name})",
                ", ".join(content.get("suites") or []),
                content.get("device") or "CPU",
                content.get("driver") or "",
                content.get("nvrtc") or "",
                _commit(str(content.get("commit") or "")),
                f"{gemm:.0f} TFLOP/s" if gemm else "",
                f"{copy:.2f} TB/s" if copy else "",
                f"{', '.join(clocks)} MHz" if all(clocks) else "",
            ]
        )
    return table(lines)


def every_record(library: Library) -> str:
    """Every record, those of other devices too: what it measured, and where. For docs/results/README.md."""
    lines = [
        ["record", "what it measured", "device", "driver", "NVRTC", "commit", "started (UTC)"],
        ["---"] * 7,
    ]
    for name, content in (library.of | library.elsewhere).items():
        described = "; ".join(_measured(suite, content) for suite in content.get("suites") or [])
        where = [content.get("device") or "CPU", content.get("driver") or "", content.get("nvrtc") or ""]
        started = str(content.get("started") or "").rstrip("Z").replace("T", " ")
        commit = _commit(str(content.get("commit") or ""))
        lines.append([f"[{name}]({name})", described, *where, commit, started])
    return table(lines)


def _measured(suite: str, content: dict[str, Any]) -> str:
    """What a record holds of a suite, in words."""
    note = GPU_SUITES[suite].note if suite in GPU_SUITES else OTHER_SUITES.get(suite, "")
    text = f"`{suite}`: {note}" if note else f"`{suite}`"
    if suite not in GPU_SUITES:
        return text
    names = set(GPU_SUITES[suite].workloads)
    here = names & {row["workload"] for row in plots.rows_of(content, suite)}
    return text if here in (names, set()) else f"{text} ({len(here)} of {len(names)} workloads)"


def _commit(name: str) -> str:
    """The beginning of a commit's name; "+" stays: the tree was not that commit's alone."""
    return name[:8] + "+" * name.endswith("+")


def dense(library: Library) -> str:
    """Full and causal attention by head_dim and length, a column a system: every length, then every system."""
    found = [one for one in (library.newest("shapes"), library.newest("dense")) if one]
    return "\n\n".join(f"{one.source}\n\n{dense_table(one)}" for one in found) or NONE


def dense_table(found: Found) -> str:
    """Rates by head_dim and length, full and causal, a column a system."""
    rows = [
        row for row in found.rows if row["workload"].partition("-")[0] in ("full", "causal") and row.get("ms")
    ]
    systems = plot_style.ordered(row["system"] for row in rows)
    of = {(_sizes(row), row["workload"].partition("-")[0], row["system"]): row for row in rows}
    lines = [["full / causal", *(plot_style.style(system).label for system in systems)]]
    lines.append(["---", *["---:"] * len(systems)])
    for sizes in sorted({_sizes(row) for row in rows}):
        cells = []
        for system in systems:
            pair = [of.get((sizes, kind, system)) for kind in ("full", "causal")]
            cells.append(" / ".join(_rate(row) for row in pair) if any(pair) else "")
        lines.append([f"D {sizes[0]}, S {sizes[1]}", *cells])
    return f"Useful TFLOP/s.\n\n{table(lines)}"


def models(library: Library) -> str:
    """The named workloads: useful and executed rates, the share of the rivals' time."""
    return of_newest(library, ("vlm", "masks"), _models)


def _models(found: Found) -> str:
    rows = [row for row in found.rows if row.get("ms") and row.get("correct") is not False]
    rivals = [name for name in plot_style.ordered(row["system"] for row in rows) if not name.startswith(OURS)]
    of = {(row["workload"], row["system"]): row for row in rows}
    first = [
        "workload",
        "mask",
        "density",
        "variant",
        "ms",
        "useful TFLOP/s",
        "executed TFLOP/s",
        "allowed / executed pairs",
    ]
    lines = [[*first, *(f"speed-up over {plot_style.style(rival).label}" for rival in rivals)]]
    lines.append([*["---", "---", "---:", "---"], *["---:"] * (len(lines[0]) - 4)])
    for name in dict.fromkeys(row["workload"] for row in rows):
        ours = of.get((name, OURS))
        if ours is None:
            continue
        cells = [f"{ours['density']:.1%}", ours["spec"], f"{ours['ms']:.3f}", f"{ours['tflops']:.0f}"]
        cells += [f"{ours['executed_tflops']:.0f}", f"{ours['useful']:.1%}"]
        lines.append(
            [name, by_name(name).note, *cells, *(_times(ours, of.get((name, rival))) for rival in rivals)]
        )
    return table(lines)


def variants(library: Library) -> str:
    """The ladder of variants, TFLOP/s by workload."""
    return of_newest(library, ("variants",), _variants)


def _variants(found: Found) -> str:
    rows = [row for row in found.rows if row.get("ms")]
    names = list(dict.fromkeys(row["workload"] for row in rows))
    of = {(row["spec"], row["workload"]): row for row in rows}
    lines = [["variant", *names], ["---", *["---:"] * len(names)]]
    for word in dict.fromkeys(row["spec"] for row in rows):
        lines.append([word, *(_rate(of.get((word, name))) for name in names)])
    return f"Useful TFLOP/s.\n\n{table(lines)}"


def figures(*suites: str) -> Callable[[Library], str]:
    """A table of everything else that a suite measured: a line a workload and system, a column a figure."""
    return lambda library: of_newest(library, suites, _figures)


def _figures(found: Found) -> str:
    return chosen_figures(found, None)


def chosen_figures(found: Found, shown: Sequence[str] | None) -> str:
    """The same table of some figures alone. shown: their names in order; None for all."""
    rows = [row for row in found.rows if row.get("figures")]
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    if shown is not None:
        names = [name for name in shown if name in names]
    lines = [["workload", "system", *map(head, names)], ["---", "---", *["---:"] * len(names)]]
    for row in rows:
        system = plot_style.style(row["system"]).label
        lines.append([row["workload"], system, *(cell(name, row["figures"].get(name)) for name in names)])
    return table(lines)


def sharing(library: Library) -> str:
    """Plans of several ranks beside other schemes, and the speeds that the model takes for granted."""
    found = library.newest("sharing")
    if not found:
        return NONE
    of = found.content["speeds"]
    flops, near, far, node = of["flops"] / 1e12, of["near"] / 1e9, of["far"] / 1e9, found.content["node"]
    assumed = (
        f"Taken for granted: {flops:g} TFLOP/s of a rank, {near:g} GB/s each way inside a node of {node} ranks "
        f"and {far:g} GB/s of each rank between nodes, {of['near_s'] * 1e6:g} and {of['far_s'] * 1e6:g} us before an "
        f"exchange's first byte, {of['launch_s'] * 1e6:g} us a launch."
    )
    return f"{found.source}\n\n{_figures(found)}\n\n{assumed}"


def bounds(library: Library) -> str:
    """The least time that each ceiling allows, and what was taken."""
    parts = []
    for suites in (("shapes", "dense"), ("vlm", "masks")):
        found = library.newest(*suites)
        if found:
            parts.append(f"{found.source}\n\n{_bounds(found)}")
    return "\n\n".join(parts) or NONE


def _bounds(found: Found) -> str:
    first = [
        "workload",
        "variant",
        "measured ms",
        "tensor cores",
        "exponentials",
        "memory",
        "bound by",
        "bound / time",
    ]
    lines = [first, ["---", "---", *["---:"] * 4, "---", "---:"]]
    for one in (one for part in found.parts for one in roofline.bounds(part.rows, part.content)):
        name, ms = one.bound
        known = [
            f"{part:.3f}" if part is not None else "" for part in (one.tensor, one.exponentials, one.memory)
        ]
        lines.append([one.workload, one.spec, f"{one.ms:.3f}", *known, name, f"{ms / one.ms:.0%}"])
    return table(lines)


def of_newest(library: Library, suites: Sequence[str], make: Callable[[Found], str]) -> str:
    """What `make` says of the newest record of these suites, behind where it is from; NONE where there is none."""
    found = library.newest(*suites)
    return f"{found.source}\n\n{make(found)}" if found else NONE


def _sizes(row: Row) -> tuple[int, int]:
    return row["shape"][5], row["shape"][3]


def _rate(row: Row | None) -> str:
    if row is None or not row.get("ms"):
        return "-"
    return f"{row['tflops']:.0f}" + (" (wrong)" if row.get("correct") is False else "")


def _times(ours: Row, theirs: Row | None) -> str:
    return f"{theirs['ms'] / ours['ms']:.2f}" if theirs else ""
