"""bench/beside.py on processes that measure nothing: their records as one, and what several processes cannot do."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy_gpu
import pytest
from click.testing import CliRunner

from omnicupy.masks.segment_masks import segments
from omnicupy.tools import environment
from omnicupy.tools.bench import beside, gradients, measure, memory, records
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.turns import Turns
from omnicupy.tools.cli.main import main
from omnicupy.tools.workloads.workload import Workload

SCRIPT = """
import sys, time
from pathlib import Path
from omnicupy.tools.bench.records import Record
from omnicupy.tools.bench.turns import Turns
words = sys.argv[1:]
turns = Turns(Path(words[words.index("--turns") + 1]), settle=lambda: None)
out = Path(words[words.index("--out") + 1])
head = {"device": "none", "started": out.stem, "suites": ["unseen"], "gemm_tflops": 700.0 + int(out.stem)}
record = Record(out, head)
record.suite = "unseen"
for name in ("W1", "W2", "W3", "W4"):
    if turns.claim(name):
        record.add(workload=name, system="omnicupy", **{"pass": "backward"}, ms=1.0, words=" ".join(words[:-4]))
        time.sleep(0.02)
sys.exit(FAILS and out.stem == "1")
"""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setattr(bench_run, "check_memory", lambda workload, mask: None)
    _run_instead(monkeypatch)


def _run_instead(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
    def command(words: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", SCRIPT.replace("FAILS", str(fails)), *words]

    monkeypatch.setattr(beside, "command", command)
    monkeypatch.setattr(beside, "POLL_S", 0.01)


def _bench(*words: str) -> Any:
    return CliRunner().invoke(main, ["bench", *words])


def test_shares_of_several_processes_are_one_record(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    done = _bench("unseen", "--pass", "bwd", "--samples", "7", "--jobs", "3", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    content = records.load(out)
    assert json.loads(done.stdout) == content
    assert [row["workload"] for row in content["rows"]] == ["W1", "W2", "W3", "W4"]
    assert (content["jobs"], content["gemm_tflops"], content["started"]) == (3, 700.0, "0")
    assert {row["words"] for row in content["rows"]} == {"--pass bwd --samples 7 -- unseen"}


def test_rows_of_a_run_that_fails_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_instead(monkeypatch, fails=True)
    out = tmp_path / "all.json"
    done = _bench("unseen", "--pass", "bwd", "--jobs", "2", "--out", str(out))
    assert done.exit_code == 1
    assert "--jobs: 1 of 2 processes failed" in done.output
    assert len(records.load(out)["rows"]) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["latency", "--jobs", "2"], "expected suites that time calls on the device"),
        (["host", "--jobs", "2"], "expected suites that time calls on the device"),
        (["build", "--jobs", "2"], "got build; leave --jobs out"),
        (["unseen", "--jobs", "2"], "add --pass bwd"),
        (["--jobs", "2"], "--jobs does nothing without SUITES"),
        (["--table", "x", "--jobs", "2"], "--jobs does nothing with --table"),
        (["unseen", "--jobs", "0"], "0 is not in the range"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(words: list[str], said: str) -> None:
    done = _bench(*words)
    assert done.exit_code != 0
    assert said in done.output


def test_what_is_shared_of_a_record_is_of_its_first_process() -> None:
    parts = [
        {"schema": 1, "started": at, "device": "one", "clocks_before": {"clocks.sm": at}, "rows": rows}
        for at, rows in (
            ("2", [{"workload": "W1", "system": "a", "pass": "forward"}]),
            ("1", [{"workload": "W2", "system": "a", "pass": "forward"}]),
        )
    ]
    found = beside.joined(parts, 2, ["W1", "W2"])
    assert (found["started"], found["clocks_before"], found["jobs"]) == ("1", {"clocks.sm": "1"}, 2)
    assert [row["workload"] for row in found["rows"]] == ["W1", "W2"]
    assert beside.joined([], 2, []) == {}
    parts[1]["device"] = "another"
    with pytest.raises(ValueError, match="expected one device"):
        beside.joined(parts, 2, [])


def _others_may(folder: Path) -> str:
    """What another process could do now: be "alone", "beside" others, or "nothing"."""
    file = os.open(folder / "lock", os.O_RDWR)
    try:
        for kind, said in ((fcntl.LOCK_EX, "alone"), (fcntl.LOCK_SH, "beside")):
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return said
        return "nothing"
    finally:
        os.close(file)


def test_what_is_timed_is_alone_and_done_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload("tiny", 1, (2, 1, 16), lambda: segments([("text", 30), ("image", 50)]), "")
    numpy_gpu.tiny_bench(monkeypatch, workload, gradients, memory)
    seen: dict[str, set[str]] = {}

    def watched(of: Any, name: str, said: str) -> None:
        do = getattr(of, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(said, set()).add(_others_may(tmp_path))
            return do(*arguments, **options)

        monkeypatch.setattr(of, name, noted)

    watched(measure, "_timed", "timed")
    watched(measure, "_ours", "prepared")
    watched(measure, "gemm_tflops", "begun")
    rows = []
    for _ in range(2):
        turns = Turns(tmp_path, settle=lambda: None)
        options = bench_run.Options(("dense",), ("W1",), ("omnicupy",), samples=3, timed="bwd", turns=turns)
        rows.append(bench_run.run(options, lambda line: None)["rows"])
        assert _others_may(tmp_path) == "beside"  # until it ends
        turns._give_back()
    assert seen == {"timed": {"nothing"}, "prepared": {"beside"}, "begun": {"nothing"}}
    assert [len(one) for one in rows] == [1, 0]
