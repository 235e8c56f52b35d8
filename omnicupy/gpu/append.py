"""append() on device arrays: one launch, planned once for shapes and strides."""

from __future__ import annotations

import struct
from typing import Any

import cupy
import numpy as np

from omnicupy.call import check, check_append
from omnicupy.call.arrays import DTYPE_NAMES
from omnicupy.gpu import pages
from omnicupy.gpu.device import device_info
from omnicupy.gpu.modules import kernel
from omnicupy.gpu.streams import on_device
from omnicupy.jit import archs, cache
from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.params import PARAMS
from omnicupy.serving.caches import CACHES, AnyKV, pools_of

MAX_PLANS = 256  # shapes and strides; the oldest goes first
_POINTERS = struct.Struct("<7Q")  # the first fields of AppendParams
_SCALES = struct.Struct("<2Q")  # neighbours too
_plans: dict[Any, _AppendPlan] = {}


class _AppendPlan:
    """A launch, ready but for addresses. device: which runs it."""

    __slots__ = ("_function", "_grid", "_scales_at", "_template", "device")

    def __init__(self, call: check_append.AppendCall, kv: AnyKV, new: tuple[Any, Any, Any]) -> None:
        k_new, v_new, slots = new
        self.device = k_new.data.device_id
        info = device_info(self.device)
        spec = AppendSpec(arch=archs.arch_of(info.major, info.minor))
        if call.fp8:
            spec = Fp8AppendSpec(arch=spec.arch, dtype=DTYPE_NAMES[k_new.dtype])
        with cupy.cuda.Device(self.device):
            self._function = kernel(spec, self.device).function
        record = np.zeros(1, PARAMS[spec.params])
        self._scales_at = record.dtype.fields["k_scale"][1] if call.fp8 else None  # type: ignore[index]
        of_pages = pages.fields_of(kv) or {"pages": call.pages, "page_size": call.page_size}
        sizes = {
            name: getattr(call, name)
            for name in ("batch", "kv_heads", "tokens", "head_dim", "value_dim", "capacity")
        }
        wide = slots is not None and slots.dtype.itemsize == 8
        of_scales = pages.scale_fields(kv) if call.fp8 else {}
        for name, value in {**of_pages, **sizes, **of_scales, "wide_slots": wide}.items():
            record[name] = value
        k, v = pages.tensors_of(kv)
        for name, array in (("k_new", k_new), ("v_new", v_new), ("k", k), ("v", v)):
            record[f"{name}_strides"] = _steps(array, slots is not None and name.endswith("_new"))
        self._template = record.tobytes()
        chunks = call.batch * call.tokens * call.kv_heads * (max(call.head_dim, call.value_dim) // 8)
        self._grid = (-(-chunks // AppendSpec(arch="sm_80").threads), 1, 1)

    def launch(self, addresses: tuple[int, ...], scales: tuple[int, int], stream: Any) -> None:
        """Run on `stream`, of the plan's device, which is current. addresses: as AppendParams has them.  scales: those
        of keys and of values.
        """
        argument = bytearray(self._template)
        _POINTERS.pack_into(argument, 0, *addresses)
        if self._scales_at is not None:
            _SCALES.pack_into(argument, self._scales_at, *scales)
        self._function(self._grid, (AppendSpec(arch="sm_80").threads, 1, 1), (argument,), 0, stream)


def append(kv: AnyKV, k_new: Any, v_new: Any, slots: Any, stream: Any = None) -> None:
    """omnicupy.append on device arrays. stream: None for CuPy's current one."""
    if not isinstance(kv, CACHES):
        check_append.call(kv, k_new, v_new, slots)
    k, v, table = pools_of(kv)
    arrays = (k_new, v_new, k, v, kv.lengths, table, slots)
    found = key = None
    try:
        key = (
            tuple(
                None if one is None else (one.shape, one.strides, one.dtype, one.data.device_id)
                for one in arrays
            ),
            pages.scales_key(kv),
            cache.epoch,
        )
        scales = pages.scale_addresses(kv)
        addresses = tuple(0 if one is None else one.data.ptr for one in arrays)
        found = _plans.get(key)
    except (AttributeError, TypeError):  # no device arrays: the checks say so
        pass
    if found is None or _must_check(found, addresses):
        call = check_append.call(kv, k_new, v_new, slots)
        found = found or _AppendPlan(call, kv, (k_new, v_new, slots))
        scales = pages.scale_addresses(kv)
        while len(_plans) >= MAX_PLANS:
            _plans.pop(next(iter(_plans)), None)
        _plans[key] = found
    on_device(found.device, _launched, found, (addresses, scales), stream)


def _must_check(plan: _AppendPlan, addresses: tuple[int, ...]) -> bool:
    """What an equal key leaves open: where arrays begin. Overlaps are looked for where a layout is new."""
    k_new, v_new, k, v, lengths, table, slots = addresses
    return bool((k_new | v_new | k | v) % check.ALIGN_BYTES or (lengths | table | slots) % 4)


def _launched(plan: _AppendPlan, at: tuple[tuple[int, ...], tuple[int, int]], stream: Any) -> None:
    plan.launch(*at, cupy.cuda.get_current_stream(plan.device) if stream is None else stream)


def _steps(array: Any, by_slots: bool) -> list[int]:
    """Strides of a batch, a head and a token, in elements. by_slots: of (tokens, heads, head_dim)."""
    if by_slots:
        token, head, _ = array.strides
        steps = [0, head, token]
    else:
        steps = list(array.strides[:3])
    return [step // array.dtype.itemsize for step in steps]
