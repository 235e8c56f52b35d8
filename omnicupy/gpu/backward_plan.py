"""The launches of one backward pass, planned: structs, grids, work memory, and what a warm call has to fill in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cupy
import numpy as np

from omnicupy.gpu import stream_memory
from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.gpu.plan import MAX_MAPS, Layout
from omnicupy.gpu.stream_memory import StreamMemory
from omnicupy.gpu.tensor_maps import tensor_map
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.params import MAP_BYTES, PARAMS

_INPUTS = struct.Struct("<5Q")  # q, k, v, out, lse: the first fields of ForwardParams
_GRADIENTS = struct.Struct("<11Q")  # dout ... v_copy: the first fields of BackwardParams that are its own
_MAPS = struct.Struct(f"<{4 * MAP_BYTES}s")  # of q, dout, k and v: the first fields of BackwardParamsSm90
_WORK = struct.Struct("<4Q")  # counter, dq_sums, partials, arrivals: neighbours there
_ADDRESS = struct.Struct("<Q")
_SINKS = struct.Struct("<2Q")  # sink_sums, dsink_logits: neighbours in BackwardParams
_READ_SINKS = ("prepare", "sinks")  # kernels that know of sinks
_COUNTERS = 4  # integers of the kernel of dQ, zero before and after a launch; then come arrivals


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
    each.  partials: of dK and dV of split blocks of keys.  size: of all.  arrivals: counters beside it.
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
    partials: int
    size: int
    arrivals: int


@dataclass
class Launch:
    """One kernel launch. function: what launches it.  template: its struct without addresses.  blocks: the device copy
    that it reads.

    layouts: of q, dout, k and v as this kernel reads them, for tensor maps; () for kernels that need none.
    """

    kernel: BackwardKernel
    function: Any
    grid: tuple[int, int, int]
    template: bytes
    blocks: DeviceBlocks
    layouts: Sequence[Layout] = ()
    _maps: dict[tuple[int, ...], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_value = np.dtype(("V", len(self.template)))
        fields = PARAMS[self.kernel.params].fields
        assert fields is not None
        names = ("q", "dout", "dq_sums", "counter", "turns", "sink_logits", "sink_sums")
        self._at = {name: fields[name][1] for name in names if name in fields}

    def run(
        self,
        at: Addresses,
        gradients: bytes,
        work: tuple[int, int, int, int],
        turns: int,
        stream: Any,
        *,
        sink_sums: int = 0,
    ) -> None:
        """Give the launch to `stream`. at: what it reads.  gradients: addresses packed, from dout on.

        work: addresses of work counters, sums of dQ, partials and arrivals.  turns: that of how many were added to each
        sum.  sink_sums: that of what the kernel that
        prepares leaves of the gradients of sinks, 0 where they are not wanted.
        """
        argument, places = bytearray(self.template), self._at
        _INPUTS.pack_into(argument, places["q"], at.q, at.k, at.v, at.out, at.lse)
        argument[places["dout"] : places["dout"] + len(gradients)] = gradients
        _ADDRESS.pack_into(argument, places["dout"], at.dout)
        if at.sink_logits and self.kernel.part in _READ_SINKS:
            _ADDRESS.pack_into(argument, places["sink_logits"], at.sink_logits)
            _SINKS.pack_into(argument, places["sink_sums"], sink_sums, at.dsink_logits)
        if self.layouts:
            _MAPS.pack_into(argument, 0, self._maps_of((at.q, at.dout, at.k, at.v)))
            _WORK.pack_into(argument, places["counter"], *work)
            _ADDRESS.pack_into(argument, places["turns"], turns)
        elif "dq_sums" in places:
            _ADDRESS.pack_into(argument, places["dq_sums"], work[1])
        by_value = np.frombuffer(argument, self._by_value)  # of one element, which CuPy passes by value
        self.function(self.grid, (self.kernel.threads, 1, 1), (by_value,), self.kernel.smem_bytes, stream)

    def _maps_of(self, addresses: tuple[int, ...]) -> bytes:
        maps = self._maps.get(addresses)
        if maps is None:
            kernel = self.kernel
            boxes = ((kernel.br, 1), (kernel.br, 1), (kernel.bc, 1), (kernel.bc, 1))
            maps = b"".join(
                tensor_map(address, *layout, kernel.dtype, box)
                for address, layout, box in zip(addresses, self.layouts, boxes, strict=True)
            )
            if len(self._maps) >= MAX_MAPS:
                self._maps.clear()
            self._maps[addresses] = maps
        return maps


class BackwardPlan:
    """The launches of one backward pass, in order. spec: whose kernels.  device: which runs them.

    scratch_bytes: what a launch needs beside its arrays while it runs.
    """

    def __init__(self, spec: BackwardSpec, device: int, launches: Sequence[Launch], space: Space) -> None:
        self.spec = spec
        self.device = device
        self.scratch_bytes = space.size
        self._launches = tuple(launches)
        self._blocks = tuple({id(one.blocks): one.blocks for one in launches}.values())
        self._space = space
        stream_memory.prepare(device, Need(space.size, _COUNTERS + space.arrivals))

    def reads(self, blocks: DeviceBlocks) -> bool:
        """Does a launch read this device copy?"""
        return any(one is blocks for one in self._blocks)

    def launch(self, work: Addresses, stream: Any, scratch: int = 0) -> None:
        """Run on `stream`, of the plan's device, which is current.

        scratch: address of `scratch_bytes` that are this launch's alone on the stream, a multiple of 256; 0 takes
        memory that stays with the stream, or with the capture at hand.
        """
        while True:
            memory = stream_memory.memory_of(self.device, stream)
            self._order(memory)
            with memory.lock:
                if memory.closed:
                    continue
                self._run(work, memory, stream, scratch)
            self._order(memory)  # another thread may have made them forget the stream meanwhile
            return

    def _order(self, memory: StreamMemory) -> None:
        for blocks in self._blocks:
            if memory.user not in blocks.users:
                memory.reads(blocks)

    def _run(self, work: Addresses, memory: StreamMemory, stream: Any, scratch: int) -> None:
        space = self._space
        own = memory.workspace(Need(0 if scratch else space.size, _COUNTERS + space.arrivals))
        base = scratch or own.partials
        sums = base + space.sums
        if space.sums >= 0:
            cupy.cuda.runtime.memsetAsync(sums, 0, space.partials - space.sums, stream.ptr)
        copies = [0 if place < 0 else base + place for place in (space.q, space.dout, space.k, space.v)]
        statistics = (base + space.lse2, base + space.delta)
        gradients = _GRADIENTS.pack(work.dout, work.dlse, *statistics, work.dq, work.dk, work.dv, *copies)
        sink_sums = 0 if space.sinks < 0 else base + space.sinks
        q, dout, k, v = copies
        copied = work._replace(q=q or work.q, k=k or work.k, v=v or work.v, dout=dout or work.dout)
        for one in self._launches:
            at = work if one.kernel.part == "prepare" else copied
            # The kernel of dQ may run beside the one before it, so it has work counters of its own.
            counters = own.arrivals if one.kernel.part == "dq" else memory.counters
            arrivals = own.arrivals + 4 * _COUNTERS
            places = (counters, sums, base + space.partials, arrivals)
            one.run(at, gradients, places, base + space.turns, stream, sink_sums=sink_sums)
