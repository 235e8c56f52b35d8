"""NCCL for CuPy arrays: a communicator of cupy.cuda.nccl as the ranks of a call."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnicupy.errors import UnsupportedError
from omnicupy.parallel import check
from omnicupy.parallel.check import Shared
from omnicupy.parallel.plan import Plan

MOST_AGREED = 1 << 12  # digests kept
DIGEST_BYTES = 32  # of a call's description
LEGACY_STREAM = 1  # its handle, or 0: never captured
MOST_SAID = 512  # bytes of a call's description that an error can show; all of it is compared


class NcclGroup:
    """The ranks of a `cupy.cuda.nccl.NcclCommunicator`, for calls on CuPy arrays of its device.

    communicator: NcclCommunicator(ranks, id, rank), with the id that `cupy.cuda.nccl.get_unique_id()` gave on one rank.
    Keep one group for each communicator: it remembers which plans the ranks have compared. Raises TypeError for other
    things.
    """

    def __init__(self, communicator: Any) -> None:
        if not all(hasattr(communicator, name) for name in ("rank_id", "size", "send", "recv", "allGather")):
            raise TypeError(
                f"NcclGroup: expected a cupy.cuda.nccl.NcclCommunicator, got {type(communicator).__name__}"
            )
        self.communicator = communicator
        self.rank, self.size = int(communicator.rank_id()), int(communicator.size())
        self._agreed: dict[tuple[bytes, Shared], None] = {}

    def exchange(self, out: Any, given: Any, sizes: tuple[Sequence[int], Sequence[int]]) -> None:
        """Enqueue, on CuPy's current stream, the sends and receives of rows (first axis), all of them as one group.

        out, given: C-contiguous, rows of the same size. sizes: rows received from and sent to each rank.
        """
        import cupy

        nccl, stream = cupy.cuda.nccl, cupy.cuda.get_current_stream().ptr
        received, sent = sizes
        width = int(np.prod(given.shape[1:], dtype=np.int64)) * given.dtype.itemsize
        source, target = given.data.ptr, out.data.ptr
        nccl.groupStart()
        for peer in range(self.size):
            # As bytes: NCCL has no name for some dtypes.
            if sent[peer]:
                self.communicator.send(source, sent[peer] * width, nccl.NCCL_UINT8, peer, stream)
                source += sent[peer] * width
            if received[peer]:
                self.communicator.recv(target, received[peer] * width, nccl.NCCL_UINT8, peer, stream)
                target += received[peer] * width
        nccl.groupEnd()

    def agree(self, plan: Plan, call: Shared, limit: float) -> None:
        """Compare the plan's digest, and what decides the exchanges of a call, with those of the other ranks; once for
        equal ones, which waits for the device.

        Raises ValueError where they differ, RuntimeError where some rank does not come within `limit` seconds,
        UnsupportedError in every call while CuPy's current stream is captured.
        """
        import cupy

        stream = cupy.cuda.get_current_stream()
        if stream.ptr > LEGACY_STREAM and stream.is_capturing():
            raise UnsupportedError(
                "attention of several ranks on CuPy arrays cannot be captured into a CUDA graph, since what travels "
                "lies in memory that CuPy's pool gives to others after the call; pass torch tensors"
            )
        key = (plan.digest, call)
        if key in self._agreed:
            return
        said = str(call).encode()
        whole = hashlib.sha256(said).digest()
        mine = plan.digest + whole + said[:MOST_SAID].ljust(MOST_SAID)
        given, every = (
            cupy.asarray(np.frombuffer(mine, np.uint8)),
            cupy.empty((self.size, len(mine)), np.uint8),
        )
        kind = cupy.cuda.nccl.NCCL_UINT8
        self.communicator.allGather(given.data.ptr, every.data.ptr, len(mine), kind, stream.ptr)
        done = stream.record()
        end = time.monotonic() + limit
        while not done.done:
            if time.monotonic() > end:
                raise RuntimeError(
                    f"attention of {self.size} ranks: not every rank came to compare plans within {limit:g} s (rank "
                    f"{self.rank} waited); every rank must make the same calls in the same order"
                )
            time.sleep(1e-4)
        found = [one.tobytes() for one in cupy.asnumpy(every)]
        if any(one != found[0] for one in found):
            raise ValueError(check.difference([_said(one) for one in found]))
        self._agreed[key] = None
        if len(self._agreed) > MOST_AGREED:
            del self._agreed[next(iter(self._agreed))]


def _said(gathered: bytes) -> tuple[str, str]:
    """The plan and the call of a rank, as an error names them: the call by its words, and where there are more than are
    shown, by the digest of them all as well.
    """
    rest, shown = gathered[:-MOST_SAID], gathered[-MOST_SAID:]
    plan, call = rest[:-DIGEST_BYTES], rest[-DIGEST_BYTES:]
    words = shown.decode(errors="replace").rstrip()
    return plan.hex(), words if len(words) < MOST_SAID else f"{words}... (SHA-256 {call.hex()})"
