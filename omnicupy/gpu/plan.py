"""One launch, planned: the grid, the parameter struct and what a warm call still has to fill in."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from omnicupy.call import check
from omnicupy.call.arrays import DTYPE_NAMES
from omnicupy.call.problem import Problem
from omnicupy.gpu import stream_memory
from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.gpu.ranges import Layout, Range, byte_range, meeting
from omnicupy.gpu.stream_memory import StreamMemory
from omnicupy.gpu.tensor_maps import packed_map, tensor_map
from omnicupy.gpu.workspace import Need
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import box_keys
from omnicupy.jit.panels import tail_columns
from omnicupy.jit.params import MAP_BYTES, PARAMS
from omnicupy.jit.spec import AttnSpec

ITEM_BYTES = 2  # of float16 and bfloat16
MAX_MAPS = 1024  # address triples whose tensor maps a plan keeps: a model has as many layers at most
ALIGN_MASK = check.ALIGN_BYTES - 1
_POINTERS = struct.Struct("<5Q")  # q, k, v, out, lse: the first fields of ForwardParams
_MAPS_BYTES = 3 * MAP_BYTES  # of q, k and v: first in ForwardParamsSm90, last in TailParamsSm90
_ADDRESS = struct.Struct("<Q")
MAX_BOUND = 32  # streams whose structs a plan keeps
_SINK_BYTES = 4  # of an element of sink_logits
_WORK = struct.Struct("<3Q")  # counter, partials, arrivals: neighbours there
Addresses: TypeAlias = tuple[int, int, int]  # of q, k and v
Placed: TypeAlias = tuple[int, Layout]  # an array's address, and how it lies there
Bound: TypeAlias = tuple[bytearray, Callable[[], None]]  # a launch's struct, and what launches with it


@dataclass(frozen=True)
class KernelCall:
    """What is launched, how many thread blocks of it, and on which arrays: the layouts of q, k and v, and of `out`
    where it is given.  need: memory for parts of split rows, None where none are split.
    """

    function: Any
    grid: tuple[int, int, int]
    layouts: tuple[Layout, Layout, Layout]
    out: Layout | None
    need: Need | None = None


class Plan:
    """One launch, ready but for the addresses of q, k, v, out and lse.

    shape, dtype: of the output.  device: which runs it.  blocks: the device copy that it reads.  template: its struct
    without these addresses.
    """

    __slots__ = (
        *("_block", "_bound", "_function", "_grid", "_near", "_offset", "_out", "_sink_at", "_smem"),
        *("blocks", "device", "dtype", "shape", "spec", "template"),
    )

    def __init__(
        self, spec: AttnSpec, problem: Problem, blocks: DeviceBlocks, template: bytes, launched: KernelCall
    ) -> None:
        self.spec = spec
        self.blocks = blocks  # keeps the device arrays while the plan may launch
        self.device = blocks.device
        self._function, self._grid = launched.function, launched.grid
        self._bound: dict[int | None, Bound] = {}  # by StreamMemory.user, which no other stream ever has
        self._block = (spec.threads, 1, 1)
        self._smem = spec.smem_bytes
        self.template = template
        self._offset = PARAMS[spec.params].fields["q"][1]  # type: ignore[index]
        self._sink_at = PARAMS[spec.params].fields["sink_logits"][1]  # type: ignore[index]
        self._out = (0, 0) if launched.out is None else byte_range(launched.out, ITEM_BYTES)
        self.shape = (problem.batch, problem.q_heads, problem.q_len, problem.value_dim)
        self.dtype = next(dtype for dtype, name in DTYPE_NAMES.items() if name == problem.dtype)
        self._near: tuple[Range, ...] = ()
        if launched.out is not None:
            ranges = (byte_range(layout, ITEM_BYTES) for layout in launched.layouts)
            self._near = tuple(meeting(one, self._out) for one in ranges)

    def fits_addresses(self, q: int, k: int, v: int, out: int | None) -> bool:
        """What an equal key leaves open of these addresses: aligned, `out` apart from the inputs. False: check all."""
        if out is None:
            return not (q | k | v) & ALIGN_MASK
        if (q | k | v | out) & ALIGN_MASK:
            return False
        # A cheap test that only the full check can overrule: no address ranges meet.
        (q0, q1), (k0, k1), (v0, v1) = self._near
        return not (q0 < q - out < q1 or k0 < k - out < k1 or v0 < v - out < v1)

    def fits_sink(self, sink_logits: int, out: int | None) -> bool:
        """The same of the address of sink_logits. False: check all."""
        if sink_logits % _SINK_BYTES:
            return False
        first, stop = self._out
        end = sink_logits + _SINK_BYTES * self.shape[1]
        return out is None or end <= out + first or sink_logits >= out + stop

    def reads(self, blocks: DeviceBlocks) -> bool:
        """Does a launch read this device copy?"""
        return self.blocks is blocks

    def launch(
        self, q: int, k: int, v: int, out: int, lse: int, stream: Any, *, sink_logits: int = 0
    ) -> None:
        """Run on `stream`, of the plan's device, which is current. q ... lse, sink_logits: addresses, 0 for none."""
        blocks = self.blocks
        while True:
            memory = stream_memory.memory_of(self.device, stream)
            if memory.user not in blocks.users:
                memory.reads(blocks)
            with memory.lock:  # so the stream's struct is this launch's alone until the driver has read it
                if memory.closed:
                    continue
                argument, start = self._bound.get(memory.user) or self._bind(memory, stream)
                _POINTERS.pack_into(argument, self._offset, q, k, v, out, lse)
                _ADDRESS.pack_into(argument, self._sink_at, sink_logits)
                self._complete(argument, (q, k, v), memory)
                start()
            if memory.user not in blocks.users:  # another thread has made them forget the stream meanwhile
                memory.reads(blocks)
            return

    def _bind(self, memory: StreamMemory, stream: Any) -> Bound:
        """A struct for launches on `stream`, kept but for a capture: that has no number, and few launches."""
        argument = bytearray(self.template)
        made = argument, self._function.bind(self._grid, self._block, argument, self._smem, stream)
        if memory.user is not None:
            if len(self._bound) >= MAX_BOUND:
                self._bound.clear()
            self._bound[memory.user] = made
        return made

    def argument(
        self,
        q: int,
        k: int,
        v: int,
        out: int,
        lse: int,
        template: bytes | None = None,
        *,
        sink_logits: int = 0,
    ) -> bytearray:
        """The struct of one launch, its own: the driver reads it in the launch, where other threads may run.

        template: without the addresses of arrays; None is the plan's own.
        """
        argument = bytearray(template or self.template)
        _POINTERS.pack_into(argument, self._offset, q, k, v, out, lse)
        if sink_logits:
            _ADDRESS.pack_into(argument, self._sink_at, sink_logits)
        return argument

    def run(self, argument: bytearray, addresses: Addresses, memory: StreamMemory, stream: Any) -> None:
        """Launch with what `argument` made of such addresses. Under the lock of `memory`, that of `stream`."""
        self._complete(argument, addresses, memory)
        self._function(self._grid, self._block, (argument,), self._smem, stream)

    def _complete(self, argument: bytearray, addresses: Addresses, memory: StreamMemory) -> None:
        """What else a kernel kind's struct holds."""


class Sm90Plan(Plan):
    """A launch of the Hopper kernel: persistent thread blocks that read q, k and v through tensor maps."""

    __slots__ = ("_group", "_layouts", "_maps", "_need", "_work_at")

    def __init__(
        self, spec: AttnSpec, problem: Problem, blocks: DeviceBlocks, template: bytes, launched: KernelCall
    ) -> None:
        super().__init__(spec, problem, blocks, template, launched)
        self._maps: dict[Addresses, bytes] = {}
        self._layouts = launched.layouts
        self._group = problem.group
        self._work_at = PARAMS[spec.params].fields["counter"][1]  # type: ignore[index]
        self._need = launched.need
        stream_memory.prepare(self.device, self._need)

    def _complete(self, argument: bytearray, addresses: Addresses, memory: StreamMemory) -> None:
        maps = self._maps.get(addresses)
        if maps is None:
            maps = self._new_maps(addresses)
            if len(self._maps) >= MAX_MAPS:
                self._maps.clear()
            self._maps[addresses] = maps
        argument[:_MAPS_BYTES] = maps[:_MAPS_BYTES]
        if self.spec.narrow:
            argument[-_MAPS_BYTES:] = maps[_MAPS_BYTES:]
        partials = arrivals = 0
        if self._need is not None:
            space = memory.workspace(self._need)
            partials, arrivals = space.partials, space.arrivals
        _WORK.pack_into(argument, self._work_at, memory.counters, partials, arrivals)

    def _new_maps(self, addresses: Addresses) -> bytes:
        """The maps of q, k and v at these addresses."""
        (q, *keys), (of_q, *of_keys), spec = addresses, self._layouts, self.spec
        if spec.pack:
            box = (spec.pack_heads(self._group), spec.tokens(self._group))
            first = packed_map(q, *of_q, spec.dtype, self._group, box)
        else:
            first = tensor_map(q, *of_q, spec.dtype, (spec.br, spec.heads))
        if isinstance(spec, Fp8Spec):  # whose keys do not come by the copy engine
            return first + bytes(2 * MAP_BYTES)
        made = list(zip(keys, of_keys, strict=True))
        maps = [first, *(tensor_map(at, *of, spec.dtype, (box_keys(spec), 1)) for at, of in made)]
        return b"".join(maps + self._tail_maps((q, of_q), made)) if spec.narrow else b"".join(maps)

    def _tail_maps(self, query: Placed, keys: list[Placed]) -> list[bytes]:
        """Those of the narrow panels of q, k and v, zeros where one has none."""
        spec, found = self.spec, []
        boxes = ((spec.br, spec.heads), (spec.bc, 1), (spec.bc, 1))
        widths = map(tail_columns, (spec.head_dim, spec.head_dim, spec.value_dim))
        for (at, of), box, width in zip([query, *keys], boxes, widths, strict=True):
            found.append(tensor_map(at, *of, spec.dtype, box, width) if width else bytes(MAP_BYTES))
        return found


PLANS: dict[str, type[Plan]] = {"naive": Plan, "sm80": Plan, "sm90": Sm90Plan}
