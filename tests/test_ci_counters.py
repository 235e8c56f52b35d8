""".ci/counters.py: what it makes of ncu's CSV files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

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


def _csv(counters: ModuleType, kernel: str = "attention_fwd_sm90") -> str:
    values = {"ID": "0", "Kernel Name": kernel, "device__attribute_display_name": "Some GPU"}
    values |= dict.fromkeys(counters.METRICS.values(), "12.34")
    values |= {
        "sm__cycles_active.avg": "90,000.0",
        "sm__cycles_elapsed.max": "100,000",
        "gpu__time_duration.sum": "64,480",
    }
    stalls = {"wait": 3.0, "barrier": 1.0, "long_scoreboard": 0.5, "no_instruction": 0.25, "selected": 0.25}
    values |= {f"{counters.STALL}{name}_per_issue_active.ratio": str(one) for name, one in stalls.items()}
    lines = (values, dict.fromkeys(values, "%"), values.values())
    rows = [",".join(f'"{cell}"' for cell in line) for line in lines]
    return "==PROF== Connected\n" + "\n".join(rows) + "\n"


def test_shares_and_times(counters: ModuleType) -> None:
    found = counters.figures(_csv(counters))
    assert (found["us"], found["tensor cores, %"], found["multiprocessors at work, %"]) == (64.5, 12.3, 90.0)
    assert [
        found[f"warps: {name}, %"] for name in ("wait", "barrier", "long scoreboard", "no instruction")
    ] == [
        60.0,
        20.0,
        10.0,
        5.0,
    ]


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
