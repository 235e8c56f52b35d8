"""The processes that torchrun has started for a suite: `parallel` and what stands beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

TIME_LIMIT = timedelta(seconds=120)  # of NCCL and gloo: a rank that failed must not hold the others for long


def is_first() -> bool:
    """Whether this process writes: the only one, or the first of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group(suite: str) -> Iterator[Any]:
    """The default process group, whose ranks torchrun has started; gives this rank's device. Inside of another one of
    these it is that one: a second group of the same processes would not come up.

    Raises ValueError for a process that torchrun has not started, ImportError without torch.
    """
    import torch
    import torch.distributed as dist

    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"bench {suite}: expected a process that torchrun has started; run torchrun --nproc-per-node 2 -m omnicupy "
            f"bench {suite} --out FILE"
        )
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield device
        return
    bound = {"device_id": device} if on_gpu else {}
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIME_LIMIT, **bound)
    try:
        yield device
    finally:
        dist.destroy_process_group()
