"""One launch, planned: the grid, the parameter struct and what a warm call still has to fill in."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from omnicupy import check, counters, workspace
from omnicupy.arrays import DTYPE_NAMES
from omnicupy.check import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.params import PARAMS
from omnicupy.schedule import Crew
from omnicupy.spec import AttnSpec
from omnicupy.tma import can_map, tensor_map
from omnicupy.upload import DeviceBlocks

MAX_GRID_X = 2**31 - 1
MAX_MAPS = 64  # address triples whose tensor maps a plan keeps
ALIGN_MASK = check.ALIGN_BYTES - 1
_POINTERS = struct.Struct("<5Q")  # q, k, v, out, lse: the first fields of AttnParams
_WORK = struct.Struct("<3Q")  # counter, partials, arrivals: neighbours in AttnParamsSm90
MOST_PARTIAL_BYTES = 32 * 2**20  # of unfinished rows in one launch

_current_stream = cupy.cuda.get_current_stream


def crew_of(spec: AttnSpec, problem: Problem, mask_batch: int, sm_count: int) -> Crew:
    """Who works on each block row. Only the Hopper kernel may split rows, as far as the merge may use memory."""
    heads = problem.q_heads * (problem.batch // mask_batch)
    all_heads = problem.q_heads * problem.batch
    slots = MOST_PARTIAL_BYTES // (all_heads * partial_bytes(spec)) if spec.kernel == "sm90" else 0
    return Crew(heads, sm_count, slots)


def partial_bytes(spec: AttnSpec) -> int:
    """What one part of a split row leaves: O in float32, and for each row and lane its peaks and sums."""
    return spec.br // 16 * (spec.head_dim // 8 + 1) * 32 * 16


def grid_of(spec: AttnSpec, problem: Problem, work_items: int, sm_count: int) -> tuple[int, int, int]:
    """Thread blocks of a launch. Raises UnsupportedError when there are more than a launch may have.

    work_items: parts of block rows, times heads. The persistent kernel gets one block a multiprocessor, or fewer
    when there are fewer work items.
    """
    if spec.kernel == "naive":
        grid = (problem.q_len * problem.q_heads * problem.batch, 1, 1)
    else:
        grid = (work_items, spec.value_pieces, 1)
    if grid[0] > MAX_GRID_X:
        raise UnsupportedError(f"q: {grid[0]} thread blocks exceed a launch's {MAX_GRID_X}; split the batch")
    return (min(grid[0], sm_count), 1, 1) if spec.kernel == "sm90" else grid


def pack_params(spec: AttnSpec, problem: Problem, strides: dict[str, Any], values: dict[str, Any]) -> bytes:
    """The parameter struct with null pointers for q, k, v, out and lse.

    strides: byte strides of q, k, v and out.  values: fields of the mask and of the device, by name; what the kernel
    does not know of is left out.
    """
    record = np.zeros(1, PARAMS[spec.kernel])
    for name, of_array in strides.items():
        record[f"{name}_strides"] = [stride // 2 for stride in of_array[:3]]  # both dtypes have 2 bytes
    for name in ("q_len", "k_len", "head_dim", "batch", "q_heads", "group"):
        record[name] = getattr(problem, name)
    for name in PARAMS[spec.kernel].names or ():
        if name in values:
            record[name] = values[name]
    return record.tobytes()


@dataclass(frozen=True)
class Launched:
    """What is launched, and how many thread blocks of it. reaches: of q, k, v and, where it is given, out, the first
    byte and the one past the last, from the array's address.
    """

    function: Any
    grid: tuple[int, int, int]
    reaches: tuple[tuple[int, int], ...]


class Plan:
    """One launch, ready but for the addresses of q, k, v, out and lse."""

    __slots__ = (
        *("_block", "_blocks", "_bytes", "_dtype", "_function", "_grid", "_lse_shape", "_offset", "_reaches"),
        *("_shape", "_smem", "_template", "device", "spec"),
    )

    def __init__(
        self, spec: AttnSpec, problem: Problem, blocks: DeviceBlocks, template: bytes, launched: Launched
    ) -> None:
        self.spec = spec
        self._blocks = blocks  # keeps the device arrays while the plan may launch
        self.device = blocks.device
        self._function, self._grid, self._reaches = launched.function, launched.grid, launched.reaches
        self._block = (spec.threads, 1, 1)
        self._smem = spec.smem_bytes
        self._template = template
        self._offset = PARAMS[spec.kernel].fields["q"][1]  # type: ignore[index]
        self._shape = (problem.batch, problem.q_heads, problem.q_len, problem.head_dim)
        self._lse_shape = self._shape[:3]
        self._dtype = next(dtype for dtype, name in DTYPE_NAMES.items() if name == problem.dtype)
        self._bytes = np.dtype(("V", len(template)))

    def takes(self, q: Any, k: Any, v: Any, out: Any) -> bool:
        """What an equal key leaves open: aligned addresses, `out` apart from the inputs. False: check all."""
        a, b, c = q.data.ptr, k.data.ptr, v.data.ptr
        if out is None:
            return not (a | b | c) & ALIGN_MASK
        target = out.data.ptr
        if (a | b | c | target) & ALIGN_MASK:
            return False
        # A cheap test that only the full check can overrule: no address ranges meet.
        *inputs, (first, stop) = self._reaches
        return all(
            target + stop <= pointer + x0 or pointer + x1 <= target + first
            for pointer, (x0, x1) in zip((a, b, c), inputs, strict=True)
        )

    def launch(
        self, q: Any, k: Any, v: Any, out: Any, return_lse: bool, *, stream: Any = None, empty: Any = None
    ) -> Any:
        """Run on `stream`, or the current one, of the plan's device, which is current; `empty(shape, dtype)`
        makes the outputs, else cupy.ndarray. Returns out, or (out, lse).
        """
        if stream is None:
            stream = _current_stream(self.device)
        if empty is None:
            empty = cupy.ndarray
        self._blocks.use(stream)
        if out is None:
            out = empty(self._shape, self._dtype)
        lse = empty(self._lse_shape, np.float32) if return_lse else None
        # Its own struct for each call: the driver reads it in the launch, where other threads may run.
        struct_ = bytearray(self._template)
        lse_pointer = lse.data.ptr if lse is not None else 0
        _POINTERS.pack_into(
            struct_, self._offset, q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, lse_pointer
        )
        self._complete(struct_, q, k, v, stream)
        argument = np.frombuffer(struct_, self._bytes)  # size one: CuPy passes it by value
        self._function(self._grid, self._block, (argument,), self._smem, stream)
        return (out, lse) if return_lse else out

    def _complete(self, struct_: bytearray, q: Any, k: Any, v: Any, stream: Any) -> None:
        """What else a kernel kind's struct holds."""


class Sm90Plan(Plan):
    """A launch of the Hopper kernel: persistent thread blocks that read q, k and v through tensor maps."""

    __slots__ = ("_maps", "_need", "_rows", "_work_at")

    def __init__(
        self, spec: AttnSpec, problem: Problem, blocks: DeviceBlocks, template: bytes, launched: Launched
    ) -> None:
        super().__init__(spec, problem, blocks, template, launched)
        counters.prepare(self.device)
        self._maps: dict[tuple[int, int, int], bytes] = {}
        self._rows = (spec.br, spec.bc, spec.bc)
        self._work_at = PARAMS[spec.kernel].fields["counter"][1]  # type: ignore[index]
        self._need: workspace.Need | None = None
        sizes, heads = blocks.sizes, problem.q_heads * problem.batch
        if sizes.n_split_rows:
            parts, rows = heads * sizes.n_slots, heads * sizes.n_split_rows
            self._need = workspace.Need(parts * partial_bytes(spec), rows * (spec.br // 16))
            workspace.prepare(self.device, self._need)

    def _complete(self, struct_: bytearray, q: Any, k: Any, v: Any, stream: Any) -> None:
        addresses = (q.data.ptr, k.data.ptr, v.data.ptr)
        maps = self._maps.get(addresses)
        if maps is None:
            maps = b"".join(
                tensor_map(array.data.ptr, array.shape, array.strides, self.spec.dtype, rows)
                for array, rows in zip((q, k, v), self._rows, strict=True)
            )
            if len(self._maps) >= MAX_MAPS:
                self._maps.clear()
            self._maps[addresses] = maps
        struct_[: len(maps)] = maps
        partials = arrivals = 0
        if self._need is not None:
            space = workspace.of_stream(self.device, stream, self._need)
            partials, arrivals = space.partials, space.arrivals
        _WORK.pack_into(struct_, self._work_at, counters.address(self.device, stream), partials, arrivals)


PLANS: dict[str, type[Plan]] = {"naive": Plan, "sm80": Plan, "sm90": Sm90Plan}


def check_strides(spec: AttnSpec, q: Any, k: Any, v: Any) -> None:
    """Raises UnsupportedError when `spec` asks for tensor maps of arrays that no map holds."""
    for name, array in (("q", q), ("k", k), ("v", v)):
        if spec.kernel == "sm90" and not can_map(array.shape, array.strides):
            raise UnsupportedError(
                f"{name}: kernel 'sm90' needs positive strides, got {array.strides} (bytes) for shape "
                f"{array.shape}; copy the array or pass config=AttnSpec(kernel='sm80', ...)"
            )


def reach(array: Any) -> tuple[int, int]:
    """The first byte of an array and the one past its last, counted from its address."""
    steps = [stride * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True)]
    last = sum(step for step in steps if step > 0) + array.dtype.itemsize
    return sum(step for step in steps if step < 0), int(last)
