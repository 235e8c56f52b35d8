"""Which kernels calls would load on a device: its planning without its memory, and without a launch."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from omnicupy.call import check, check_append, check_backward, check_cached
from omnicupy.call.arrays import DeviceArray
from omnicupy.gpu import append as gpu_append
from omnicupy.gpu import backward, backward_planning, cached_planning, planning
from omnicupy.gpu.device import DeviceInfo
from omnicupy.jit.spec import KernelSpec
from omnicupy.serving.caches import CACHES, pools_of, with_arrays

LARGE = 1 << 28  # elements
_OPTIONS = dict.fromkeys(("scale", "sink_logits", "softcap", "out", "config", "split"))
_OF_ROWS = dict.fromkeys(("rows", "max_rows"))


class _AskedError(Exception):
    """Planning has asked for its last kernel."""


@dataclass(frozen=True)
class _Step:
    """What `plan` gives. Calls behind it run what it was planned for."""


class Asked:
    """Stands in for attention, attention_backward, plan and append on arrays of NumPy, and writes nothing to them.

    specs: the kernels that calls would have loaded.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, info: DeviceInfo) -> None:
        self.specs: set[KernelSpec] = set()
        self._planned: set[Any] = set()
        self._left = 0
        for module in (planning, cached_planning, gpu_append):
            monkeypatch.setattr(module, "kernel", self._kernel)
        for module in (planning, cached_planning, backward_planning, gpu_append):
            monkeypatch.setattr(module, "device_info", lambda device: info)
        fake = SimpleNamespace(cuda=SimpleNamespace(Device=lambda device: nullcontext()))
        monkeypatch.setattr(gpu_append, "cupy", fake)
        # A backward pass asks for one kernel after the other; what it makes of each is not looked at.
        monkeypatch.setattr(
            backward_planning, "_launch", lambda on, part, *_, **options: self.specs.add(part)
        )
        monkeypatch.setattr(backward_planning._Setting, "blocks", lambda setting, part: None)
        monkeypatch.setattr(backward_planning, "_space", lambda *_: None)
        # Which of two forms is up to the lists, which are not made.
        monkeypatch.setattr(
            backward_planning,
            "_prepares",
            lambda call, grid, *_: grid.kernel.finishes == "background" and not call.has_sink,
        )
        monkeypatch.setattr(backward_planning, "_read_layouts", lambda layouts, space: layouts)
        monkeypatch.setattr(backward_planning, "BackwardPlan", lambda *_: None)

    def serve(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """Take the place of what modules call."""
        for module in modules:
            for function in (self.attention, self.attention_backward, self.plan, self.append):
                if hasattr(module, function.__name__):
                    monkeypatch.setattr(module, function.__name__, function)

    def take(self) -> set[KernelSpec]:
        """The kernels so far, which are then forgotten."""
        found, self.specs = self.specs, set()
        self._planned.clear()
        return found

    def attention(self, q: Any, k: Any, v: Any = None, mask: Any = None, **options: Any) -> Any:
        return_lse = options.pop("return_lse", False)
        if isinstance(k, CACHES):
            v = pools_of(k)[1]
            if not isinstance(mask, _Step):
                self._plan_cached(q, k, mask, options)
        else:
            self._plan_plain(q, k, v, mask, options)
        out = options.get("out")
        if out is None:
            # NaN, as given ones are left; a broadcast one, as some cases have more elements than there is memory.
            out = np.broadcast_to(np.array(np.nan, q.dtype), (*q.shape[:-1], v.shape[-1]))
            out = out if out.size > LARGE else out.copy()
        lse = np.zeros(q.shape[:3] if q.ndim == 4 else q.shape[1::-1], np.float32)
        return (out, lse) if return_lse else out

    def attention_backward(self, *arrays: Any, mask: Any = None, **options: Any) -> Any:
        arrays, mask = arrays[:6], arrays[6] if len(arrays) > 6 else mask
        if self._is_new("backward", arrays, mask, options):
            moved = tuple(map(_moved, arrays))
            on_device = {name: _moved(value) for name, value in options.items()}
            call = check_backward.call(*moved, mask=mask, **on_device)
            layouts = backward._layouts(moved, on_device)
            deterministic = options.get("deterministic", True)
            backward_planning.new_plan(call, layouts, 0, options.get("config"), deterministic=deterministic)
        wanted = options.get("wanted", ("q", "k", "v"))
        targets = options.get("out_grads") or (None, None, None)
        found = [
            None if name not in wanted else np.zeros(like.shape, like.dtype) if to is None else to
            for name, like, to in zip("qkv", arrays[1:4], targets, strict=True)
        ]
        return (*found, np.zeros_like(options["sink_logits"])) if "sink_logits" in wanted else tuple(found)

    def plan(self, q: Any, kv: Any, mask: Any, **options: Any) -> Any:
        self._plan_cached(q, kv, mask, options)
        return _Step()

    def append(self, kv: Any, k_new: Any, v_new: Any, slots: Any = None) -> None:
        of_device = _moved_cache(kv), *map(_moved, (k_new, v_new, slots))
        call = check_append.call(*of_device)
        self._left = 2
        gpu_append._AppendPlan(call, of_device[0], of_device[1:])

    def _plan_plain(self, q: Any, k: Any, v: Any, mask: Any, options: dict[str, Any]) -> None:
        if not self._is_new("plain", (q, k, v), mask, options):
            return
        given = {name: _moved(value) for name, value in {**_OPTIONS, **options}.items()}
        arrays = *map(_moved, (q, k, v)), given["out"]
        call = check.call(*arrays[:3], mask, **given)
        self._left = 1
        with suppress(_AskedError):
            planning.new_plan(call, arrays, given["config"])

    def _plan_cached(self, q: Any, kv: Any, mask: Any, options: dict[str, Any]) -> None:
        if not self._is_new(f"cached {id(kv)}", (q,), mask, options):
            return
        given = {name: _moved(value) for name, value in {**_OPTIONS, **_OF_ROWS, **options}.items()}
        of_q, moved = _moved(q), _moved_cache(kv)
        call = check_cached.call(of_q, moved, None, mask, **given)
        self._left = 2
        with suppress(_AskedError):
            cached_planning.new_plan(call, of_q, moved, given["out"], config=given["config"], stream=None)

    def _is_new(self, kind: str, arrays: tuple[Any, ...], mask: Any, options: dict[str, Any]) -> bool:
        """False where such a call was planned since `take`."""
        masks = tuple(map(id, mask)) if isinstance(mask, list) else id(mask)
        known = {name: _layout(value) for name, value in options.items()}
        key = (kind, *map(_layout, arrays), masks, repr(sorted(known.items())))
        if key in self._planned:
            return False
        self._planned.add(key)
        return True

    def _kernel(self, spec: KernelSpec, device: int) -> Any:
        self.specs.add(spec)
        self._left -= 1
        if not self._left:
            raise _AskedError
        return SimpleNamespace(function=None)


def _layout(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_layout, value))
    return (value.shape, value.strides, str(value.dtype)) if isinstance(value, np.ndarray) else value


def _moved(value: Any) -> Any:
    """An array as one of a device; anything else as it is."""
    if isinstance(value, (tuple, list)) and any(isinstance(one, np.ndarray) for one in value):
        return tuple(map(_moved, value))
    if not isinstance(value, np.ndarray):
        return value
    return DeviceArray(value.dtype, value.ctypes.data, 0, value.shape, value.strides)


def _moved_cache(kv: Any) -> Any:
    k, v, table = pools_of(kv)
    scales = _moved(kv.k_scale), _moved(kv.v_scale)
    return with_arrays(kv, (_moved(k), _moved(v)), _moved(table), _moved(kv.lengths), scales)
