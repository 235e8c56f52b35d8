"""Training on two processes, with DistributedDataParallel and FSDP2, on the CPU: the weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import processes  # noqa: E402 - after what it needs
import train_distributed as training  # noqa: E402


def _of_two_processes(kind: str, folder: Path) -> dict[str, Any]:
    arguments = [[kind, str(rank)] for rank in range(training.WORLD)]
    place = processes.run(training.__file__, arguments, folder, 2 * training.TIMEOUT)
    found: dict[str, Any] = torch.load(place / "weights.pt")
    return found


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.in_turn(4, at=at)) for kind, at in (("ddp", 0), ("fsdp", 2))],
)
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
