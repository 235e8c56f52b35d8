"""Memory that the ranks of one host map of each other: all of them have it, or none for one reason."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from omnicupy.errors import UnsupportedError
from omnicupy.jit.exchange_spec import HEADER_BYTES, MOST_RANKS
from omnicupy.jit.trust import parsed_json
from omnicupy.parallel import check
from omnicupy.parallel.ranks import Ranks

LEAST_SLOT_BYTES = 1 << 21
MOST_SLOT_BYTES = 1 << 28  # of two slots


class Device(Protocol):
    """What omnicupy.gpu.peers.Device offers."""

    sm_count: int
    late_address: int

    def late(self) -> int: ...
    def name(self) -> str: ...
    def reaches(self, name: str) -> bool: ...
    def allocate(self, size: int) -> tuple[int, bytes]: ...
    def map(self, handle: bytes) -> int: ...
    def unmap(self, address: int) -> None: ...
    def load(self) -> None: ...
    def launch(self, params: bytearray, blocks: int, stream: int) -> None: ...
    def capture(self, stream: int) -> int: ...
    def add(self, params: bytearray, blocks: int, stream: int, dtype: str) -> None: ...


class PeerMemory:
    """Of one rank. device: this rank's.  addresses: of each rank's memory, as this one maps it; () before `hold`.

    slot_bytes: what travels at once.  why_not: why peers do not map each other's memory; "" where they do.
    stream: of exchanges that run beside other work.  last, last_handle: the stream of the exchange before, its handle.
    captured: the capture of the last one that was captured, and its stream.
    """

    stream: Any = None
    last: Any = None
    last_handle: int = -1
    captured: tuple[int, Any] = (0, None)

    def __init__(self, ranks: Ranks, device: Device, host: str) -> None:
        self.device, self.slot_bytes, self.why_not = device, 0, ""
        self.addresses: tuple[int, ...] = ()
        self._ranks, self._host = ranks, host
        self._mapped: list[int] = []
        # At the end of the process CUDA ends by itself.
        weakref.finalize(self, _unmap, device.unmap, self._mapped).atexit = False

    def hold(self, slot_bytes: int, limit: float) -> str:
        """Make slots at least so large; all ranks ask for the same sizes in the same order. Returns why that is not so.

        What there was before stays: CUDA graphs may use it. Raises RuntimeError that names ranks which do not come
        within `limit` seconds.
        """
        if self.why_not or slot_bytes <= self.slot_bytes:
            return self.why_not
        size = LEAST_SLOT_BYTES
        while size < slot_bytes:
            size *= 2
        if self._ranks.size > MOST_RANKS:
            self.why_not = f"the group has {self._ranks.size} ranks, and the kernel serves {MOST_RANKS}"
        elif size > MOST_SLOT_BYTES:
            return f"{slot_bytes} bytes travel at once, and memory for {MOST_SLOT_BYTES} is shared"
        else:
            self._ranks.memories += 1
            self.why_not = self._share(size, limit)
        return self.why_not

    def check(self) -> None:
        """Raises RuntimeError where a rank did not come in time in an exchange before; results since hold NaN."""
        late = self.device.late()
        if late:
            raise RuntimeError(
                f"attention of {self._ranks.size} ranks: {check.named([late - 1])} did not take part in an exchange "
                f"before this call within its time limit (rank {self._ranks.rank} waited); NaN stands for what would "
                "have come, also in results since; every rank must make the same calls in the same order; go on with a "
                "new group"
            )

    def _share(self, size: int, limit: float) -> str:
        """Allocate, tell all ranks, and map what they have."""
        mine, address = {"host": self._host, "why": "", "name": "", "handle": ""}, 0

        def allocated() -> None:
            nonlocal address
            self.device.load()
            address, handle = self.device.allocate(HEADER_BYTES + 2 * size)
            mine.update(name=self.device.name(), handle=handle.hex())

        mine["why"] = _why(allocated)
        every = self._said(f"memory {self._ranks.memories}", mine, limit)
        if why := self._refusal(every):
            return why
        found: list[int] = []

        def mapped() -> None:
            for rank, one in enumerate(every):
                if rank == self._ranks.rank:
                    found.append(address)
                    continue
                if not self.device.reaches(one["name"]):
                    raise UnsupportedError(f"no access from device {mine['name']} to {one['name']}")
                found.append(self.device.map(bytes.fromhex(one["handle"])))
                self._mapped.append(found[-1])

        every = self._said(f"mapped {self._ranks.memories}", {"host": self._host, "why": _why(mapped)}, limit)
        if why := self._refusal(every):
            return why
        self.addresses, self.slot_bytes = tuple(found), size
        return ""

    def _said(self, what: str, mine: dict[str, str], limit: float) -> list[dict[str, str]]:
        return [parsed_json(one.encode()) for one in self._ranks.gathered(what, json.dumps(mine), limit)]

    def _refusal(self, every: Sequence[dict[str, str]]) -> str:
        """The same on every rank."""
        for rank, one in enumerate(every):
            if one["host"] != every[0]["host"]:
                return f"rank {rank} is on another host than rank 0"
            if one["why"]:
                return f"rank {rank}: {one['why']}"
        return ""


def _why(call: Callable[[], Any]) -> str:
    """What went wrong, in a line; "" for nothing. Other ranks wait for an answer, whatever it is."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def _unmap(unmap: Callable[[int], None], mapped: list[int]) -> None:
    for address in mapped:
        try:
            unmap(address)
        except RuntimeError:  # CUDA has ended before
            return
