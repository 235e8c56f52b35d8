"""Caches in pages and of e4m3: a line a workload, a column a kind of cache."""

from __future__ import annotations

from collections.abc import Callable

from omnicupy.tools.bench.pages import OVER, WHOLE
from omnicupy.tools.bench.records import OURS, Row, table
from omnicupy.tools.report.library import Found, Library
from omnicupy.tools.report.tables import of_newest


def over_one_piece(suite: str) -> Callable[[Library], str]:
    """The table of a suite: microseconds in one piece, then times over that, in brackets the share of the copy."""
    return lambda library: of_newest(library, (suite,), _table)


def _table(found: Found) -> str:
    of = {(row["workload"], row["system"]): row for row in found.rows}
    kinds = [name for name in dict.fromkeys(system for _, system in of) if name != WHOLE]
    lines = [["workload", "in one piece, us", *map(_word, kinds)], ["---", *["---:"] * (len(kinds) + 1)]]
    for name in dict.fromkeys(workload for workload, _ in of):
        whole = of.get((name, WHOLE))
        us = f"{1e3 * whole['ms']:.1f}{_share(whole)}" if whole and whole.get("ms") else "-"
        lines.append([name, us, *(_cell(of.get((name, kind))) for kind in kinds)])
    return table(lines)


def _word(system: str) -> str:
    """ "pages of 16" for "omnicupy:page16"; "e4m3, pages of 16"."""
    kind, _, size = system.removeprefix(f"{OURS}:").rpartition("page")
    if not kind and not size.isdigit():
        return size
    return ", ".join([kind.rstrip("-")] * bool(kind) + [f"pages of {size}"])


def _cell(row: Row | None) -> str:
    if row is None or not row.get("ms"):
        return "-"
    wrong = " (wrong)" if row.get("correct") is False else ""
    return f"{row['figures'][OVER]:.2f}{_share(row)}{wrong}"


def _share(row: Row) -> str:
    return f" ({row['copy_share']:.2f})" if "copy_share" in row else ""
