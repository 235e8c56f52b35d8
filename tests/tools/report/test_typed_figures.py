"""Measured figures that stand in a sentence are those of the records, as the tables are."""

from __future__ import annotations

import re
from pathlib import Path

from omnicupy.tools.bench import records

DOCS = Path(__file__).parents[3] / "docs"
README = (DOCS.parent / "README.md").read_text()
SERVING = " ".join((DOCS / "serving.md").read_text().split())


def _ends(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def test_shares_of_one_gpu_s_time() -> None:
    table = (
        (DOCS / "report.md")
        .read_text()
        .split("<!-- generated: parallel goals -->")[1]
        .split("<!-- end -->")[0]
    )
    rows = [
        [cell.strip("* ") for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line[:3] in ("| 2", "| 4")
    ]
    shares = {
        gpus: [1 / (int(gpus) * float(row[5])) for row in rows if row[0] == gpus] for gpus in ("2", "4")
    }
    assert f"two H200s need {_ends(shares['2'])} of one's time, four {_ends(shares['4'])}." in README


def test_what_pages_take() -> None:
    prompts = [
        row for name in ("", "-2") for row in records.load(DOCS / f"results/h200-prompts{name}.json")["rows"]
    ]
    said = re.findall(r"pages of (\d+) (?:take )?(\d\.\d\d to \d\.\d\d)", SERVING)
    assert [page for page, _ in said] == ["128", "16", "8", "1"]
    for page, ends in said:
        of = [row for row in prompts if row["system"] == f"omnicupy:page{page}"]
        assert len(of) == 6
        assert ends == _ends([row["figures"]["time over contiguous"] for row in of])
    few = [
        row["figures"]["time over contiguous"]
        for row in records.load(DOCS / "results/h200-paged.json")["rows"]
        if row["system"] == "omnicupy:page16" and row["spec"].startswith("few-rows")
    ]
    assert f"Decoding with few rows takes {_ends(few)} of the time from pages of 16" in SERVING
