"""Launches of one kind of call on caches: the planner, which reads lengths, and the kernel that walks its lists."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from omnicupy.gpu import stream_memory
from omnicupy.gpu.device_blocks import DeviceCopy
from omnicupy.gpu.plan import Plan
from omnicupy.gpu.ranges import Range
from omnicupy.gpu.stream_memory import StreamMemory
from omnicupy.gpu.workspace import Need
from omnicupy.jit.params import PARAMS, PLAN_PARAMS, RAGGED_PLAN_PARAMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.cached_lists import CachedLists

# What the planner writes: neighbours in its struct; kernels have them by the same names.
_WRITTEN = ("row_offsets", "entries", "parts", "splits", "bit_tiles", "dead", "n_parts")
_PLANNED = struct.Struct(f"<{len(_WRITTEN)}Q")
_POINTER = struct.Struct("<Q")
_SCALES = struct.Struct("<2Q")  # of keys and of values: neighbours there
_ROWS = struct.Struct("<2Q")  # row_starts, row_ranges: neighbours, too
_ROWS_AT = RAGGED_PLAN_PARAMS.fields["row_starts"][1]  # type: ignore[index]
_PLANNED_AT = PLAN_PARAMS.fields["row_offsets"][1]  # type: ignore[index]


@dataclass(frozen=True)
class Planner:
    """The planner's launch. function: what launches it.  lists: what it writes.  tail: device copy of a tail, or None.

    tail_offsets: of its arrays in that copy.
    """

    function: Any
    lists: CachedLists
    threads: int
    smem_bytes: int
    tail: DeviceCopy | None = None
    tail_offsets: dict[str, int] | None = None

    def template(self) -> bytes:
        """Its struct without the addresses of lengths and lists."""
        record = self.lists.params()
        if self.tail is not None:
            for name, offset in (self.tail_offsets or {}).items():
                record[name] = self.tail.address + offset
        return record.tobytes()


class CachedPlan:
    """Launches of calls with one layout, rule and kernel, ready but for addresses.

    kernel: the plan of the forward kernel.  planner: what is launched ahead of it.  need: memory that both share with
    other launches of a stream, parts of split rows first.  partial_bytes: where the lists begin there.  near_scales:
    between which distances from `out` the scales of keys and of values meet it, as in ranges.meeting; None for numbers
    and for no `out`.  out_shape, lse_shape: of what it writes.
    """

    __slots__ = (
        *(
            "_near_scales",
            "_need",
            "_partial_bytes",
            "_places",
            "_planner_template",
            "_scales_at",
            "_table_at",
        ),
        "_written",
        *("kernel", "lse_shape", "out_shape", "planner"),
    )

    def __init__(
        self,
        kernel: Plan,
        planner: Planner,
        need: Need,
        partial_bytes: int,
        near_scales: tuple[Range | None, Range | None] = (None, None),
    ) -> None:
        self.kernel = kernel
        self.planner = planner
        self._need = need
        self._partial_bytes = partial_bytes
        self._near_scales = near_scales
        self._planner_template = planner.template()
        fields = PARAMS[kernel.spec.params].fields
        assert fields is not None
        offsets = planner.lists.offsets
        written = [name for name in (*_WRITTEN, "row_ranges") if name in fields and name in offsets]
        self._places = [(fields[name][1], offsets[name]) for name in written]
        batch, heads, q_len, columns = kernel.shape
        total = planner.lists.total_rows
        self.out_shape = kernel.shape if total is None else (total, heads, columns)
        self.lse_shape = (batch, heads, q_len) if total is None else (heads, total)
        self._table_at = fields["page_table"][1] if "page_table" in fields else None
        self._scales_at = fields["k_scale"][1] if "k_scale" in fields else None
        self._written = tuple(offsets[name] for name in _WRITTEN)
        stream_memory.prepare(kernel.device, need)

    @property
    def lists(self) -> CachedLists:
        """What the planner writes."""
        return self.planner.lists

    def fits_addresses(
        self, q: int, k: int, v: int, out: int | None, lengths: int, table: int | None = None
    ) -> bool:
        """What an equal key leaves open of these addresses; False: check all."""
        return (lengths | (table or 0)) % 4 == 0 and self.kernel.fits_addresses(q, k, v, out)

    def fits_scales(self, k: int, v: int, out: int | None) -> bool:
        """The same of the addresses of scales, 0 for numbers. False: check all."""
        if (k | v) % 4:
            return False
        if out is None:
            return True
        of_k, of_v = self._near_scales
        k, v = k - out, v - out
        return not ((of_k and of_k[0] < k < of_k[1]) or (of_v and of_v[0] < v < of_v[1]))

    def launch(
        self,
        addresses: tuple[int, int, int, int, int],
        lengths: int,
        stream: Any,
        made: MadeLists | None = None,
        *,
        page_table: int = 0,
        sink_logits: int = 0,
        row_starts: int = 0,
        scales: tuple[int, int] = (0, 0),
    ) -> None:
        """Run on `stream`, of the plan's device, which is current.

        addresses: of q, k, v, out and lse, the last 0 for none.  lengths, row_starts: addresses, read where there is no
        `made`.  made: lists that the planner has written on this stream; None makes them first.
        page_table, sink_logits, and scales, of keys and of values: addresses, 0 for none.
        """
        template = None if made is None else made.template_for(self)
        argument = self.kernel.argument(*addresses, template, sink_logits=sink_logits)
        if self._table_at is not None:
            _POINTER.pack_into(argument, self._table_at, page_table)
        if self._scales_at is not None:
            _SCALES.pack_into(argument, self._scales_at, *scales)
        with _locked(self, stream) as memory:
            if made is not None:
                made.check_is_of(memory)
            else:
                at = memory.workspace(self._need).partials + self._partial_bytes
                self._plan((lengths, row_starts), at, stream)
                self.point_at(argument, at)
            self.kernel.run(argument, addresses[:3], memory, stream)

    def point_at(self, argument: bytearray, lists: int) -> None:
        """Write into the kernel's struct where the planner's lists lie. lists: address of the first."""
        for place, offset in self._places:
            _POINTER.pack_into(argument, place, lists + offset)

    def make_lists(self, lengths: int, stream: Any, row_starts: int = 0) -> MadeLists:
        """Run the planner alone on `stream`, into memory of its own."""
        with _locked(self, stream) as memory:
            made = MadeLists(self, memory, stream)
            self._plan((lengths, row_starts), made.address, stream)
        return made

    def _plan(self, read: tuple[int, int], at: int, stream: Any) -> None:
        """read: addresses of lengths and row_starts."""
        argument = bytearray(self._planner_template)
        lengths, row_starts = read
        if row_starts:
            _ROWS.pack_into(argument, _ROWS_AT, row_starts, at + self.lists.offsets["row_ranges"])
        _POINTER.pack_into(argument, 0, lengths)
        _PLANNED.pack_into(argument, _PLANNED_AT, *(at + offset for offset in self._written))
        planner = self.planner
        grid, block = (self.lists.thread_blocks, 1, 1), (planner.threads, 1, 1)
        planner.function(grid, block, (argument,), planner.smem_bytes, stream)


class MadeLists:
    """Block lists that the planner wrote for one step, in memory of their own, for launches on the same stream, and in
    the same capture. A captured graph keeps them.
    """

    __slots__ = ("_buffer", "_memory", "_template", "address", "plan", "users")

    def __init__(self, plan: CachedPlan, memory: StreamMemory, stream: Any) -> None:
        self.plan = plan
        self.users: dict[int, Any] = {}
        self._buffer = memory.own(plan.lists.nbytes, stream)
        self.address = int(self._buffer.data.ptr)
        self._memory = memory
        self._template = self._filled(plan)
        memory.keep(self)

    @property
    def spec(self) -> AttnSpec:
        """The variant of the kernel that they were made for."""
        return self.plan.kernel.spec

    def template_for(self, plan: CachedPlan) -> bytes:
        """The struct of a layer's kernel, without the addresses of its arrays."""
        return self._template if plan is self.plan else self._filled(plan)

    def _filled(self, plan: CachedPlan) -> bytes:
        argument = bytearray(plan.kernel.template)
        plan.point_at(argument, self.address)
        return bytes(argument)

    def wait_for_copy(self) -> None:
        """Nothing is copied: who reads them comes after who writes them in the same graph."""

    def check_is_of(self, memory: StreamMemory) -> None:
        """Raises ValueError where a launch uses another stream or capture than the planner did."""
        if memory is not self._memory:
            raise ValueError(
                "mask: the step was made on another stream, or outside of this capture; make it with oc.plan where its "
                "layers run"
            )


class _locked:  # noqa: N801 - reads as a statement
    """What launches of a stream share, held until they are given to it; ordered after the copy of the plan's tail."""

    def __init__(self, plan: CachedPlan, stream: Any) -> None:
        self._plan, self._stream = plan, stream

    def __enter__(self) -> StreamMemory:
        tail = self._plan.planner.tail
        while True:
            memory = stream_memory.memory_of(self._plan.kernel.device, self._stream)
            if tail is not None and memory.user not in tail.users:
                memory.reads(tail)
            memory.lock.acquire()
            if not memory.closed:
                self._memory = memory
                return memory
            memory.lock.release()

    def __exit__(self, *_: object) -> None:
        self._memory.lock.release()
        tail = self._plan.planner.tail
        if tail is not None and self._memory.user not in tail.users:
            self._memory.reads(tail)
