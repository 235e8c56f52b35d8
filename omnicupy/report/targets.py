"""What was aimed at, beside what was measured: the table of README.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from omnicupy.bench import plotstyle
from omnicupy.bench.records import OURS, Row, table
from omnicupy.report.library import Found, Library

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

    suites: of which the first with a record is looked at.  workloads: the worst of them counts.  rival: a system, or
    MATRIX_PRODUCT, or "" for the fastest of all.  ours: our system.  figure: of rows that hold no rate: the name of a
    time.  mean: the geometric mean instead of the worst.
    """

    label: str
    suites: tuple[str, ...]
    workloads: tuple[str, ...]
    rival: str
    least: float | None = None
    aim: float | None = None
    ours: str = OURS
    figure: str = ""
    mean: bool = False


def _dense(label: str, name: str, rival: str, least: float | None, aim: float | None = None) -> Target:
    return Target(label, ("shapes", "dense"), (name,), rival, least, aim)


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
        yield Target(name, ("vlm",), (name,), "cudnn-flex", 0.95)
        yield Target("", ("vlm",), (name,), "flex", 1.4)
    yield Target("W1 to W13, geometric mean", ("vlm",), MODELS, "cudnn-flex", 1.0, 1.15, mean=True)
    for name in LONG_RANDOM:
        yield Target(_random_label(name), ("random",), (name,), "flex", 2.0)
        yield Target("", ("random",), (name,), "cudnn-flex", None, 1.2)
    for name in ("W15", *SHORT):
        for figure, how in ((IN_A_ROW, "in a row"), (ALONE, "alone")):
            label = f"{'W15' if name == 'W15' else _random_label(name)}, whole calls {how}"
            yield Target(label, ("latency",), (name,), "flex", 2.0, figure=figure)
            yield Target("", ("latency",), (name,), "", None, 3.0, figure=figure)


def _portable() -> Iterator[Target]:
    for head_dim, ours in ((64, "sm80-128x96-s2-w4"), (128, "sm80-128x64-s1-w4")):
        for length in (4096, 16384):
            for kind in ("full", "causal"):
                label, name = f"D {head_dim}, S {length}, {kind}", f"{kind}-d{head_dim}-s{length}"
                yield Target(label, ("shapes", "dense"), (name,), "sdpa-flash", 0.95, ours=f"{OURS}:{ours}")
    for name in ("W1", "W4", "W5", "W11", "W12"):
        yield Target(name, ("masks",), (name,), "flex", 0.75, ours=f"{OURS}:sm80-128x64-s1-w4")
    for name in ("random-d64-s1024-seed0", "random-d64-s16384-seed0"):
        yield Target(_random_label(name), ("random",), (name,), "flex", 1.2, ours=f"{OURS}:sm80-128x96-s2-w4")


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
    used: dict[str, Found] = {}
    for target in targets:
        found = library.newest(*target.suites)
        rival, ours, theirs, ratio = "", "", "", "not measured"
        compared = _compared(target, found) if found else None
        if found and compared:
            used |= {one.name: one for one in (found, *found.others)}
            rival, ours, theirs = compared.rival, compared.ours, compared.theirs
            ratio = f"{compared.ratio:.3f}"
            if target.least is not None and compared.ratio < target.least:
                ratio = f"**{ratio}**"
        wanted = [f"{one:.2f}" if one is not None else "" for one in (target.least, target.aim)]
        lines.append([target.label, ours, _label(rival or target.rival), theirs, ratio, *wanted])
    names = ", ".join(f"`{name}` ({_product(one)})" for name, one in sorted(used.items()))
    return f"TFLOP/s, or us of whole calls; bold: below the least. Records: {names or 'none yet'}.\n\n{table(lines)}"


@dataclass(frozen=True)
class Compared:
    rival: str
    ours: str
    theirs: str
    ratio: float


def _compared(target: Target, found: Found) -> Compared | None:
    """None where a row is missing or wrong."""
    value: Callable[[Row], float | None] = (
        (lambda row: row.get("figures", {}).get(target.figure))
        if target.figure
        else (lambda row: row.get("tflops"))
    )
    of = {
        (row["workload"], row["system"]): number
        for row in found.rows
        if row.get("correct") is not False and (number := value(row))
    }
    pairs = []
    for name in target.workloads:
        ours, rival = of.get((name, target.ours)), target.rival or _fastest(of, name)
        theirs = found.content.get("gemm_tflops") if rival == MATRIX_PRODUCT else of.get((name, rival))
        if ours is None or theirs is None:
            return None
        pairs.append((rival, ours, theirs))
    ratios = [theirs / ours if target.figure else ours / theirs for _, ours, theirs in pairs]
    if target.mean:
        return Compared(pairs[0][0], "", "", math.exp(sum(map(math.log, ratios)) / len(ratios)))
    worst = min(range(len(pairs)), key=ratios.__getitem__)
    rival, mine, his = pairs[worst]
    return Compared(rival, f"{mine:.0f}", f"{his:.0f}", ratios[worst])


def _fastest(of: dict[tuple[str, str], float], workload: str) -> str:
    """Of rivals' times: the least one's system."""
    found = {name: time for (of_name, name), time in of.items() if of_name == workload and name != OURS}
    return min(found, key=found.__getitem__, default="")


def _label(system: str) -> str:
    if system in ("", MATRIX_PRODUCT):
        return system or "the fastest"
    return plotstyle.style(system).label


def _product(found: Found) -> str:
    rate = found.content.get("gemm_tflops")
    return f"{MATRIX_PRODUCT} {rate:.0f}" if rate else "no matrix product"
