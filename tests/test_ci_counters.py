""".ci/counters.py: what it makes of ncu's CSV files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "counters.py"


@pytest.fixture(scope="module")
def counters() -> ModuleType:
    spec = importlib.util.spec_from_file_location("counters", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _csv(counters: ModuleType, *kernels: str) -> str:
    lines: list[Any] = []
    for kernel in kernels or ("attention_fwd_sm90",):
        values = {"ID": "0", "Kernel Name": kernel, "device__attribute_display_name": "Some GPU"}
        values |= dict.fromkeys([*counters.METRICS.values(), *counters.MORE.values()], "12.34")
        values |= {
            "sm__cycles_active.avg": "90,000.0",
            "sm__cycles_elapsed.max": "100,000",
            "gpu__time_duration.sum": "64,480",
            "lts__t_sectors_op_red.sum": "4,030,000",
        }
        stalls = {"wait": 3.0, "barrier": 1.0, "long_scoreboard": 0.5, "no_instruction": 0.25, "gmma": 0.25}
        values |= {f"{counters.STALL}{name}_per_issue_active.ratio": str(one) for name, one in stalls.items()}
        lines += [] if lines else [values, dict.fromkeys(values, "%").values()]
        lines.append(values.values())
    rows = [",".join(f'"{cell}"' for cell in line) for line in lines]
    return "==PROF== Connected\n" + "\n".join(rows) + "\n"


def test_shares_and_times(counters: ModuleType) -> None:
    (row,) = counters.rows("W1", ["sm90"], _csv(counters))
    found = row["figures"]
    assert (found["us"], found["tensor cores, %"], found["multiprocessors at work, %"]) == (64.5, 12.3, 90.0)
    names = ("wait", "barrier", "long scoreboard", "no instruction")
    assert [found[f"warps: {name}, %"] for name in names] == [60.0, 20.0, 10.0, 5.0]
    assert "warps: gmma, %" not in found
    assert "L2, reductions, TB/s" not in found


def test_kernels_of_gradients_are_told_apart_by_the_marks(counters: ModuleType) -> None:
    made = ["sm90", "", "sm90", "", "", "dkdv_sm90", "dq_sm90", ""]
    text = _csv(counters, *(f"attention_bwd_{name}" if name else counters.MARK for name in made))
    kernels = ["bwd", "bwd_any_order", "bwd_sm80", "bwd_split"]  # the third one failed
    rows = counters.rows("full-d64-s4096", kernels, text)
    assert [row["system"] for row in rows] == [
        "omnicupy:sm90, default",
        "omnicupy:sm90, any-order",
        "omnicupy:dkdv sm90, split",
        "omnicupy:dq sm90, split",
    ]
    for row in rows:
        assert row["pass"] == "backward"
        assert row["figures"]["L2, reductions, TB/s"] == 2.0
        assert row["figures"]["warps: gmma, %"] == 5.0
        assert row["figures"]["adders of L2, %"] == 12.3
    assert counters.MARK in counters.CALL
    with pytest.raises(RuntimeError, match="counters: expected rows of kernels from ncu, it printed"):
        counters.rows("W1", ["bwd"], "==ERROR== no rights\n")


def test_metrics_that_ncu_does_not_have_are_left_out(
    counters: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def ncu(command: list[str], **_: Any) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout="Device Some GPU\nlts__t_sectors_op_red  Counter  sectors\n")

    monkeypatch.setattr(counters.subprocess, "run", ncu)
    assert len(list(counters.run([("W1", "sm90"), ("W2", "bwd"), ("W2", "bwd_split")]))) == 2
    first, query, second = asked
    assert query == ["ncu", "--query-metrics"]
    assert first[-2:] == ["W1", "sm90"]
    assert second[-3:] == ["W2", "bwd", "bwd_split"]
    wanted = [command[command.index("--metrics") + 1].split(",") for command in (first, second)]
    assert wanted[0] == list(counters.METRICS.values())
    assert wanted[1] == [*wanted[0], "lts__t_sectors_op_red.sum"]


def test_files_become_a_record(counters: ModuleType, tmp_path: Path) -> None:
    for name, kernel in (("W1-sm90", "fwd_sm90"), ("random-d64-s1024-seed0-x", "fwd_sm80")):
        (tmp_path / f"ncu-{name}.csv").write_text(_csv(counters, f"attention_{kernel}"))
    counters.main(str(tmp_path / "out.json"), "--from", str(tmp_path))
    content = json.loads((tmp_path / "out.json").read_text())
    assert (content["device"], content["suites"]) == ("Some GPU", ["counters"])
    assert [(row["workload"], row["system"]) for row in content["rows"]] == [
        ("W1", "omnicupy:sm90"),
        ("random-d64-s1024-seed0", "omnicupy:sm80"),
    ]
