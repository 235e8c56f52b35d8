"""The launches of one backward pass, planned: structs, grids, work memory, and what a warm call has to fill in."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import cupy

from omnicupy.gpu import stream_memory
from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.gpu.plan import MAX_BOUND, MAX_MAPS
from omnicupy.gpu.ranges import Layout
from omnicupy.gpu.stream_memory import StreamMemory
from omnicupy.gpu.tensor_maps import tensor_map
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.params import MAP_BYTES, PARAMS

_INPUTS = struct.Struct("<5Q")  # q, k, v, out, lse: the first fields of ForwardParams
_GRADIENTS = struct.Struct("<11Q")  # dout ... v_copy: the first fields of BackwardParams that are its own
_WORK = struct.Struct("<5Q")  # counter, dq_sums, partials, arrivals, turns: neighbours there
_ADDRESS = struct.Struct("<Q")
_SINKS = struct.Struct("<2Q")  # sink_sums, dsink_logits: neighbours in BackwardParams
_MAPS_BYTES = 4 * MAP_BYTES  # of q, dout, k and v: the first fields of BackwardParamsSm90
_MAPS = slice(0, _MAPS_BYTES)
_READ_SINKS = ("prepare", "sinks")  # kernels that know of sinks
_COUNTERS = 4  # integers of the kernel of dQ, zero before and after a launch; then come arrivals
OWN_BYTES = 1 << 20  # work memory up to this stays with the stream: allocating it would cost more
_NO_COPIES: tuple[int, ...] = (0, 0, 0, 0)


class Addresses(NamedTuple):
    """Of the arrays of a call; 0 for none."""

    q: int
    k: int
    v: int
    out: int
    lse: int
    dout: int
    dlse: int
    dq: int
    dk: int
    dv: int
    sink_logits: int = 0
    dsink_logits: int = 0


class Space(NamedTuple):
    """Where things lie in work memory: bytes from its start, -1 for what is not there.

    sinks: what blocks that prepare leave of the gradients of sinks.  sums: of dQ.  turns: how many were added to
    each.  zeroed: from here to partials there must be zeros.  partials: of dK and dV of split blocks of keys.  size: of
    all.  arrivals: counters beside it.
    """

    lse2: int
    delta: int
    q: int
    dout: int
    k: int
    v: int
    sinks: int
    sums: int
    turns: int
    zeroed: int
    partials: int
    size: int
    arrivals: int


@dataclass
class Launch:
    """One kernel launch. function: what launches it.  template: its struct without addresses.  blocks: the device copy
    that it reads.

    layouts: of q, dout, k and v as this kernel reads them, for tensor maps; () for kernels that need none.  maps: those
    that were made, by these addresses.
    """

    kernel: BackwardKernel
    function: Any
    grid: tuple[int, int, int]
    template: bytes
    blocks: DeviceBlocks
    layouts: Sequence[Layout] = ()
    maps: dict[tuple[int, ...], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kernel = self.kernel
        self.reads_copies = kernel.part != "prepare"  # which makes them
        self.own_counters = kernel.part == "dq"  # it may run beside the kernel before it
        fields = PARAMS[kernel.params].fields
        assert fields is not None
        at = {name: fields[name][1] for name in fields}
        self._sums_alone = "counter" not in at and "dq_sums" in at
        self.sinks_at = (at["sink_logits"], at["sink_sums"]) if kernel.part in _READ_SINKS else None
        assert at["q"] == (_MAPS_BYTES if self.layouts else 0)
        self.inputs = slice(at["q"], at["q"] + _INPUTS.size)  # where they lie in the struct
        self.gradients = slice(at["dout"], at["dout"] + _GRADIENTS.size)
        self._work_at = at.get("counter", at.get("dq_sums", 0))

    def bind(self, stream: Any) -> _BoundLaunch:
        """A struct for launches on `stream`, and what launches with it."""
        argument, kernel = bytearray(self.template), self.kernel
        block = kernel.threads, 1, 1
        start = self.function.bind(self.grid, block, argument, kernel.smem_bytes, stream)
        return argument, self.inputs, self.gradients, self.maps if self.layouts else None, self, start

    def place(self, argument: bytearray, counters: int, work: tuple[int, int, int, int]) -> None:
        """Write into its struct where work memory lies: work counters, and sums of dQ, partials, arrivals and turns:
        how many were added to each sum.
        """
        if self.layouts:
            _WORK.pack_into(argument, self._work_at, counters, *work)
        elif self._sums_alone:
            _ADDRESS.pack_into(argument, self._work_at, work[0])

    def new_maps(self, addresses: tuple[int, ...]) -> bytes:
        """The tensor maps of q, dout, k and v at these addresses."""
        kernel = self.kernel
        boxes = ((kernel.br, 1), (kernel.br, 1), (kernel.bc, 1), (kernel.bc, 1))
        maps = b"".join(
            tensor_map(address, *layout, kernel.dtype, box)
            for address, layout, box in zip(addresses, self.layouts, boxes, strict=True)
        )
        if len(self.maps) >= MAX_MAPS:
            self.maps.clear()
        self.maps[addresses] = maps
        return maps


# The struct of a launch on one stream, where inputs and gradients lie in it, tensor maps that are kept (None where it
# needs none), the launch itself, and what launches: side by side, for a thread that finds them in no cache.
_BoundLaunch: TypeAlias = tuple[
    bytearray, slice, slice, dict[tuple[int, ...], bytes] | None, Launch, Callable[[], None]
]


@dataclass(slots=True)
class _Bound:
    """The launches of a plan on one stream.

    named: of the memory that the structs name: the number of the workspace, which holds what the plan needs, and the
    addresses of what the caller brought (0 for nothing) and of work counters.  rows: lse2 and delta there.
    sinks: their sums there, 0 for none.  copies: those of q, dout, k and v, 0 for none.
    """

    launches: tuple[_BoundLaunch, ...]
    named: tuple[int, int, int] | None = None
    rows: tuple[int, int] = (0, 0)
    sinks: int = 0
    copies: tuple[int, ...] = _NO_COPIES


class BackwardPlan:
    """The launches of one backward pass, in order. spec: whose kernels.  device: which runs them.

    scratch_bytes: what a launch needs beside its arrays while it runs, 0 where the stream has memory for it.
    need: that memory.
    """

    def __init__(self, spec: BackwardSpec, device: int, launches: Sequence[Launch], space: Space) -> None:
        self.spec = spec
        self.device = device
        self.scratch_bytes = space.size if space.size > OWN_BYTES else 0
        self._launches = tuple(launches)
        self._bound: dict[int | None, _Bound] = {}  # by StreamMemory.user, which no other stream ever has
        self._blocks = tuple({id(one.blocks): one.blocks for one in launches}.values())
        self._space = space
        self._copies = space.q, space.dout, space.k, space.v
        self._copies_any = max(self._copies) >= 0
        self._zeroed = (space.zeroed, space.partials - space.zeroed) if space.zeroed >= 0 else None
        # Beside the arrays: with memory that the caller brings, and with the stream's own.
        self._beside, self.need = (Need(size, _COUNTERS + space.arrivals) for size in (0, space.size))
        stream_memory.prepare(device, self.need)

    def reads(self, blocks: DeviceBlocks) -> bool:
        """Does a launch read this device copy?"""
        return any(one is blocks for one in self._blocks)

    def launch(self, work: tuple[int, ...], stream: Any, scratch: int = 0) -> None:
        """Run on `stream`, of the plan's device, which is current. work: as Addresses, or one.

        scratch: address of `scratch_bytes` that are this launch's alone on the stream, a multiple of 256; 0 takes
        memory that stays with the stream, or with the capture at hand.
        """
        while True:
            memory = stream_memory.memory_of(self.device, stream)
            for blocks in self._blocks:
                if memory.user not in blocks.users:
                    memory.reads(blocks)
            with memory.lock:  # so the stream's structs are this call's alone until the driver has read them
                if memory.closed:
                    continue
                self._run(work, memory, stream, scratch)
            for blocks in self._blocks:
                if (
                    memory.user not in blocks.users
                ):  # another thread has made them forget the stream meanwhile
                    memory.reads(blocks)
            return

    def _run(self, work: tuple[int, ...], memory: StreamMemory, stream: Any, scratch: int) -> None:
        bound, kept = self._bound.get(memory.user) or self._bind(memory, stream), memory.latest
        if kept is None or bound.named != (kept.number, scratch, memory.counters):
            self._place(bound, memory, scratch)
        if self._zeroed:
            first, size = self._zeroed
            base = scratch or memory.latest.partials  # type: ignore[union-attr]
            cupy.cuda.runtime.memsetAsync(base + first, 0, size, stream.ptr)
        q, k, v, out, lse, dout, dlse, dq, dk, dv, sink_logits, dsinks = work
        made = (dlse, *bound.rows, dq, dk, dv, *bound.copies)
        inputs, gradients = _INPUTS.pack(q, k, v, out, lse), _GRADIENTS.pack(dout, *made)
        at: tuple[int, ...] = (q, dout, k, v)
        copies_left = self._copies_any
        for argument, of_inputs, of_gradients, maps, one, start in bound.launches:
            if copies_left and one.reads_copies:  # the kernel before has made them, for this one and the rest
                copies_left = False
                pairs = zip(bound.copies, at, strict=True)
                q, dout, k, v = at = tuple(copy or array for copy, array in pairs)
                inputs, gradients = _INPUTS.pack(q, k, v, out, lse), _GRADIENTS.pack(dout, *made)
            argument[of_inputs] = inputs
            argument[of_gradients] = gradients
            if maps is not None:
                argument[_MAPS] = maps.get(at) or one.new_maps(at)
            if one.sinks_at:
                of_logits, of_sums = one.sinks_at
                _ADDRESS.pack_into(argument, of_logits, sink_logits)
                _SINKS.pack_into(argument, of_sums, bound.sinks, dsinks)
            start()

    def _bind(self, memory: StreamMemory, stream: Any) -> _Bound:
        """Structs for launches on `stream`, kept but for a capture: that has no number, and few launches."""
        made = _Bound(tuple(one.bind(stream) for one in self._launches))
        if memory.user is not None:
            if len(self._bound) >= MAX_BOUND:
                self._bound.clear()
            self._bound[memory.user] = made
        return made

    def _place(self, bound: _Bound, memory: StreamMemory, scratch: int) -> None:
        """Let structs name `memory`, and `scratch` where that is not 0."""
        space, counters = self._space, memory.counters
        kept = memory.workspace(self._beside if scratch else self.need)
        base, arrivals = scratch or kept.partials, kept.arrivals
        rest = base + space.sums, base + space.partials, arrivals + 4 * _COUNTERS, base + space.turns
        for argument, *_, one, _ in bound.launches:
            one.place(argument, arrivals if one.own_counters else counters, rest)
        bound.rows = base + space.lse2, base + space.delta
        bound.sinks = 0 if space.sinks < 0 else base + space.sinks
        if self._copies_any:
            bound.copies = tuple(0 if place < 0 else base + place for place in self._copies)
        bound.named = kept.number, scratch, counters
