"""One rank of gloo processes whose keys travel by the kernel for GPUs of one host: python peer_ranks.py WHAT RANK RANKS
FOLDER. Files stand in for memory of devices (host_peers.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import host_peers
import parallel_ranks
import processes
import torch
from parallel_ranks import TIMEOUT, whole

import omnicupy as oc
import omnicupy.parallel
from omnicupy.parallel import overlap, peer_trip, peers, plan

WAYS: dict[str, Any] = {"behind": False, "rows": "rows", "heads": [1, 1]}
WIDE = 16  # columns of v


def _share(rank: int, folder: Path, **other: Any) -> host_peers.Device:
    """Have tensors on the CPU travel by the kernel. other: attributes of the device."""
    device = host_peers.Device(folder, str(rank))
    for name, value in other.items():
        setattr(device, name, value)
    peers.device_of = lambda of: (device, host_peers.HOST)
    return device


def _both(made: Any, given: list[Any], way: Any, exchange: str) -> list[Any]:
    dout, dlse, *leaves = given
    leaves = [one.detach().requires_grad_() for one in leaves]
    call = partial(oc.parallel.attention, overlap=way, exchange=exchange, time_limit=TIMEOUT)
    out, lse = call(*leaves, made, return_lse=True)
    return [out.detach(), lse.detach(), *torch.autograd.grad([out, lse], leaves, [dout, dlse])]


def same(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Pairs of results: of the group's exchange and of the kernel, for each mask, dtype and way."""
    overlap.BLOCK = 4
    device = _share(rank, folder)
    found: dict[str, Any] = {}
    for name, (mask, rows) in parallel_ranks.masks().items():
        made = plan(mask, ranks, rows=rows)
        for dtype in (torch.float32, torch.bfloat16):
            dout, dlse, q, k, v = whole(mask, dtype, columns=WIDE)
            q, dout, dlse = (made.shard(one, rank, 2) for one in (q, dout, dlse))
            k, v = (made.shard(one, rank, keys=True) for one in (k, v))
            for how, way in WAYS.items():
                for pulls in (False, True):
                    peer_trip.TUNING = peer_trip.Tuning(pulls=pulls, part_bytes=1 << 10)
                    before = device.launches
                    given = [dout, dlse, q, *parallel_ranks._other_layouts(q, k, v)[1:]]
                    pair = [_both(made, given, way, one) for one in ("group", "peer")]
                    found[f"{name} {dtype} {how} {pulls}"] = [
                        *zip(*pair, strict=True),
                        device.launches - before,
                        made.travels(),
                    ]
    return found


JOBS: dict[str, Callable[[int, int, Path], dict[str, Any]]] = {"same": same}

if __name__ == "__main__":
    parallel_ranks.JOBS |= JOBS
    parallel_ranks.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    processes.leave()
