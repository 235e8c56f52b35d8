"""Ours beside other libraries: the table of README.md, and the goals of docs/report.md beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.bench.records import OURS, Row, table
from omnicupy.tools.bench.suites import PORTABLE_TILES, SHORT_RANDOM, SPARSE_MASKS
from omnicupy.tools.report import style as plot_style
from omnicupy.tools.report.library import FromRecord, Library
from omnicupy.tools.workloads.workload import NAMED

MATRIX_PRODUCT = "8192^3 matrix product"
IN_A_ROW, ALONE = "us_of_100_in_a_row", "us_alone"
MODELS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8f", "W9", "W10", "W11", "W12", "W13")
README_MODELS = ("W1", "W4", "W6", "W7", "W10")
ALL_SEEDS = "seeds 0 to 7, geometric mean"
LONG_RANDOM = ("random-d64-s8192-seed0", "random-d64-s16384-seed0")


@dataclass(frozen=True)
class Target:
    """How many times as fast as a rival, at least and if possible. Those of one label share a line.

    suites: looked at in this order, for the newest record that has all systems.  workloads: the worst of them counts.
    rivals: systems, of which the fastest counts, or MATRIX_PRODUCT.  ours: our system.  figure: of rows that hold no
    rate: the name of a time.  mean: the geometric mean instead of the worst.  some: rivals that cannot do a workload
    are left out of the comparison; else it needs all of them.  or_else: what counts where that was not measured.
    """

    label: str
    suites: tuple[str, ...]
    workloads: tuple[str, ...]
    rivals: tuple[str, ...]
    least: float | None = None
    aim: float | None = None
    ours: str = OURS
    figure: str = ""
    mean: bool = False
    some: bool = False
    or_else: Target | None = None


def _dense(label: str, name: str, rival: str, least: float | None, aim: float | None = None) -> Target:
    return Target(label, ("dense", "shapes"), (name,), (rival,), least, aim)


def _full_and_causal() -> Iterator[Target]:
    label, name = "D 128, S 16384, full", "full-d128-s16384"
    yield _dense(label, name, "sdpa-cudnn", 1.08)
    yield _dense(label, name, "fa4", 0.97)
    yield _dense(label, name, MATRIX_PRODUCT, None, 0.9)
    for kind, head_dim, length, least, aim in (
        ("causal", 128, 16384, 1.1, 1.2),
        ("causal", 128, 4096, 1.0, 1.2),
        ("full", 64, 16384, 1.1, 1.25),
        ("causal", 64, 16384, 1.1, 1.25),
        ("full", 256, 16384, 1.0, 1.15),
        ("causal", 256, 16384, 1.0, 1.15),
    ):
        label, name = f"D {head_dim}, S {length}, {kind}", f"{kind}-d{head_dim}-s{length}"
        yield _dense(label, name, "sdpa-cudnn", least, aim)
        yield _dense(label, name, "fa4", None)


def _masks() -> Iterator[Target]:
    for name in MODELS:
        yield Target(model_label(name), ("vlm",), (name,), ("cudnn-flex",), 0.95)
        yield Target(model_label(name), ("vlm",), (name,), ("flex",), 1.4)
    yield Target("W1 to W13, geometric mean", ("vlm",), MODELS, ("cudnn-flex",), 1.0, 1.15, mean=True)
    for name in LONG_RANDOM:
        yield Target(random_label(name), ("random",), (name,), ("cudnn-flex",), None, 1.2)
        yield Target(random_label(name), ("random",), (name,), ("flex",), 2.0)


def _whole_calls() -> Iterator[Target]:
    for name in ("W15", *SHORT_RANDOM):
        for figure, how in ((IN_A_ROW, "in a row"), (ALONE, "alone")):
            label = f"{model_label(name) if name in NAMED else random_label(name)}, {how}"
            yield Target(label, ("latency",), (name,), ("flex",), 2.0, figure=figure)
            yield Target(label, ("latency",), (name,), ("flex", "cudnn-flex"), None, 3.0, figure=figure)


def _portable() -> Iterator[Target]:
    narrow, wide = PORTABLE_TILES
    for head_dim, ours in ((64, wide), (128, narrow)):
        for length in (4096, 16384):
            for kind in ("full", "causal"):
                label, name = f"D {head_dim}, S {length}, {kind}", f"{kind}-d{head_dim}-s{length}"
                yield Target(label, ("dense",), (name,), ("sdpa-flash",), 0.95, ours=ours)
    for name in ("W1", "W4", "W5", "W11", "W12"):
        yield Target(model_label(name), ("masks",), (name,), ("flex",), 0.75, ours=narrow)
    for name in ("random-d64-s1024-seed0", "random-d64-s16384-seed0"):
        yield Target(random_label(name), ("random",), (name,), ("flex",), 1.2, ours=wide)


def model_label(name: str) -> str:
    """How tables name the mask of a model."""
    return f"{name}: {NAMED[name].note}"


def random_label(name: str) -> str:
    """How tables name a random mask."""
    _, head_dim, length, _, *sizes = name.split("-")
    heads = f", {sizes[0][1:]} heads of {sizes[1][1:]}, batch {sizes[2][1:]}" if sizes else ""
    return f"random, D {head_dim[1:]}, S {length[1:]}{heads}"


RATES = "Each cell shows the other library's TFLOP/s and our speed-up over it."
HOPPER = {
    f"Full and causal. {RATES}": tuple(_full_and_causal()),
    f"Masks. {RATES}": tuple(_masks()),
    "Whole calls from Python. Each cell shows the other library's microseconds a call and our speed-up over it. "
    "*Alone*: the caller waits for the device after each call. *In a row*: the caller waits after a hundred calls. "
    "Each turn begins after a rest of 50 ms.": tuple(_whole_calls()),
}
PORTABLE = {RATES: tuple(_portable())}
README = tuple(Target(NAMED[name].note, ("vlm",), (name,), SPARSE_MASKS, some=True) for name in NAMED)
README_GRADIENTS = {
    name: Target(NAMED[name].note, (f"vlm {PASSES['bwd'].name}",), (name,), ("cudnn-flex",))
    for name in README_MODELS
}


def best_others(library: Library) -> str:
    """The table of README.md: some masks of models, ours beside the fastest other library, and the span of all."""
    measured = [(target, compared(target, library)) for target in README]
    rival = _label(README_GRADIENTS["W1"].rivals[0])
    lines = [["mask", "allowed pairs", "omnicupy", "fastest other library", "speed-up"]]
    lines[0] += ["gradients, the default", f"speed-up over {rival}"]
    lines.append(["---", "---:", "---:", "---", "---:", "---:", "---:"])
    of_gradients: list[Compared] = []
    for target, one in measured:
        if target.workloads[0] not in README_MODELS:
            continue
        wanted = README_GRADIENTS[target.workloads[0]]
        both = compared(wanted, library)
        last = [both.ours, f"{both.ratio:.2f}"] if both else ["", ""]
        of_gradients += [both] if both else []
        if one is None:
            lines.append([target.label, *[""] * 3, "not measured", *last])
            continue
        density = next(row["density"] for row in one.parts[0].rows if row["workload"] in target.workloads)
        theirs = f"{one.theirs}, {_label(one.rival)}"
        lines.append([target.label, f"{density:.1%}", one.ours, theirs, f"{one.ratio:.2f}", *last])
    known = [one for _, one in measured if one]
    if not known:
        return f"{table(lines)}\n\nNo record yet."
    least, most = min(one.ratio for one in known), max(one.ratio for one in known)
    where = f"Measured on one {_devices(known)}"
    if of_gradients:
        where = f"{where}, gradients on one {_devices(of_gradients)}"
    return (
        f"{table(lines)}\n\n{where}. Over all {len(known)} masks the speed-up is {least:.2f} to {most:.2f}."
    )


def _devices(known: Sequence[Compared]) -> str:
    return ", ".join(sorted({str(part.content.get("device")) for one in known for part in one.parts}))


def hopper(library: Library) -> str:
    """The Hopper kernel beside its rivals."""
    return tables(library, HOPPER)


def portable(library: Library) -> str:
    """The mma.sync kernel on the same GPU."""
    return tables(library, PORTABLE)


def tables(library: Library, groups: Mapping[str, Sequence[Target]]) -> str:
    """A table for each group. Targets without a measurement are shown as such: none is left out."""
    used: dict[str, FromRecord] = {}
    parts = ["Brackets hold our goal: the minimum, and what we aim at. A missed minimum is bold."]
    for title, targets in groups.items():
        parts.append(f"{title}\n\n{_table(library, targets, used)}")
    names = [f"[{name}](results/{name}) ({_product(part.content)})" for name, part in sorted(used.items())]
    devices = sorted({str(part.content.get("device")) for part in used.values()})
    parts.append(f"Records of {', '.join(devices)}: {', '.join(names)}." if used else "No record yet.")
    return "\n\n".join(parts)


def _product(content: dict[str, Any]) -> str:
    rate = content.get("gemm_tflops")
    return f"{MATRIX_PRODUCT} {rate:.0f}" if rate else "no matrix product"


def _table(library: Library, targets: Sequence[Target], used: dict[str, FromRecord]) -> str:
    """Lines by label, a column a rival. used: records that the figures are from are added."""
    rivals = list(dict.fromkeys(rival for target in targets for rival in target.rivals))
    lines = [["", "omnicupy", *map(_label, rivals)], ["---", *["---:"] * (1 + len(rivals))]]
    for label in dict.fromkeys(target.label for target in targets):
        ours = ""
        cells: dict[str, Cell] = {}
        for target in (one for one in targets if one.label == label):
            found = compared(target, library)
            rival = found.rival if found else target.rivals[-1]
            cell = cells.setdefault(rival, Cell(found))
            cell.least = cell.least or target.least
            cell.aim = cell.aim or target.aim
            if found:
                ours = found.ours
                used |= {part.name: part for part in found.parts}
        lines.append([label, ours, *(str(cells.get(rival, "")) for rival in rivals)])
    return table(lines)


@dataclass
class Cell:
    """One comparison in a table, and what is wanted of it."""

    compared: Compared | None
    least: float | None = None
    aim: float | None = None

    def __str__(self) -> str:
        wanted = [f"{word} {one:.2f}" for word, one in (("at least", self.least), ("aim", self.aim)) if one]
        return f"{self._measured()} ({', '.join(wanted)})" if wanted else self._measured()

    def _measured(self) -> str:
        if self.compared is None:
            return "not measured"
        ratio = f"{self.compared.ratio:.3f}"
        if self.least and self.compared.ratio < self.least:
            ratio = f"**{ratio}**"
        return f"{self.compared.theirs}: {ratio}" if self.compared.theirs else ratio


@dataclass(frozen=True)
class Compared:
    """One comparison. rival: the system.  ours, theirs: figures.  parts: the records that they are from."""

    rival: str
    ours: str
    theirs: str
    ratio: float
    parts: tuple[FromRecord, ...]


def compared(target: Target, library: Library) -> Compared | None:
    """None where a row is missing or wrong."""
    known = list(by_workload(target, library).values())
    if not known or not target.mean:
        return min(known, key=lambda one: one.ratio, default=None)
    ratio = statistics.geometric_mean(one.ratio for one in known)
    return Compared(known[0].rival, "", "", ratio, tuple(part for one in known for part in one.parts))


def by_workload(target: Target, library: Library) -> dict[str, Compared]:
    """The comparison on each workload, {} where a row is missing or wrong."""
    parts = library.every(*target.suites)
    each = {name: _on(name, target, parts) for name in target.workloads}
    known = {name: one for name, one in each.items() if one}
    if len(known) == len(each):
        return known
    return by_workload(target.or_else, library) if target.or_else else {}


def _on(workload: str, target: Target, parts: Sequence[FromRecord]) -> Compared | None:
    """The comparison on one workload, in the first record that has all its rows."""
    for part in parts:
        rows = {row["system"]: row for row in part.rows if row["workload"] == workload}
        if not {target.ours, *target.rivals} - {MATRIX_PRODUCT} <= set(rows):
            continue
        of = {system: row for system, row in rows.items() if _is_right(row)}
        ours = _value(of[target.ours], target) if target.ours in of else None
        rates = {rival: _value(of[rival], target) for rival in target.rivals if rival in of}
        if MATRIX_PRODUCT in target.rivals:
            if not part.content.get("gemm_tflops"):
                continue
            rates[MATRIX_PRODUCT] = part.content["gemm_tflops"]
        theirs = {rival: rate for rival, rate in rates.items() if rate}
        if not ours or len(theirs) < (1 if target.some else len(target.rivals)):
            return None
        fastest = (min if target.figure else max)(theirs, key=theirs.__getitem__)
        his = theirs[fastest]
        ratio = his / ours if target.figure else ours / his
        return Compared(fastest, f"{ours:.0f}", f"{his:.0f}", ratio, (part,))
    return None


def _is_right(row: Row) -> bool:
    """Was the result held against the reference and found right?"""
    return row.get("correct", row.get("figures", {}).get("correct")) is True


def _value(row: Row, target: Target) -> float | None:
    found = row.get("figures", {}).get(target.figure) if target.figure else row.get("tflops")
    return float(found) if found else None


def _label(system: str) -> str:
    return system if system == MATRIX_PRODUCT else plot_style.style(system).label
