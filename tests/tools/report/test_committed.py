"""docs/report.md, docs/results/README.md and README.md are what the records in docs/results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from omnicupy.tools.report import run as report_run
from omnicupy.tools.report.library import Library

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "report.md").read_text()
README = (DOCS.parent / "README.md").read_text()
RECORDS = (DOCS / "results" / "README.md").read_text()
# They play launches, for minutes or a good part of one.
SLOW = {"backward predictions": 6, "backward unseen": 3, "predictions": 3, "predicted models": 3}


@pytest.fixture(scope="module")
def committed() -> Library:
    return Library.open(DOCS / "results")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.in_turn(SLOW[name]) if name in SLOW else ())
        for name in report_run.BLOCKS
    ],
)
def test_a_committed_table_is_that_of_the_records(name: str, committed: Library) -> None:
    (found,) = (one[0] for one in report_run.BLOCK.finditer(TEXT + RECORDS + README) if one["name"] == name)
    assert report_run.render(found, committed) == found, "run `python cli.py report`"


def test_the_report_has_every_block_once() -> None:
    blocks = re.findall(r"<!-- generated: (.*?) -->", TEXT + RECORDS + README)
    assert sorted(blocks) == sorted(report_run.BLOCKS)


def test_pictures_and_links_exist_and_no_other_pictures() -> None:
    linked = set(re.findall(r"\]\((plots/[^)]+)\)", TEXT))
    assert {f"plots/{path.name}" for path in (DOCS / "plots").iterdir()} == linked
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (DOCS / target).exists(), target
