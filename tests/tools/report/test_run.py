"""Every block and picture of docs/report.md can be made from records of every suite, and the command writes them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import made_records
import pytest
from click.testing import CliRunner

from omnicupy.choose import ceilings
from omnicupy.parallel import Speeds
from omnicupy.tools.bench import records
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.cli.main import main
from omnicupy.tools.report import pictures, studies, tables
from omnicupy.tools.report import run as report_run
from omnicupy.tools.report.library import Library

# made_records has none of them.
OTHER_SUITES = ["host", "cold", "cpu", "presets", "counters", "scaling", "sharing", "parallel"]
OTHER_SUITES += ["step", "step-short", "step-gemma", "generate", "captured", "growing", "padded"]
DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "report.md").read_text()
RECORDS = (DOCS / "results" / "README.md").read_text()


def test_every_record_is_listed_with_what_it_measured() -> None:
    listed = re.findall(r"^\| \[([^]]+)\]\(\1\) \|", RECORDS, re.MULTILINE)
    files = [str(path.relative_to(DOCS / "results")) for path in (DOCS / "results").rglob("*.json")]
    assert sorted(listed) == sorted(files)
    part = made_records.record("dense", only=("d64",), commit="0123456789abcdef+")
    library = Library({"part.json": part}, {"other/all.json": made_records.record("memory", device="Other")})
    text = tables.every_record(library)
    assert (
        "the mma.sync kernel (4 of 10 workloads) | Made H100 | 580.0 | 12.9 | 01234567+ | 2026-01-02 03:04:05 |"
        in text
    )
    assert (
        "| [other/all.json](other/all.json) | `memory`: peak device memory of a call and of a mask object |"
        in text
    )


def test_the_text_between_the_blocks_states_no_figures() -> None:
    prose = report_run.BLOCK.sub("", TEXT)
    found = re.findall(
        r"\d[\d.,]*\s*(?:%|x\b|T?FLOP|TB/s|MiB|ms\b|us\b|times\b)", prose.replace("4 x head_dim x", "")
    )
    assert found == []


def test_rendering_twice_changes_nothing_and_leaves_the_text() -> None:
    library = Library.open(DOCS / "results")
    text = "# A\n\n<!-- generated: records -->\nstale words\n<!-- end -->\n\nWords.\n"
    once = report_run.render(text, library)
    assert once.startswith("# A\n\n<!-- generated: records -->\n\n| record | suites |")
    assert once.endswith("<!-- end -->\n\nWords.\n")
    assert "stale words" not in once
    assert report_run.render(once, library) == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- generated: speed -->\n<!-- end -->",
            "report: expected a block of some of results, .*, got 'speed'",
        ),
        ("<!-- generated: records -->\n", "report: a generated block does not end"),
    ],
)
def test_blocks_that_are_wrong_raise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report_run.render(text, Library.open(DOCS / "results"))


def test_a_folder_without_records_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report: expected records .* found none; run `bench` with --out"):
        Library.open(tmp_path)


DEVICE = ceilings.load()[0].device.name
FEW = ("d128-s16384", "full-d128-s4096", "W4", "W5", "W12", "s1024", "h32-k8-b16")


def _errors(system: str, error: float) -> dict[str, Any]:
    known = {"suite": "accuracy", "workload": "normal-causal-d64-s1024-float16", "input": "normal"}
    rms = {"out": 1e-3, "dq": error, "dk": 5e-4, "dv": 5e-4}
    return {**known, "dtype": "float16", "system": system, "rms": rms}


@pytest.fixture(scope="module")
def library() -> Library:
    """Made-up records of every suite on a device whose ceilings are known, and an older one of dense."""
    made: dict[str, dict[str, Any]] = {}
    for suite in GPU_SUITES:
        made[f"{suite}.json"] = made_records.record(suite, only=FEW, device=DEVICE)
    for suite in ("decode", "decode-steps"):
        made[f"{suite}.json"] = made_records.record(suite, only=("b16",), device=DEVICE)
    passes = {"backward": ("dense", "vlm", "choices"), "forward+backward": ("build", "seeds")}
    for name, suite in ((name, suite) for name, suites in passes.items() for suite in suites):
        record = made_records.record(suite, only=(*FEW, "s2048-seed0"), device=DEVICE)
        made[f"{suite}-{name}.json"] = record | {"rows": [row | {"pass": name} for row in record["rows"]]}
    made |= made_records.of_caches(DEVICE)
    made["old.json"] = made_records.record(
        "dense", only=FEW, device="Old GPU", started="2020-01-01T00:00:00Z"
    )
    known = {"workload": "w", "system": "omnicupy", "figures": {"ms": 1.5}}
    rows = [known | {"suite": name} for name in OTHER_SUITES if name != "atoms"]
    rows.append(known | {"suite": "counters", "pass": "backward"})
    rows += made_records.shapes_of_instructions()
    rows += [
        _errors(system, error) for system, error in (("omnicupy", 1.2e-3), ("flex", 1e-3), ("fa4", 2e-3))
    ]
    made["host.json"] = {
        **made_records.HEADER,
        "suites": [*OTHER_SUITES, "accuracy"],
        "node": 8,
        "speeds": asdict(Speeds()),
        "rows": rows,
    }
    return Library(made)


SLOW = {"backward predictions": 4}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.in_turn(SLOW[name]) if name in SLOW else ())
        for name in report_run.BLOCKS
    ],
)
def test_every_block_is_made_from_records(library: Library, name: str) -> None:
    found = report_run.BLOCKS[name](library)
    assert found != tables.NONE
    if not name.startswith("picture"):
        assert found.count("\n| ") >= 2, found
    assert "nan" not in found
    assert "Old GPU" not in found or name in ("records", "every record")


def test_errors_above_the_best_other_library_s_are_named(library: Library) -> None:
    text = report_run.BLOCKS["accuracy"](library)
    assert "| normal | float16 | 1 | 1.0e-03 (1.00) | 1.2e-03 (1.20) | 5.0e-04 (1.00) |" in text
    assert "| 1 of 4 |" in text
    assert "3 of 4 errors of ours are at most 1.05 times the best rival's.\n\n- normal-causal" in text
    assert "omnicupy: dq 1.20e-03 (1.20 of flex)" in text
    assert report_run.BLOCKS["accuracy"](Library({"a.json": {"rows": []}})) == tables.NONE


def test_the_newest_record_is_taken() -> None:
    older = made_records.record("dense", only=("full-d128-s4096",), started="2025-01-01")
    newer = made_records.record("dense", only=("full-d128-s4096",), started="2026-01-01")
    library = Library({"z.json": older, "a.json": newer})
    found = library.newest("shapes", "dense")
    assert found is not None
    assert ([part.name for part in found.parts], found.suite) == (["a.json"], "dense")
    assert library.newest("memory") is None
    assert tables.dense(Library({"a.json": {**newer, "rows": []}})) == tables.NONE


def test_older_records_of_the_device_add_workloads() -> None:
    older = made_records.record("dense", started="2025-01-01")
    newer = made_records.record("dense", only=("full-d128-s4096",), started="2026-01-01")
    other = {**made_records.record("dense", started="2025-06-01"), "device": "Other GPU"}
    found = Library({"old.json": older, "new.json": newer, "other.json": other}).newest("dense")
    assert found is not None
    assert [part.name for part in found.parts] == ["new.json", "old.json"]
    names = [row["workload"] for row in found.rows]
    assert names.count("full-d128-s4096") == sum(
        row["workload"] == "full-d128-s4096" for row in newer["rows"]
    )
    assert set(names) == {row["workload"] for row in older["rows"]}
    assert [len(part.rows) for part in found.parts] == [len(newer["rows"]), len(names) - len(newer["rows"])]
    assert "[new.json](results/new.json)" in found.source
    assert "[old.json](results/old.json)" in found.source


def test_dense_figures_are_the_record_s() -> None:
    content = made_records.record("dense", only=("d128-s4096",))
    of = {(row["workload"], row["system"]): row["tflops"] for row in content["rows"]}
    text = tables.dense(Library({"x.json": content}))
    full, causal = of["full-d128-s4096", "omnicupy"], of["causal-d128-s4096", "omnicupy"]
    assert f"| D 128, S 4096 | {full:.0f} / {causal:.0f} |" in text
    content["rows"][0]["correct"] = False
    assert f"{full:.0f} (wrong) / " in tables.dense(Library({"x.json": content}))


@pytest.mark.parametrize("suite", ["choices", "tiles90"])
def test_choices_are_compared_with_the_best_tile(suite: str) -> None:
    content = made_records.record(suite, only=("W4",))
    rows = [row for row in content["rows"] if row.get("ms")]
    best = max(rows, key=lambda row: row["tflops"])
    text = studies.choices(Library({"x.json": content}))
    (line,) = (line for line in text.splitlines() if line.startswith("| W4 "))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    chosen = next(row for row in rows if row["spec"] == cells[1])
    assert cells[2:] == [
        f"{chosen['tflops']:.0f}",
        best["spec"],
        f"{best['tflops']:.0f}",
        f"{best['tflops'] / chosen['tflops']:.3f}",
    ]


def test_predictions_tell_fitted_from_fresh(library: Library) -> None:
    text = studies.predictions(library)
    assert "| vlm.json | no |" in text
    assert "all but itself" not in text  # none of the ceilings' records is here
    (real,) = (found[0] for found in report_run.BLOCK.finditer(TEXT) if found["name"] == "predictions")
    assert "| yes |" in real
    assert "| all but itself |" in real


def test_every_picture_is_drawn(library: Library, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = pictures.save(library, tmp_path / "plots")
    assert [file.stem for file in files] == list(pictures.SHOWN)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def _copy(tmp_path: Path) -> Path:
    """The records, and of the report two blocks: the others are made anew by another test."""
    docs = tmp_path / "docs"
    shutil.copytree(DOCS / "results", docs / "results")
    blocks = [found[0] for found in report_run.BLOCK.finditer(TEXT) if found["name"] in ("records", "dense")]
    assert len(blocks) == 2
    (docs / "report.md").write_text("\n\n".join(blocks))
    shutil.copy(DOCS.parent / "README.md", tmp_path / "README.md")
    return docs


def test_the_command_writes_and_checks(tmp_path: Path) -> None:
    docs = _copy(tmp_path)
    arguments = ["report", "--docs", str(docs)]
    done = CliRunner().invoke(main, [*arguments, "--check"])
    assert (done.exit_code, done.stdout) == (0, "The tables are those of the records.\n")
    assert done.stderr.startswith("tables: ")
    content = records.load(docs / "results" / "h100-dense.json")
    content["rows"][0]["tflops"] = 999.0
    records.Record(
        docs / "results" / "h100-dense.json",
        {k: v for k, v in content.items() if k not in ("rows", "schema")},
    )
    record = records.Record(
        docs / "results" / "h100-dense.json", {k: v for k, v in content.items() if k != "rows"}
    )
    for row in content["rows"]:
        record.add(**row)
    done = CliRunner().invoke(main, [*arguments, "--check", "--json"])
    assert "are not those of the records; run `report`" in done.stderr
    assert (done.exit_code, json.loads(done.stdout)) == (1, {"stale": [str(docs / "report.md")]})
    done = CliRunner().invoke(main, [*arguments, "--no-pictures"])
    assert done.exit_code == 0, done.output
    assert "999 / " in (docs / "report.md").read_text()
    assert not (docs / "plots").exists()
    done = CliRunner().invoke(main, [*arguments, "--check", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"stale": []})


def test_a_newer_record_without_a_call_as_users_make_it_hides_nothing() -> None:
    whole = made_records.record("dense", only=("full-d128-s4096",), started="2025-01-01")
    part = made_records.record("dense", only=("full-d128-s4096",), started="2026-01-01")
    part["rows"] = [row for row in part["rows"] if row["system"] != "omnicupy"]
    library = Library({"whole.json": whole, "part.json": part})
    found = library.newest("dense")
    assert found is not None
    assert [one.name for one in found.parts] == ["whole.json"]
    assert [one.name for one in library.every("dense")] == ["part.json", "whole.json"]
    alone = Library({"part.json": part}).newest("dense")
    assert alone is not None
    assert len(alone.rows) == len(part["rows"])


def test_a_suite_of_another_device_hides_nothing() -> None:
    here = made_records.record("dense", only=("full-d128-s4096",), started="2026-01-01")
    other = {
        **made_records.record("shapes", only=("full-d128-s4096",), started="2025-01-01"),
        "device": "Other GPU",
    }
    found = Library({"here.json": here, "other.json": other}).newest("shapes", "dense")
    assert found is not None
    assert (found.suite, found.content["device"]) == ("dense", here["device"])
