"""The launches of one backward pass, planned: structs, grids, work memory, and what a warm call has to fill in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omnicupy.gpu import stream_memory
from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.gpu.plan import MAX_MAPS, Layout
from omnicupy.gpu.stream_memory import StreamMemory
from omnicupy.gpu.tensor_maps import tensor_map
from omnicupy.gpu.workspace import Need
from omnicupy.jit.backward_spec import BackwardKernel, BackwardSpec
from omnicupy.jit.params import MAP_BYTES, PARAMS

_INPUTS = struct.Struct("<5Q")  # q, k, v, out, lse: the first fields of ForwardParams
_GRADIENTS = struct.Struct("<11Q")  # dout ... v_copy: the first fields of BackwardParams that are its own
_MAPS = struct.Struct(f"<{4 * MAP_BYTES}s")  # of q, dout, k and v: the first fields of BackwardParamsSm90
_ADDRESS = struct.Struct("<Q")


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


class Space(NamedTuple):
    """Where things lie in work memory: bytes from its start, -1 for copies that are not made. size: of all."""

    lse2: int
    delta: int
    q: int
    dout: int
    k: int
    v: int
    size: int


@dataclass
class Launch:
    """One kernel launch. template: its struct without addresses.  blocks: the device copy that it reads.

    layouts: of q, dout, k and v as this kernel reads them, for tensor maps; () for kernels that need none.
    """

    kernel: BackwardKernel
    function: Any
    grid: tuple[int, int, int]
    template: NDArray[np.void]
    blocks: DeviceBlocks
    layouts: Sequence[Layout] = ()
    _maps: dict[tuple[int, ...], bytes] = field(default_factory=dict)

    def run(self, at: Addresses, work: Addresses, gradients: bytes, counters: int, stream: Any) -> None:
        """Give the launch to `stream`. at: what it reads as q, k, v and dout.  work: as the call has them.

        gradients: packed, from dout on.
        """
        fields = PARAMS[self.kernel.params].fields
        assert fields is not None
        argument = self.template.copy()  # size one: CuPy passes it by value
        _INPUTS.pack_into(argument, fields["q"][1], at.q, at.k, at.v, work.out, work.lse)
        argument_at = fields["dout"][1]
        _GRADIENTS.pack_into(argument, argument_at, *_GRADIENTS.unpack(gradients))
        if self.layouts:
            _ADDRESS.pack_into(argument, argument_at, at.dout)
            _MAPS.pack_into(argument, 0, self._maps_of((at.q, at.dout, at.k, at.v)))
            _ADDRESS.pack_into(argument, fields["counter"][1], counters)
        elif self.kernel.part != "prepare":
            _ADDRESS.pack_into(argument, argument_at, at.dout)
        self.function(self.grid, (self.kernel.threads, 1, 1), (argument,), self.kernel.smem_bytes, stream)

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
    """The launches of one backward pass, in order. spec: whose kernels.  device: which runs them."""

    def __init__(self, spec: BackwardSpec, device: int, launches: Sequence[Launch], space: Space) -> None:
        self.spec = spec
        self.device = device
        self._launches = tuple(launches)
        self._blocks = tuple({id(one.blocks): one.blocks for one in launches}.values())
        self._space = space
        self._need = Need(space.size, 0)
        stream_memory.prepare(device, self._need)

    def reads(self, blocks: DeviceBlocks) -> bool:
        """Does a launch read this device copy?"""
        return any(one is blocks for one in self._blocks)

    def launch(self, work: Addresses, stream: Any) -> None:
        """Run on `stream`, of the plan's device, which is current."""
        while True:
            memory = stream_memory.memory_of(self.device, stream)
            self._order(memory)
            with memory.lock:
                if memory.closed:
                    continue
                self._run(work, memory, stream)
            self._order(memory)  # another thread may have made them forget the stream meanwhile
            return

    def _order(self, memory: StreamMemory) -> None:
        for blocks in self._blocks:
            if memory.user not in blocks.users:
                memory.reads(blocks)

    def _run(self, work: Addresses, memory: StreamMemory, stream: Any) -> None:
        space = self._space
        base = memory.workspace(self._need).partials
        q, dout, k, v = (
            0 if offset < 0 else base + offset for offset in (space.q, space.dout, space.k, space.v)
        )
        gradients = _GRADIENTS.pack(
            *(
                work.dout,
                work.dlse,
                base + space.lse2,
                base + space.delta,
                work.dq,
                work.dk,
                work.dv,
                q,
                dout,
                k,
                v,
            )
        )
        copied = work._replace(q=q or work.q, k=k or work.k, v=v or work.v, dout=dout or work.dout)
        for one in self._launches:
            at = work if one.kernel.part == "prepare" else copied
            one.run(at, work, gradients, memory.counters, stream)
