"""Training on two processes, with DistributedDataParallel and FSDP2, on the CPU: the weights of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import train_distributed as training  # noqa: E402 - after what it needs

ROOT = Path(__file__).parents[2]


def _of_two_processes(kind: str, folder: Path) -> dict[str, Any]:
    for attempt in range(3):
        (place := folder / str(attempt)).mkdir()
        printed = _run(kind, place)
        if printed is None:
            found: dict[str, Any] = torch.load(place / "weights.pt")
            return found
        # A busy machine may refuse gloo's first connection, which has nothing to do with what is tested.
        if "connectFullMesh failed" not in printed:
            break
    pytest.fail(printed)


def _run(kind: str, folder: Path) -> str | None:
    """Trains in two processes. Returns None, or what they printed where one failed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    logs = [(folder / f"log{rank}").open("w+") for rank in range(training.WORLD)]
    started = [
        subprocess.Popen(
            [sys.executable, training.__file__, kind, str(rank), str(folder)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + 2 * training.TIMEOUT
    try:  # until all are done, or one has failed, for which the others would wait
        while (codes := {one.poll() for one in started}) & {None} and codes <= {None, 0}:
            assert time.monotonic() < deadline, f"{kind}: still running"
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
            process.wait()
    for log in logs:
        log.seek(0)
    return None if codes == {0} else "\n".join(log.read() for log in logs)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_the_weights_of_one(kind: str, tmp_path: Path) -> None:
    alone = training.model("alone")
    before = {name: x.clone() for name, x in alone.state_dict().items()}
    training.train(alone, [training.rows(step) for step in range(training.STEPS)])
    found = _of_two_processes(kind, tmp_path)
    assert found.keys() == before.keys()
    for name, wanted in alone.state_dict().items():
        moved = (wanted - before[name]).abs().max()
        assert moved > 0, name
        assert (found[name] - wanted).abs().max() <= 1e-3 * moved + 1e-7, name
