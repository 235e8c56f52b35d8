"""Heads of the report's tables of single figures: every recorded figure has one in words, with its unit."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from omnicupy.tools.report import heads, run
from omnicupy.tools.report.library import Library

DOCS = Path(__file__).parents[3] / "docs"


def test_every_recorded_figure_has_a_head_in_words() -> None:
    library = Library.open(DOCS / "results")
    contents = [*library.of.values(), *library.elsewhere.values()]
    names = {name for content in contents for row in content["rows"] for name in row.get("figures") or {}}
    assert {"us_alone", "host_us, no mask", "kept_bytes", "mib"} <= names
    assert not [name for name in names if "_" in heads.head(name)]


def test_no_table_of_the_report_has_a_raw_name_as_its_head() -> None:
    lines = (DOCS / "report.md").read_text().splitlines()
    found = [above for above, below in pairwise(lines) if below.startswith("| ---")]
    assert len(found) > 20
    assert not [line for line in found if "_" in re.sub("flex_attention|head_dim", "", line)]


def test_heads_name_units_and_cells_are_in_them() -> None:
    assert heads.head("host_us, mask, lse") == "host, us: mask, lse"
    assert heads.head("warps: barrier, %") == "warps: barrier, %"
    assert heads.cell("kept_bytes", 3 << 19) == "1.5"
    assert heads.cell("kept_bytes", 0) == "0"
    assert heads.cell("useful", 0.5039) == "50.4%"
    assert heads.cell("correct", True) == "yes"
    assert heads.cell("correct", False) == "no"
    assert heads.cell("problem", "no masks") == "no masks"
    assert heads.cell("entries", 33_560_000) == "3.356e+07"
    assert heads.cell("error", None) == ""


def test_a_new_figure_needs_a_head() -> None:
    with pytest.raises(ValueError, match="got 'warm_ms'; give it a head"):
        heads.head("warm_ms")
    assert run.BLOCKS["short"](Library.open(DOCS / "results")).count("a call alone, us") == 1
