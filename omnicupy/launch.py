"""attention() on CuPy arrays: what shapes, strides and mask decide is planned once, the rest is a launch.

A plan is found by what it depends on, through a dictionary kept on the mask (so it is freed with the mask and
its device arrays). A warm call builds the key, allocates the outputs, writes five pointers into a copy of the
parameter struct and launches; whatever can change under an equal key (addresses) is checked there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from omnicupy import cache, check, tune
from omnicupy.arrays import DTYPE_NAMES
from omnicupy.check import Problem
from omnicupy.errors import UnsupportedError
from omnicupy.loading import DeviceInfo, device_info, kernel
from omnicupy.masks import Mask
from omnicupy.params import PARAMS
from omnicupy.spec import AttnSpec
from omnicupy.upload import DeviceBlocks, cache_of, device_blocks, find_cache

__all__ = ["Plan", "attention", "device_info", "grid_of", "kernel", "pack_params", "section_of"]

MAX_PLANS = 256  # a mask's plans (shapes, strides, options); the oldest goes first
MAX_GRID_X = 2**31 - 1
ALIGN_MASK = check.ALIGN_BYTES - 1
_LOG2E = math.log2(math.e)
_POINTERS = struct.Struct("<5Q")  # q, k, v, out, lse: the first fields of AttnParams

_runtime = cupy.cuda.runtime
_current_stream = cupy.cuda.get_current_stream
_unmasked: dict[Any, Plan] = {}  # plans of calls without a mask; their keys hold the shapes


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any = None,
    return_lse: bool = False,
    out: Any = None,
    config: Any = None,
) -> Any:
    """omnicupy.attention for CuPy arrays; also words the error when q, k and v are no arrays at all."""
    key = None
    try:
        device = q.data.device_id
        key = (
            *(q.shape, q.strides, k.shape, k.strides, v.shape, v.strides, q.dtype, k.dtype, v.dtype),
            *(device, k.data.device_id, v.data.device_id, scale, config, cache.generation),
            None if out is None else (out.shape, out.strides, out.dtype, out.data.device_id),
        )
        if mask is None:
            plan = _unmasked.get(key)
        else:
            found = find_cache(mask)
            plan = None if found is None else found.plans.get(key)
    except (AttributeError, TypeError):  # not CuPy arrays, or not a mask: the checks below say so
        plan = None
    if plan is None or not plan.takes(q, k, v, out):
        problem = check.problem(q, k, v, mask, scale=scale, out=out, config=config)
        if plan is None:
            plan = _new_plan(problem, q, k, v, mask, scale=scale, out=out, config=config, key=key)
    current = _runtime.getDevice()
    if current == plan.device:
        return plan.launch(q, k, v, out, return_lse)
    _runtime.setDevice(plan.device)
    try:
        return plan.launch(q, k, v, out, return_lse)
    finally:
        _runtime.setDevice(current)


def section_of(problem: Problem, mask_batch: int, l2_bytes: int) -> int:
    """Query heads worked on side by side: whole groups, as many as have their K and V in half of the L2."""
    heads = problem.q_heads * (problem.batch // mask_batch)
    head_bytes = 2 * 2 * problem.k_len * problem.head_dim  # K and V of one key head, 2 bytes an element
    return min(heads, problem.group * max(1, l2_bytes // 2 // head_bytes))


def grid_of(spec: AttnSpec, problem: Problem) -> tuple[int, int, int]:
    """Thread blocks of a launch. Raises UnsupportedError when there are more than a launch may have."""
    if spec.kernel == "naive":
        grid = (problem.q_len * problem.q_heads * problem.batch, 1, 1)
    else:
        grid = (-(-problem.q_len // spec.br) * problem.q_heads * problem.batch, spec.value_pieces, 1)
    if grid[0] > MAX_GRID_X:
        raise UnsupportedError(f"q: {grid[0]} thread blocks exceed a launch's {MAX_GRID_X}; split the batch")
    return grid


def pack_params(spec: AttnSpec, problem: Problem, strides: dict[str, Any], values: dict[str, Any]) -> bytes:
    """The parameter struct with null pointers for q, k, v, out and lse.

    strides: byte strides of q, k, v and out.  values: the fields of the mask and of the device, by name.
    """
    record = np.zeros(1, PARAMS[spec.kernel])
    for name, of_array in strides.items():
        record[f"{name}_strides"] = [stride // 2 for stride in of_array[:3]]  # both dtypes have 2 bytes
    for name in ("q_len", "k_len", "head_dim", "batch", "q_heads", "group"):
        record[name] = getattr(problem, name)
    for name, value in values.items():
        record[name] = value
    return record.tobytes()


class Plan:
    """One launch, ready but for the addresses of q, k, v, out and lse."""

    __slots__ = (
        *("_block", "_blocks", "_bytes", "_dtype", "_function", "_grid", "_lse_shape", "_offset"),
        *("_shape", "_smem", "_template", "device", "spec"),
    )

    def __init__(
        self, spec: AttnSpec, problem: Problem, blocks: DeviceBlocks, template: bytes, function: Any
    ) -> None:
        self.spec = spec
        self._blocks = blocks  # keeps the device arrays while the plan may launch
        self.device = blocks.device
        self._function = function
        self._grid = grid_of(spec, problem)
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
        return not (a | b | c | out.data.ptr) & ALIGN_MASK and not any(
            _may_overlap(out, x) for x in (q, k, v)
        )

    def launch(self, q: Any, k: Any, v: Any, out: Any, return_lse: bool) -> Any:
        """Run on the current stream of the plan's device, which is current. Returns out, or (out, lse)."""
        stream = _current_stream(self.device)
        self._blocks.use(stream)
        if out is None:
            out = cupy.ndarray(self._shape, self._dtype)
        lse = cupy.ndarray(self._lse_shape, np.float32) if return_lse else None
        # Its own struct for each call: the driver reads it in the launch, where other threads may run.
        struct_ = bytearray(self._template)
        lse_pointer = lse.data.ptr if lse is not None else 0
        _POINTERS.pack_into(
            struct_, self._offset, q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr, lse_pointer
        )
        argument = np.frombuffer(struct_, self._bytes)  # size one: CuPy passes it by value
        self._function(self._grid, self._block, (argument,), self._smem, stream)
        return (out, lse) if return_lse else out


def _new_plan(
    problem: Problem,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    scale: Any,
    out: Any,
    config: AttnSpec | None,
    key: Any,
) -> Plan:
    masks = check.masks_of(mask, problem)
    if all(one is masks[0] for one in masks):
        masks = masks[:1]
    device = q.data.device_id
    with cupy.cuda.Device(device):
        info = device_info(device)
        spec = _spec_of(problem, masks, info, config)
        function = kernel(spec, device).function
        blocks = device_blocks(masks, spec.br, spec.bc, device)
    factor = check.scale_of(scale, problem.head_dim)
    sizes = blocks.sizes
    values = {
        **blocks.pointers,
        **{
            name: getattr(sizes, name)
            for name in ("q_blocks", "mask_batch", "diagonal", "n_spans", "k_padded")
        },
        "scale": factor,
        "scale_log2": factor * _LOG2E,
        "section": section_of(problem, sizes.mask_batch, info.l2_bytes),
    }
    out_strides = _contiguous_strides(q.shape, q.dtype.itemsize) if out is None else out.strides
    strides = {"q": q.strides, "k": k.strides, "v": v.strides, "out": out_strides}
    plan = Plan(spec, problem, blocks, pack_params(spec, problem, strides, values), function)
    plans = _unmasked if mask is None else _plans_of(mask, masks)
    while len(plans) >= MAX_PLANS:
        plans.pop(next(iter(plans), None), None)
    if key is not None:
        plans[key] = plan
    return plan


def _plans_of(mask: Mask | Sequence[Mask], masks: Sequence[Mask]) -> dict[Any, Plan]:
    # A list that repeats one mask is looked up as a list, but shares that mask's device arrays.
    plans: dict[Any, Plan] = cache_of(masks if isinstance(mask, Mask) else tuple(mask)).plans
    return plans


def _spec_of(problem: Problem, masks: Sequence[Mask], info: DeviceInfo, config: AttnSpec | None) -> AttnSpec:
    arch = tune.arch_of(info.major, info.minor)
    if config is None:
        return tune.pick(arch, problem, masks, info.sm_count)
    if not tune.runs_on(config.arch, info.major, info.minor):
        raise ValueError(
            f"config: code for {config.arch} does not run on this device (compute capability {info.major}."
            f"{info.minor}); use arch={arch!r}"
        )
    return config


def _contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))


def _may_overlap(a: Any, b: Any) -> bool:
    """True when the address ranges of two arrays meet: a cheap test that only the full check can overrule."""
    (a0, a1), (b0, b1) = _range(a), _range(b)
    return a0 < b1 and b0 < a1


def _range(array: Any) -> tuple[int, int]:
    reach = [stride * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True)]
    start = array.data.ptr
    return start + sum(r for r in reach if r < 0), start + sum(
        r for r in reach if r > 0
    ) + array.dtype.itemsize
