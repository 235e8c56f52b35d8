"""The process group behind a call: which ranks there are, whether their plans are the same, and who is late."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import torch.distributed as dist

from omnicupy.parallel import check

GRACE_S = 2.0  # after a time limit, until all who waited have said so
MOST_AGREED = 1 << 12  # digests kept


@dataclass
class Ranks:
    """A process group of `size` ranks, seen from `rank`.

    plans, exchanges, memories: how many there have been; every rank counts the same ones.  agreed: what was compared
    last.  number: of no other one in this process.  memory: PeerMemory by device.
    """

    group: Any
    rank: int
    size: int
    plans: int = 0
    exchanges: int = 0
    memories: int = 0
    agreed: dict[str, None] = field(default_factory=dict)
    number: int = field(default_factory=count(1).__next__)
    memory: dict[Any, Any] = field(default_factory=dict)

    def exchange(
        self,
        out: Any,
        given: Any,
        sizes: tuple[list[int], list[int]],
        limit: float,
        *,
        hides: bool = False,
    ) -> Pending:
        """all_to_all_single of rows (first axis); wait before `out` is read. sizes: rows received from and sent to each
        rank.  hides: on a device, run beside what the current stream does meanwhile.

        Waiting raises RuntimeError that names the ranks which did not take part within `limit` seconds; on a device the
        group's own time limit holds, since nothing here waits for it.
        """
        self.exchanges += 1
        received, sent = sizes
        if given.is_cuda and not hides:
            # Not as a call of its own stream: memory is given back in the order of the current one, and no event waits.
            dist.all_to_all_single(out, given, received, sent, group=self.group)
            return Pending(self, self.exchanges)
        work = dist.all_to_all_single(out, given, received, sent, group=self.group, async_op=True)
        # On a device the current stream waits, not this thread.
        return Pending(self, self.exchanges, work, None if given.is_cuda else limit, (out, given))

    def agree(self, said: str, limit: float) -> None:
        """Compare what `check.said` gives of a plan and a call with what the other ranks have; once for equal ones.

        Through the store of the group, so that no device is waited for. Raises ValueError on every rank where they
        differ, RuntimeError that names the ranks which do not come within `limit` seconds.
        """
        if said in self.agreed:
            return
        self.plans += 1
        store, prefix = self._store(f"plan {self.plans}")
        store.set(f"{prefix}/at/{self.rank}", said)
        if self.rank == 0:
            store.set(f"{prefix}/digest", said)
        try:
            store.wait([f"{prefix}/digest"], timedelta(seconds=limit))
            if store.get(f"{prefix}/digest").decode() != said:
                store.add(f"{prefix}/others", 1)
            if store.add(f"{prefix}/arrived", 1) == self.size:
                store.set(f"{prefix}/done", str(store.add(f"{prefix}/others", 0)))
            store.wait([f"{prefix}/done"], timedelta(seconds=limit))
        except RuntimeError as error:
            raise RuntimeError(self._missing(store, f"{prefix}/at", f"plan {self.plans}", limit)) from error
        if store.get(f"{prefix}/done") != b"0":
            every = [store.get(f"{prefix}/at/{one}").decode() for one in range(self.size)]
            raise ValueError(check.difference([one.split(" ", 1) for one in every]))
        self.agreed[said] = None
        if len(self.agreed) > MOST_AGREED:
            del self.agreed[next(iter(self.agreed))]
        self._forget(store, f"plan {self.plans - 1}")

    def gathered(self, what: str, said: str, limit: float) -> list[str]:
        """What each rank says, through the store of the group. what: of no other call.

        Raises RuntimeError that names the ranks which do not come within `limit` seconds.
        """
        store, prefix = self._store(what)
        names = [f"{prefix}/{rank}" for rank in range(self.size)]
        store.set(names[self.rank], said)
        try:
            store.wait(names, timedelta(seconds=limit))
        except RuntimeError as error:
            raise RuntimeError(self._missing(store, prefix, what, limit)) from error
        return [store.get(name).decode() for name in names]

    def _forget(self, store: Any, what: str) -> None:
        """Take away what the comparison before left: all have read it that came to this one."""
        if what != "plan 0":
            mine = [f"at/{self.rank}"]
            for name in [*mine, "digest", "others", "arrived", "done"] if self.rank == 0 else mine:
                store.delete_key(f"{self._store(what)[1]}/{name}")

    def _store(self, what: str) -> tuple[Any, str]:
        return self.group.get_group_store(), f"omnicupy/parallel/{what}"

    def _late(self, what: str, limit: float) -> str:
        """Who waited says so; who has not said so by then is named."""
        store, prefix = self._store(f"waited/{what}")
        store.set(f"{prefix}/{self.rank}", "")
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end and not store.check([f"{prefix}/{one}" for one in range(self.size)]):
            time.sleep(0.05)
        return self._missing(store, prefix, what, limit)

    def _missing(self, store: Any, prefix: str, what: str, limit: float) -> str:
        missing = [one for one in range(self.size) if not store.check([f"{prefix}/{one}"])]
        who = (
            f"{check.named(missing)} did not take part" if missing else "the connection between ranks failed"
        )
        return (
            f"attention of {self.size} ranks: {who} in {what} within {limit:g} s (rank {self.rank} waited); every rank "
            "must make the same calls in the same order"
        )


@dataclass
class Pending:
    """An exchange on its way. number: of the exchanges of these ranks.  work: None where the current stream runs it.

    limit: seconds that this thread waits; None on a device.  tensors: kept until then.
    """

    ranks: Ranks
    number: int
    work: Any = None
    limit: float | None = None
    tensors: tuple[Any, ...] = ()

    def wait(self) -> None:
        """Until what came may be read, on the current stream; once."""
        (work, self.work), (_, self.tensors) = (self.work, None), (self.tensors, ())
        if work is None:
            return
        if self.limit is None:
            work.wait()
            return
        try:
            work.wait(timedelta(seconds=self.limit))
        except RuntimeError as error:
            raise RuntimeError(self.ranks._late(f"exchange {self.number}", self.limit)) from error


_known: weakref.WeakKeyDictionary[Any, Ranks] = weakref.WeakKeyDictionary()


def ranks_of(group: Any) -> Ranks:
    """What is kept of a process group; `group` as `attention` takes it.

    Raises TypeError for other things, ValueError where this process is no rank of it, or none is initialised.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group: torch.distributed is not initialised; call torch.distributed.init_process_group, or use "
            "attention_of_ranks, which needs one process"
        )
    found = _process_group(group)
    known = _known.get(found)
    if known is None:
        rank = dist.get_rank(found)
        if rank < 0:
            raise ValueError("group: this process is no rank of it; call attention on its ranks alone")
        known = _known[found] = Ranks(found, rank, dist.get_world_size(found))
    return known


def _process_group(group: Any) -> Any:
    if group is None:
        return dist.group.WORLD
    if isinstance(group, dist.ProcessGroup):
        return group
    mesh, axis = group if isinstance(group, (list, tuple)) and len(group) == 2 else (group, None)
    if isinstance(mesh, dist.DeviceMesh) and (axis is not None or mesh.ndim == 1):
        try:
            return mesh.get_group(axis)
        except (AssertionError, IndexError, KeyError, RuntimeError, TypeError):
            raise ValueError(
                f"group must name an axis of the DeviceMesh, whose axes are {mesh.mesh_dim_names or mesh.ndim}, got "
                f"{axis!r}; pass (mesh, name) or (mesh, number)"
            ) from None
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group: this process is no rank of it; call attention on its ranks alone")
    raise TypeError(
        "group must be a ProcessGroup, a DeviceMesh of one axis, (DeviceMesh, axis) or None, got "
        f"{type(group).__name__}"
    )
