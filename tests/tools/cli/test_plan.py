"""The command `plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omnicupy.parallel import plan
from omnicupy.parallel.make import NAMES
from omnicupy.tools.cli.main import main
from omnicupy.tools.workloads.workload import NAMED


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_it_prints_every_assignment_and_the_plan() -> None:
    found = run("plan", "--mask", "W1", "--ranks", "8")
    assert found.exit_code == 0, found.output
    workload = NAMED["W1"]
    made = plan(workload.mask(), 8, heads=(workload.q_heads, workload.kv_heads, workload.head_dim))
    assert f"\n{made}\noverlap of rank 0, 1, 2, 3, 4, 5, 6, 7: heads " in found.stdout
    assert [line.split()[0] for line in found.stdout.splitlines()[1 : 1 + len(NAMES)]] == list(NAMES)


def test_json() -> None:
    sizes = ("--length", "300", "--heads", "4", "--kv-heads", "2", "--head-dim", "64")
    found = json.loads(
        run("plan", "--mask", "causal", *sizes, "--ranks", "3", "--node", "2", "--json").stdout
    )
    assert found["ranks"] == 3
    assert sum(found["of_ranks"]["pairs"]) == 300 * 301 // 2
    assert found["of_ranks"]["tokens"] == [100] * 3
    assert found["assignments"]["contiguous"]["balance"] == pytest.approx(0.6, abs=0.01)
    assert found["efficiency"] == max(
        found["efficiency"], *(one["efficiency"] for one in found["assignments"].values())
    )


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = run(
        "plan",
        "--mask",
        "text:100,image:50",
        "--heads",
        "1",
        "--head-dim",
        "8",
        "--ranks",
        "2",
        "--png",
        str(tmp_path / "a.png"),
    )
    assert found.exit_code == 0, found.output
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_errors() -> None:
    assert "Missing option '--ranks'" in run("plan", "--mask", "W1").output
    assert "--heads" in run("plan", "--mask", "causal", "--length", "9", "--ranks", "2").output
    assert "0 is not in the range" in run("plan", "--mask", "W1", "--ranks", "0").output
