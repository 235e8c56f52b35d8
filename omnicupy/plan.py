"""One launch, planned: the grid, the parameter struct and what a warm call still has to fill in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from omnicupy import check, counters, workspace
from omnicupy.arrays import DTYPE_NAMES
from omnicupy.check import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.params import MAP_BYTES, PARAMS
from omnicupy.schedule import Crew
from omnicupy.spec import AttnSpec
from omnicupy.tma import can_map, tensor_map
from omnicupy.upload import DeviceBlocks

ITEM_BYTES = 2  # of float16 and bfloat16
MAX_GRID_X = 2**31 - 1
MAX_MAPS = 64  # address triples whose tensor maps a plan keeps
ALIGN_MASK = check.ALIGN_BYTES - 1
_POINTERS = struct.Struct("<5Q")  # q, k, v, out, lse: the first fields of AttnParams
_MAPS = struct.Struct(f"<{3 * MAP_BYTES}s")  # of q, k and v: the first fields of AttnParamsSm90
_WORK = struct.Struct("<3Q")  # counter, partials, arrivals: neighbours there
MOST_PARTIAL_BYTES = 32 * 2**20  # of unfinished rows in one launch

Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides in bytes
Addresses: TypeAlias = tuple[int, int, int]  # of q, k and v


def in_tiles(spec: AttnSpec, problem: Problem) -> Problem:
    """The problem with heads that share a tile counted as one. Raises ValueError where they do not fill tiles."""
    if problem.group % spec.heads:
        raise ValueError(
            f"config: br={spec.br} with warps={spec.warps} puts {spec.heads} query heads of one group into a tile, "
            f"but a group has {problem.group}; take warps={spec.br // 16 + 4}"
        )
    return replace(problem, q_heads=problem.q_heads // spec.heads)


def crew_of(spec: AttnSpec, problem: Problem, mask_batch: int, sm_count: int) -> Crew:
    """Who works on each block row. Only the Hopper kernel may split rows, as far as the merge may use memory."""
    problem = in_tiles(spec, problem)
    heads = problem.q_heads * (problem.batch // mask_batch)
    all_heads = problem.q_heads * problem.batch
    slots = MOST_PARTIAL_BYTES // (all_heads * partial_bytes(spec)) if spec.kernel == "sm90" else 0
    return Crew(heads, sm_count, slots)


def partial_bytes(spec: AttnSpec) -> int:
    """What one part of a split row leaves: O in float32, and for each row and lane its peaks and sums."""
    return spec.rows // 16 * (spec.head_dim // 8 + 1) * 32 * 16


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
        record[f"{name}_strides"] = [stride // ITEM_BYTES for stride in of_array[:3]]
    for name in ("q_len", "k_len", "head_dim", "batch", "q_heads", "group"):
        record[name] = getattr(problem, name)
    for name in PARAMS[spec.kernel].names or ():
        if name in values:
            record[name] = values[name]
    return record.tobytes()


@dataclass(frozen=True)
class Launched:
    """What is launched, how many thread blocks of it, and on which arrays: the layouts of q, k and v, and of `out`
    where it is given.
    """

    function: Any
    grid: tuple[int, int, int]
    layouts: tuple[Layout, Layout, Layout]
    out: Layout | None


class Plan:
    """One launch, ready but for the addresses of q, k, v, out and lse.

    shape, dtype: of the output.  device: which runs it.
    """

    __slots__ = (
        *("_block", "_blocks", "_function", "_grid", "_near", "_offset", "_smem", "_template"),
        *("device", "dtype", "shape", "spec"),
    )

    def __init__(
        self, spec: AttnSpec, problem: Problem, blocks: DeviceBlocks, template: bytes, launched: Launched
    ) -> None:
        self.spec = spec
        self._blocks = blocks  # keeps the device arrays while the plan may launch
        self.device = blocks.device
        self._function, self._grid = launched.function, launched.grid
        self._block = (spec.threads, 1, 1)
        self._smem = spec.smem_bytes
        self._template = np.frombuffer(template, np.dtype(("V", len(template))))
        self._offset = PARAMS[spec.kernel].fields["q"][1]  # type: ignore[index]
        self.shape = (problem.batch, problem.q_heads, problem.q_len, problem.head_dim)
        self.dtype = next(dtype for dtype, name in DTYPE_NAMES.items() if name == problem.dtype)
        self._near = () if launched.out is None else _near(launched.layouts, launched.out)

    def takes(self, q: int, k: int, v: int, out: int | None) -> bool:
        """What an equal key leaves open of these addresses: aligned, `out` apart from the inputs. False: check all."""
        if out is None:
            return not (q | k | v) & ALIGN_MASK
        if (q | k | v | out) & ALIGN_MASK:
            return False
        # A cheap test that only the full check can overrule: no address ranges meet.
        (q0, q1), (k0, k1), (v0, v1) = self._near
        return not (q0 < q - out < q1 or k0 < k - out < k1 or v0 < v - out < v1)

    def launch(self, q: int, k: int, v: int, out: int, lse: int, stream: Any) -> None:
        """Run on `stream`, of the plan's device, which is current. q ... lse: addresses, lse 0 for none."""
        self._blocks.use(stream)
        # Its own struct for each call: the driver reads it in the launch, where other threads may run.
        argument = self._template.copy()  # size one: CuPy passes it by value
        _POINTERS.pack_into(argument, self._offset, q, k, v, out, lse)
        self._complete(argument, (q, k, v), stream)
        self._function(self._grid, self._block, (argument,), self._smem, stream)

    def _complete(self, argument: NDArray[np.void], addresses: Addresses, stream: Any) -> None:
        """What else a kernel kind's struct holds."""


class Sm90Plan(Plan):
    """A launch of the Hopper kernel: persistent thread blocks that read q, k and v through tensor maps."""

    __slots__ = ("_layouts", "_maps", "_need", "_work_at")

    def __init__(
        self, spec: AttnSpec, problem: Problem, blocks: DeviceBlocks, template: bytes, launched: Launched
    ) -> None:
        super().__init__(spec, problem, blocks, template, launched)
        counters.prepare(self.device)
        self._maps: dict[Addresses, bytes] = {}
        self._layouts = launched.layouts
        self._work_at = PARAMS[spec.kernel].fields["counter"][1]  # type: ignore[index]
        self._need: workspace.Need | None = None
        sizes, heads = blocks.sizes, in_tiles(spec, problem).q_heads * problem.batch
        if sizes.n_split_rows:
            parts, rows = heads * sizes.n_slots, heads * sizes.n_split_rows
            self._need = workspace.Need(parts * partial_bytes(spec), rows * (spec.rows // 16))
            workspace.prepare(self.device, self._need)

    def _complete(self, argument: NDArray[np.void], addresses: Addresses, stream: Any) -> None:
        maps = self._maps.get(addresses)
        if maps is None:
            boxes = ((self.spec.br, self.spec.heads), (self.spec.bc, 1), (self.spec.bc, 1))
            maps = b"".join(
                tensor_map(address, *layout, self.spec.dtype, box)
                for address, layout, box in zip(addresses, self._layouts, boxes, strict=True)
            )
            if len(self._maps) >= MAX_MAPS:
                self._maps.clear()
            self._maps[addresses] = maps
        _MAPS.pack_into(argument, 0, maps)
        partials = arrivals = 0
        if self._need is not None:
            space = workspace.of_stream(self.device, stream, self._need)
            partials, arrivals = space.partials, space.arrivals
        _WORK.pack_into(argument, self._work_at, counters.address(self.device, stream), partials, arrivals)


PLANS: dict[str, type[Plan]] = {"naive": Plan, "sm80": Plan, "sm90": Sm90Plan}


def check_strides(spec: AttnSpec, q: Any, k: Any, v: Any) -> None:
    """Raises UnsupportedError when `spec` asks for tensor maps of arrays that no map holds."""
    for name, array in (("q", q), ("k", k), ("v", v)):
        if spec.kernel == "sm90" and not can_map(array.shape, array.strides):
            raise UnsupportedError(
                f"{name}: kernel 'sm90' needs positive strides, got {array.strides} (bytes) for shape "
                f"{array.shape}; copy the array or pass config=AttnSpec(kernel='sm80', ...)"
            )


def _near(inputs: Sequence[Layout], out: Layout) -> Sequence[tuple[int, int]]:
    """Of each input, between which distances from `out` its address range meets that of `out`; exclusive both."""
    first, stop = _reach(out)
    return tuple((first - end, stop - begin) for begin, end in map(_reach, inputs))


def _reach(layout: Layout) -> tuple[int, int]:
    """The first byte of an array and the one past its last, counted from its address."""
    steps = [stride * (length - 1) for length, stride in zip(*layout, strict=True)]
    last = sum(step for step in steps if step > 0) + ITEM_BYTES
    return sum(step for step in steps if step < 0), last
