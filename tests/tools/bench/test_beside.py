"""bench/beside.py on processes that measure nothing: their records as one, and what several processes cannot do."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
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

# The command itself, with what measures replaced: headers come field by field, as those of sessions do.
SCRIPT = """
import sys, time
from omnicupy.tools import environment
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.records import Record
from omnicupy.tools.cli.main import main

def run(options, say):
    options.turns._settle = lambda: None
    number, = map(int, [options.out.stem])
    record = Record(options.out, {"device": "none", "started": str(number), "suites": list(options.suites)})
    with options.turns.alone():
        time.sleep(0.05)
        record.set(arch="sm_90", clocks_before={"clocks.sm": str(number)})
        time.sleep(0.05)
        record.set(gemm_tflops=700.0 + number)
    record.suite, waited = options.suites[0], 0
    if number:
        record.set(missing={"fa4": "is not there"})
    while FAILS and not number and not (options.turns._folder / "W1").exists():
        time.sleep(0.01)  # until the other one has claimed it
        if (waited := waited + 1) > 6000:
            raise ValueError("the other one is not there")
    for name in ("W1", "W2", "W3", "W4"):
        if options.turns.claim(name):
            if FAILS and number:
                raise ValueError("broken")
            known = {"pass": options.timed, "samples": options.samples, "density": 1.0}
            record.add(workload=name, system="omnicupy", ms=1.0, tflops=1.0, **known)
            time.sleep(0.05)
    return record.content

bench_run.run = run
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setattr(bench_run, "check_memory", lambda workload, mask: None)
    _run_instead(monkeypatch)


def _run_instead(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
    def command(words: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", SCRIPT.replace("FAILS", str(fails)), "bench", *words]

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
    assert content["clocks_before"] == {"clocks.sm": "0"}
    assert content["missing"] == {"fa4": "is not there"}
    assert {(row["pass"], row["samples"], row["suite"]) for row in content["rows"]} == {("bwd", 7, "unseen")}


def test_rows_of_a_run_that_fails_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_instead(monkeypatch, fails=True)
    out = tmp_path / "all.json"
    done = _bench("unseen", "--pass", "bwd", "--jobs", "2", "--out", str(out))
    assert done.exit_code == 1
    rows = records.load(out)["rows"]
    said = (
        f"--jobs: 1 of 2 processes failed (exit status 1), {len(rows)} rows are in {out}; without rows: W1, "
    )
    assert said in done.output
    assert [row["workload"] for row in rows] == ["W2", "W3", "W4"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["latency", "--jobs", "2"], "expected suites that time calls on the device"),
        (["unsen", "--jobs", "2"], "unsen"),
        (["unseen", "--pass", "bwd", "--jobs", "2", "--out", "."], "expected a file, got the folder"),
        (
            ["unseen", "--pass", "bwd", *["--system", "flex"] * 2, "--jobs", "2"],
            "expected each workload and system once, got flex again",
        ),
        (["host", "--jobs", "2"], "expected suites that time calls on the device"),
        (["build", "--jobs", "2"], "got build; leave --jobs out"),
        (["unseen", "--jobs", "2"], "add --pass bwd"),
        (["--jobs", "2"], "--jobs does nothing without SUITES"),
        (["--table", "x", "--jobs", "2"], "--jobs does nothing with --table"),
        (["unseen", "--jobs", "0"], "0 is not in the range"),
        (["unseen", "--pass", "bwd", "--workload", "W1", "--workload", "W1", "--jobs", "2"], "got W1 again"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(words: list[str], said: str) -> None:
    done = _bench(*words)
    assert done.exit_code != 0
    assert said in done.output


def test_there_are_no_more_processes_than_workloads() -> None:
    done = _bench("unseen", "--pass", "bwd", "--workload", "W1", "--workload", "W2", "--jobs", "9", "--json")
    assert json.loads(done.stdout)["jobs"] == 2


def test_what_was_measured_stays_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "all.json", records.write

    def full(path: Path, content: dict[str, Any]) -> None:
        if content["rows"]:
            raise OSError("no space left on device")
        write(path, content)

    monkeypatch.setattr(records, "write", full)
    done = _bench("unseen", "--pass", "bwd", "--jobs", "2", "--out", str(out))
    assert done.exit_code != 0
    (said,) = re.findall(r"what each process measured is in (\S+)", done.output)
    kept = [row for file in Path(said).glob("*.json") for row in records.load(file)["rows"]]
    assert sorted(row["workload"] for row in kept) == ["W1", "W2", "W3", "W4"]
    shutil.rmtree(said)


def test_processes_are_ended_by_what_ends_their_parent() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, beside._ended_by_signals():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


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
    (found,) = {_of_one(folder / name) for name in ("lock", "late-lock")}
    return found


def _of_one(lock: Path) -> str:
    file = os.open(lock, os.O_RDWR)
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
    assert "host_us" not in rows[0][0]  # which others would have kept busy
