"""append() on device arrays: one launch, planned once for shapes and strides."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from numbers import Real
from typing import Any, TypeAlias

import cupy
import numpy as np

from omnicupy.call import check, check_append, check_fp8
from omnicupy.call.arrays import DTYPE_NAMES
from omnicupy.gpu import pages
from omnicupy.gpu.device import device_info
from omnicupy.gpu.modules import kernel
from omnicupy.gpu.ranges import byte_range, meeting
from omnicupy.gpu.streams import on_device
from omnicupy.jit import archs, cache
from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.params import PARAMS
from omnicupy.serving.caches import CACHES, AnyKV, pools_of, scale_addresses, scales_key

MAX_PLANS = 256  # shapes and strides; the oldest goes first
MAX_APART = 256  # distances at which arrays were found apart that a pair of them keeps
_POINTERS = struct.Struct("<7Q")  # the first fields of AppendParams
_SCALES = struct.Struct("<2Q")  # neighbours too
_NAMES = (
    "k_new",
    "v_new",
    "k",
    "v",
    "lengths",
    "page_table",
    "slots",
    "k_scale",
    "v_scale",
)  # in an Addresses
Addresses: TypeAlias = tuple[int, int, int, int, int, int, int, int, int]  # 0 for what is not given
_plans: dict[Any, _AppendPlan] = {}


class _AppendPlan:
    """A launch, ready but for addresses. device: which runs it."""

    __slots__ = ("_function", "_grid", "_near", "_scales_at", "_slot_bytes", "_template", "device")

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
        self._slot_bytes = 4 if slots is None else slots.dtype.itemsize
        self._near: list[tuple[int, int, int, int, set[int]]] = [
            (*pair, set()) for pair in _near(kv, k_new, v_new)
        ]

    def fits(self, at: Addresses) -> bool:
        """What an equal key leaves open: where arrays begin, aligned and what is written apart from the rest. False:
        check all.
        """
        k_new, v_new, k, v, lengths, table, slots, k_scale, v_scale = at
        if (k_new | v_new | k | v) % check.ALIGN_BYTES or (lengths | table | k_scale | v_scale) % 4:
            return False
        if slots % self._slot_bytes:
            return False
        for one, other, low, high, apart in self._near:
            if low < at[one] - at[other] < high and at[one] - at[other] not in apart:
                return False
        return True

    def note(self, at: Addresses) -> None:
        """All checks have passed: arrays at such distances are apart, as keys and values of one page are."""
        for one, other, low, high, apart in self._near:
            if low < at[one] - at[other] < high:
                if len(apart) >= MAX_APART:
                    apart.clear()
                apart.add(at[one] - at[other])

    def launch(self, at: Addresses, stream: Any) -> None:
        """Run on `stream`, of the plan's device, which is current."""
        argument = bytearray(self._template)
        _POINTERS.pack_into(argument, 0, *at[:7])
        if self._scales_at is not None:
            _SCALES.pack_into(argument, self._scales_at, *at[7:])
        self._function(self._grid, (AppendSpec(arch="sm_80").threads, 1, 1), (argument,), 0, stream)


def append(kv: AnyKV, k_new: Any, v_new: Any, slots: Any, stream: Any = None) -> None:
    """omnicupy.append on device arrays. stream: None for CuPy's current one."""
    if not isinstance(kv, CACHES):
        check_append.call(kv, k_new, v_new, slots)
    k, v, table = pools_of(kv)
    lengths = kv.lengths
    found = key = None
    try:
        key = (
            (_key_of(k_new), _key_of(v_new), _key_of(k), _key_of(v), _key_of(lengths)),
            None if table is None else _key_of(table),
            None if slots is None else _key_of(slots),
            scales_key(kv, _key_of),
            cache.epoch,
        )
        at = _addresses(kv, k_new, v_new, slots)
        found = _plans.get(key)
    except (AttributeError, TypeError):  # no device arrays: the checks say so
        pass
    if found is None or not found.fits(at):
        call = check_append.call(kv, k_new, v_new, slots)
        found = found or _AppendPlan(call, kv, (k_new, v_new, slots))
        at = _addresses(kv, k_new, v_new, slots)
        found.note(at)
        while len(_plans) >= MAX_PLANS:
            _plans.pop(next(iter(_plans)), None)
        _plans[key] = found
    on_device(found.device, _launched, found, at, stream)


def _launched(plan: _AppendPlan, at: Addresses, stream: Any) -> None:
    plan.launch(at, cupy.cuda.get_current_stream(plan.device) if stream is None else stream)


def _key_of(array: Any) -> Any:
    return array.shape, array.strides, array.dtype, array.data.device_id


def _address(array: Any) -> int:
    """0 for None."""
    return 0 if array is None else int(array.data.ptr)


def _addresses(kv: AnyKV, k_new: Any, v_new: Any, slots: Any) -> Addresses:
    k, v, table = pools_of(kv)
    return (
        *(k_new.data.ptr, v_new.data.ptr, k.data.ptr, v.data.ptr, kv.lengths.data.ptr),
        *(_address(table), _address(slots)),
        *scale_addresses(kv, _address),
    )


def _near(kv: AnyKV, k_new: Any, v_new: Any) -> Iterator[tuple[int, int, int, int]]:
    """Two arrays each that must be apart, by their places in an Addresses, and between which distances of the first
    from the second their bytes meet.
    """
    k, v, _ = pools_of(kv)
    read = {"k_new": k_new, "v_new": v_new}
    written = {"k": k, "v": v}
    for name in ("k_scale", "v_scale"):
        scale = getattr(kv, name)
        if check_fp8.has_token_scales(scale):
            written[name] = scale
        elif scale is not None and not isinstance(scale, Real):
            read[name] = scale
    ranges = {
        name: byte_range((one.shape, one.strides), one.dtype.itemsize)
        for name, one in (read | written).items()
    }
    pairs = [*itertools.product(read, written), *itertools.combinations(written, 2)]
    for one, other in pairs:
        yield _NAMES.index(one), _NAMES.index(other), *meeting(ranges[one], ranges[other])


def _steps(array: Any, by_slots: bool) -> list[int]:
    """Strides of a batch, a head and a token, in elements. by_slots: of (tokens, heads, head_dim)."""
    if by_slots:
        token, head, _ = array.strides
        steps = [0, head, token]
    else:
        steps = list(array.strides[:3])
    return [step // array.dtype.itemsize for step in steps]
