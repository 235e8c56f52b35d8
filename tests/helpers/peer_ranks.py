"""One rank of gloo processes whose keys travel by the kernel for GPUs of one host: python peer_ranks.py WHAT RANK RANKS
FOLDER. Files stand in for memory of devices (host_peers.py).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import host_peers
import parallel_ranks
import processes
import torch
from parallel_ranks import TIMEOUT, message, whole

import omnicupy as oc
import omnicupy.parallel
from omnicupy.parallel import overlap, peer_memory, peer_trip, peers, plan
from omnicupy.parallel.ranks import ranks_of

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
                for part in (1 << 10, 1 << 18):
                    peer_trip.PART_BYTES = part
                    before, sums = device.launches, device.sums
                    given = [dout, dlse, q, *parallel_ranks._other_layouts(q, k, v)[1:]]
                    pair = [_both(made, given, way, one) for one in ("group", "peer")]
                    found[f"{name} {dtype} {how} {part}"] = [
                        *zip(*pair, strict=True),
                        device.launches - before,
                        device.sums - sums,
                        made.travels(),
                    ]
    return {"pairs": found, "left open": _left_open(rank, ranks, device)}


def _left_open(rank: int, ranks: int, device: host_peers.Device) -> dict[str, int]:
    """How often the kernel runs by way of overlap, where it is not said how keys travel."""
    made = plan(oc.causal(parallel_ranks.SIZE), ranks)
    given, found = _shards(made, rank), {}
    for how, way in WAYS.items():
        before = device.launches
        oc.parallel.attention(*given, made, overlap=way, time_limit=TIMEOUT)
        found[how] = device.launches - before
    return found


def _refuses(what: str) -> Callable[..., Any]:
    def refuse(*given: Any) -> Any:
        raise RuntimeError(f"no {what} here\nand more that nobody needs")

    return refuse


def _shards(made: Any, rank: int) -> list[Any]:
    return [made.shard(one, rank) for one in whole(made.masks[0], torch.bfloat16)[2:]]


def _forget(made: Any) -> None:
    """Have the next call be the first of its kind."""
    ranks_of(None).memory.clear()
    made._found.clear()


def refused(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """What "peer" says where a rank cannot, and pairs of results: what "auto" gives there, and the group's exchange."""
    made = plan(oc.causal(parallel_ranks.SIZE), ranks)
    q, k, v = _shards(made, rank)
    call = partial(oc.parallel.attention, plan=made, time_limit=TIMEOUT)
    found = {"option": message(lambda: call(q, k, v, exchange="peer" if rank else "auto"))}
    expected = call(q, k, v, exchange="group")
    pairs = [(call(q, k, v), expected)]
    found["cpu"] = message(lambda: call(q, k, v, exchange="peer"))
    troubles: dict[str, dict[str, Any]] = {
        "host": {},
        "memory": {"allocate": _refuses("memory")},
        "kernel": {"load": _refuses("kernel")},
        "map": {"map": _refuses("handles")},
        "reach": {"reaches": lambda name: False},
    }
    for name, trouble in troubles.items():
        _forget(made)
        device = _share(rank, folder, **(trouble if rank == 1 else {}))
        if name == "host":
            peers.device_of = lambda of, device=device: (device, f"host {rank}")
        found[name] = message(lambda: call(q, k, v, exchange="peer"))
        pairs.append((call(q, k, v), expected))
        assert device.launches == 0
    _forget(made)
    _share(rank, folder)
    found["width"] = message(lambda: call(*(one[..., :4].contiguous() for one in (q, k, v)), exchange="peer"))
    peer_memory.MOST_SLOT_BYTES = 1 << 21
    found["size"] = message(lambda: call(*(one.repeat(256, 1, 1, 16) for one in (q, k, v)), exchange="peer"))
    pairs.append((call(q, k, v, exchange="peer"), expected))  # goes on after all of it
    return found | {"pairs": pairs}


def kept(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Memory that grows, then a rank that does not come, and what is closed when the group ends."""
    made = plan(oc.causal(parallel_ranks.SIZE), ranks)
    q, k, v = _shards(made, rank)
    call = partial(oc.parallel.attention, plan=made, time_limit=TIMEOUT)
    device = _share(rank, folder)
    peer_memory.LEAST_SLOT_BYTES = 1 << 12
    memory, pairs = [], []
    for size in (1, 8, 2, 8):
        given = [one.repeat(size, 1, 1, 1) for one in (q, k, v)]
        pairs.append((call(*given, exchange="peer"), call(*given, exchange="group")))
        held = ranks_of(None).memory[q.device]
        memory.append((held.slot_bytes, held.addresses))
    found: dict[str, Any] = {"pairs": pairs, "memory": memory, "mapped": list(held._mapped)}
    late = partial(call, q, k, v, exchange="peer", time_limit=1.0)
    if rank == 0:
        found["late"] = (late(), message(late), message(late))
    parallel_ranks.dist.barrier()
    _forget(made)
    del held
    gc.collect()
    return found | {"unmapped": device.unmapped}


JOBS: dict[str, Callable[[int, int, Path], dict[str, Any]]] = {
    "same": same,
    "refused by ranks": refused,
    "kept": kept,
}

if __name__ == "__main__":
    parallel_ranks.JOBS |= JOBS
    parallel_ranks.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    processes.leave()
