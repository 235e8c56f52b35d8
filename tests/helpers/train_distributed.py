"""Two steps of a tiny model's training in one process of several: python train_distributed.py KIND RANK FOLDER."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import processes
import tiny_models as tiny
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import omnicupy.transformers

WORLD, STEPS = 2, 2
TIMEOUT = 60  # seconds that a process waits for another


def rows(step: int) -> torch.Tensor:
    """The token ids of a step, a row for each process."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(2, tiny.IMAGE - 5, (WORLD, 20), generator=generator)


def train(model: Any, batches: list[torch.Tensor]) -> None:
    """A step for each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for ids in batches:
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def model(kind: str) -> Any:
    """The tiny model, distributed as `kind` says: "ddp", "fsdp" or "alone"."""
    made = tiny.model("llama", omnicupy.transformers.register()).train()
    if kind == "fsdp":
        for layer in made.model.layers:
            fully_shard(layer)
        fully_shard(made)
    return DistributedDataParallel(made) if kind == "ddp" else made


def main(kind: str, rank: int, folder: Path) -> None:
    """Train; the first process leaves the weights in the folder."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=TIMEOUT)
    )
    made = model(kind)
    train(made, [rows(step)[rank : rank + 1] for step in range(STEPS)])
    state = {
        name.removeprefix("module."): x.full_tensor() if hasattr(x, "full_tensor") else x
        for name, x in made.state_dict().items()
    }
    if rank == 0:
        torch.save(state, folder / "weights.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    processes.leave()
