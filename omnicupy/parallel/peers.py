"""How keys and values travel: by the process group, or by a kernel that writes to other GPUs of the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnicupy.errors import UnsupportedError
from omnicupy.parallel import peer_trip
from omnicupy.parallel.check import AUTO, GROUP, PEER
from omnicupy.parallel.peer_memory import Device, PeerMemory
from omnicupy.parallel.places import Places
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.ranks import Ranks
from omnicupy.parallel.trip import Trip


def connect(
    trip: Trip, plan: Plan, mask: int | Sequence[int], arrays: tuple[Any, Any], asked: str, limit: float
) -> None:
    """Have a trip's rows moved by the kernel, where that is asked for; or left open, nothing runs beside the exchange,
    for which NCCL leaves more of the device, and every rank can. arrays: k, v.

    Ranks must have agreed before that they make this call. Raises UnsupportedError, on all ranks, where they cannot and
    `asked` is PEER; RuntimeError that names ranks which do not come within `limit` seconds.
    """
    if asked == GROUP or (asked == AUTO and trip.overlaps) or not plan.travels(mask):
        return
    why = _connected(trip, plan, mask, arrays, limit)
    if why and asked == PEER:
        raise UnsupportedError(
            f'attention: exchange="peer" needs GPUs of one host that map each other\'s memory: {why}; pass '
            'exchange="group", or leave it out'
        )


def _connected(
    trip: Trip, plan: Plan, mask: int | Sequence[int], arrays: tuple[Any, Any], limit: float
) -> str:
    """Why not; "" where it is."""
    k, v = arrays
    if why := peer_trip.why_not(k, v):
        return why
    memory = _memory(trip.ranks, k.device)
    if memory is None:
        return f"tensors are on {k.device.type}"
    which = tuple(sorted(set(plan._which(mask))))
    traffic = plan.needs(which).traffic(plan.ranks)
    row_bytes = k.shape[0] * k.shape[1] * (k.shape[3] + v.shape[3]) * k.element_size()
    why = memory.hold(peer_trip.slot_bytes(traffic, row_bytes), limit)
    if not why:
        places = Places(trip.exchange, plan._found)
        trip.peers = peer_trip.PeerTrip(trip.ranks, memory, places, traffic)
    return why


def _memory(ranks: Ranks, device: Any) -> PeerMemory | None:
    """That of a rank on a device; None where its devices have none to share."""
    found: PeerMemory | None = ranks.memory.get(device)
    if found is None:
        opened = device_of(device)
        if opened is None:
            return None
        found = ranks.memory[device] = PeerMemory(ranks, *opened)
    return found


def device_of(device: Any) -> tuple[Device, str] | None:
    """The device, and what its processes share with those of its host alone."""
    if device.type != "cuda":
        return None
    from omnicupy.gpu import peers

    return peers.Device(device.index), peers.host()
