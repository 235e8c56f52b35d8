"""Models in training on two processes, with DistributedDataParallel and FSDP2, on the CPU: the weights of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import train_distributed as training  # noqa: E402 - after what it needs

ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _of_two_processes(kind: str, file: Path) -> dict[str, Any]:
    script, port = Path(training.__file__), str(_free_port())
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), kind, str(rank), port, str(file)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(training.WORLD)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(printed)
    found: dict[str, Any] = torch.load(file)
    return found


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_the_weights_of_one(kind: str, tmp_path: Path) -> None:
    alone = training.model("alone")
    before = {name: x.clone() for name, x in alone.state_dict().items()}
    training.train(alone, [training.rows(step) for step in range(training.STEPS)])
    found = _of_two_processes(kind, tmp_path / "weights.pt")
    assert found.keys() == before.keys()
    for name, wanted in alone.state_dict().items():
        moved = (wanted - before[name]).abs().max()
        assert moved > 0, name
        assert (found[name] - wanted).abs().max() <= 1e-3 * moved + 1e-7, name
