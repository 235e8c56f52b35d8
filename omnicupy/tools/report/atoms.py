"""The report's tables of instruction shapes: K of mma.sync, N and M of wgmma, each beside the shipped kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from omnicupy.tools.bench.atoms import SUITE
from omnicupy.tools.bench.gradients import PASSES
from omnicupy.tools.bench.records import Row, table
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.report.tables import NONE

# By what varies: what a line is compared with.
STUDIES = {"k": "the shipped instruction", "n": "the shipped instruction", "m": "the tallest tile"}


def study(name: str) -> Callable[[Library], str]:
    """The table of one of STUDIES: useful TFLOP/s by workload, and in brackets the share of the first of its kind."""
    return lambda library: _study(library, name)


def _study(library: Library, name: str) -> str:
    suites = (SUITE, f"{SUITE} {PASSES['bwd'].name}")
    found = [one for one in (library.newest(suite) for suite in suites) if one]
    if not found:
        return NONE
    rows = [row for one in found for row in one.rows if row["study"] == name]
    names = list(dict.fromkeys(_column(row) for row in rows))
    lines = [["pass", "head_dim", "tile", "instruction", "registers", *names]]
    lines.append(["---", "---:", "---", "---", "---", *["---:"] * len(names)])
    for key, group in _groups(rows).items():
        first = group[0]
        of = {_column(row): row for row in group}
        base = {
            _column(row): row for row in rows if _key(row)[:2] == key[:2] and row["system"] == first["base"]
        }
        cells = [_rate(of.get(column), base.get(column)) for column in names]
        lines.append([*key[:2], first["tile"], _instruction(first), _registers(first), *cells])
    note = f"Useful TFLOP/s, and the share of what {STUDIES[name]} reaches."
    return f"{_source(found)}\n\n{note}\n\n{table(lines)}"


def _source(found: Iterable[Found]) -> str:
    return "; ".join(dict.fromkeys(one.source for one in found))


def _key(row: Row) -> tuple[str, str, str]:
    return str(row["pass"]), str(row["shape"][5]), str(row["system"])


def _groups(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of each variant."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault(_key(row), []).append(row)
    return found


def _column(row: Row) -> str:
    return f"{row['workload'].partition('-')[0]} {row['shape'][3]}"


def _instruction(row: Row) -> str:
    m, scores, sums, k = row["atom"]
    if row["tile"].startswith("sm80"):
        return f"m{m}n{scores}k{k}"
    return f"m{m}n{scores}k{k}" + ("" if scores == sums else f", sums n{sums}")


def _registers(row: Row) -> str:
    """Registers of each kernel, and what the compiler says against it."""
    parts = []
    for part, count in row["registers"].items():
        flaw = row["flaws"].get(part)
        parts.append(f"{count} ({flaw})" if flaw else str(count))
    return ", ".join(parts)


def _rate(row: Row | None, base: Row | None) -> str:
    if row is None or row.get("ms") is None:
        return "" if row is None else str(row.get("problem"))
    share = "" if base is None or base is row or not base.get("ms") else f" ({base['ms'] / row['ms']:.2f})"
    return f"{row['tflops']:.0f}{share}"
