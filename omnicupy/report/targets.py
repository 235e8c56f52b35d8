"""What was aimed at, beside what was measured: the table of README.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omnicupy.bench import plotstyle, records
from omnicupy.bench.records import OURS, Row, table
from omnicupy.report.library import Found, FromRecord, Library

MATRIX_PRODUCT = "8192^3 matrix product"
IN_A_ROW, ALONE = "us_of_100_in_a_row", "us_alone"
MODELS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8f", "W9", "W10", "W11", "W12", "W13")
SHORT = tuple(
    f"random-d128-s{length}-seed0-{heads}-b{batch}"
    for length, batch in ((1024, 4), (2048, 8))
    for heads in ("h28-k4", "h16-k16")
)
LONG_RANDOM = ("random-d64-s8192-seed0", "random-d64-s16384-seed0")


@dataclass(frozen=True)
class Target:
    """One line: how many times as fast as a rival, at least and if possible.

    suites: of which the first with a record is looked at.  workloads: the worst of them counts.  rivals: systems, of
    which the fastest counts, or MATRIX_PRODUCT; all must have been measured.  ours: our system.  figure: of rows that
    hold no rate: the name of a time.  mean: the geometric mean instead of the worst.
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


def _dense(label: str, name: str, rival: str, least: float | None, aim: float | None = None) -> Target:
    return Target(label, ("shapes", "dense"), (name,), (rival,), least, aim)


def _hopper() -> Iterator[Target]:
    yield _dense("D 128, S 16384, full", "full-d128-s16384", "sdpa-cudnn", 1.08)
    yield _dense("", "full-d128-s16384", "fa4", 0.97)
    yield _dense("", "full-d128-s16384", MATRIX_PRODUCT, None, 0.9)
    yield _dense("D 128, S 16384, causal", "causal-d128-s16384", "sdpa-cudnn", 1.1, 1.2)
    yield _dense("D 128, S 4096, causal", "causal-d128-s4096", "sdpa-cudnn", 1.0, 1.2)
    for head_dim, least, aim in ((64, 1.1, 1.25), (256, 1.0, 1.15)):
        for kind in ("full", "causal"):
            name = f"{kind}-d{head_dim}-s16384"
            yield _dense(f"D {head_dim}, S 16384, {kind}", name, "sdpa-cudnn", least, aim)
    for name in MODELS:
        yield Target(name, ("vlm",), (name,), ("cudnn-flex",), 0.95)
        yield Target("", ("vlm",), (name,), ("flex",), 1.4)
    yield Target("W1 to W13, geometric mean", ("vlm",), MODELS, ("cudnn-flex",), 1.0, 1.15, mean=True)
    for name in LONG_RANDOM:
        yield Target(_random_label(name), ("random",), (name,), ("flex",), 2.0)
        yield Target("", ("random",), (name,), ("cudnn-flex",), None, 1.2)
    for name in ("W15", *SHORT):
        for figure, how in ((IN_A_ROW, "in a row"), (ALONE, "alone")):
            label = f"{'W15' if name == 'W15' else _random_label(name)}, whole calls {how}"
            yield Target(label, ("latency",), (name,), ("flex",), 2.0, figure=figure)
            yield Target("", ("latency",), (name,), ("flex", "cudnn-flex"), None, 3.0, figure=figure)


def _portable() -> Iterator[Target]:
    for head_dim, ours in ((64, "sm80-128x96-s2-w4"), (128, "sm80-128x64-s1-w4")):
        for length in (4096, 16384):
            for kind in ("full", "causal"):
                label, name = f"D {head_dim}, S {length}, {kind}", f"{kind}-d{head_dim}-s{length}"
                yield Target(
                    label, ("shapes", "dense"), (name,), ("sdpa-flash",), 0.95, ours=f"{OURS}:{ours}"
                )
    for name in ("W1", "W4", "W5", "W11", "W12"):
        yield Target(name, ("masks",), (name,), ("flex",), 0.75, ours=f"{OURS}:sm80-128x64-s1-w4")
    for name in ("random-d64-s1024-seed0", "random-d64-s16384-seed0"):
        yield Target(
            _random_label(name), ("random",), (name,), ("flex",), 1.2, ours=f"{OURS}:sm80-128x96-s2-w4"
        )


def _random_label(name: str) -> str:
    _, head_dim, length, _, *sizes = name.split("-")
    heads = f", {sizes[0][1:]} heads of {sizes[1][1:]}, batch {sizes[2][1:]}" if sizes else ""
    return f"random, D {head_dim[1:]}, S {length[1:]}{heads}"


def hopper(library: Library) -> str:
    """The Hopper kernel beside its rivals."""
    return _table(library, tuple(_hopper()))


def portable(library: Library) -> str:
    """The mma.sync kernel on the same GPU."""
    return _table(library, tuple(_portable()))


def _table(library: Library, targets: Sequence[Target]) -> str:
    """Lines without a measurement are shown as such: none is left out."""
    lines = [["case", "omnicupy", "against", "theirs", "times as fast", "at least", "aim"]]
    lines.append(["---", *["---:", "---", "---:", "---:", "---:", "---:"]])
    used: dict[str, FromRecord] = {}
    for target in targets:
        found = library.newest(*target.suites)
        compared = _compared(target, found) if found else None
        cells = ["", " or ".join(map(_label, target.rivals)), "", "not measured"]
        if compared:
            used |= {part.name: part for part in compared.parts}
            ratio = f"{compared.ratio:.3f}"
            if target.least is not None and compared.ratio < target.least:
                ratio = f"**{ratio}**"
            cells = [compared.ours, _label(compared.rival), compared.theirs, ratio]
        wanted = [f"{one:.2f}" if one is not None else "" for one in (target.least, target.aim)]
        lines.append([target.label, *cells, *wanted])
    names = "; ".join(f"`{name}` ({records.caption(part.content)})" for name, part in sorted(used.items()))
    return f"TFLOP/s, or us of whole calls; bold: below the least. Records: {names or 'none yet'}.\n\n{table(lines)}"


@dataclass(frozen=True)
class Compared:
    """One comparison. rival: the system.  ours, theirs: figures.  parts: the records that they are from."""

    rival: str
    ours: str
    theirs: str
    ratio: float
    parts: tuple[FromRecord, ...]


def _compared(target: Target, found: Found) -> Compared | None:
    """None where a row is missing or wrong."""
    each = [_on(name, target, found) for name in target.workloads]
    known = [one for one in each if one]
    if len(known) < len(each):
        return None
    if target.mean:
        mean = math.exp(sum(math.log(one.ratio) for one in known) / len(known))
        return Compared(known[0].rival, "", "", mean, tuple(part for one in known for part in one.parts))
    return min(known, key=lambda one: one.ratio)


def _on(workload: str, target: Target, found: Found) -> Compared | None:
    """The comparison on one workload, whose rows are all of one record."""
    for part in found.parts:
        of = {row["system"]: row for row in part.rows if row["workload"] == workload and _is_right(row)}
        if target.ours not in of:
            continue
        ours = _value(of[target.ours], target)
        rates = {rival: _value(of[rival], target) for rival in target.rivals if rival in of}
        if MATRIX_PRODUCT in target.rivals:
            rates[MATRIX_PRODUCT] = part.content.get("gemm_tflops")
        theirs = {rival: rate for rival, rate in rates.items() if rate}
        if not ours or len(theirs) < len(target.rivals):
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
    return system if system == MATRIX_PRODUCT else plotstyle.style(system).label
