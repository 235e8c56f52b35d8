"""bench parallel, under torchrun on the CPU: what it measures, and that the ranks' results are those of one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omnicupy.tools.bench import run as bench_run

ROOT = Path(__file__).parents[3]
torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)


def test_ranks_are_measured_beside_one_device(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for _ in range(3):
        done = subprocess.run(
            [*started, "-m", "omnicupy", "bench", "parallel", "--out", str(file)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
        if "connectFullMesh failed" not in done.stderr:  # gloo's first connection, on a busy machine
            break
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    assert content["ranks"] == 2
    rows = {row["workload"].split(", ", 1)[1]: row["figures"] for row in content["rows"]}
    assert list(rows) == [
        "2 ranks, forward",
        "2 ranks, forward+backward",
        "contiguous, 2 ranks, forward",
        "contiguous, 2 ranks, forward+backward",
    ]
    for found in rows.values():
        assert found["right"]
        assert found["same bits"]
        assert found["largest difference"] < 1e-4
        assert found["received, MB"] > 0
        for name in ("one device, ms", "all ranks, ms", "exchange alone, ms", "slowest launch alone, ms"):
            assert found[name] > 0
        share = found["one device, ms"] / found["all ranks, ms"] / 2
        assert found["efficiency"] == pytest.approx(share, abs=1e-3)


def test_it_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="run torchrun --nproc-per-node 2 -m omnicupy bench parallel"):
        bench_run.run(bench_run.Options(("parallel",)), lambda line: None)
