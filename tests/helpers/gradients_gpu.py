"""Calls of attention_backward on a device, with what they should give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import omnicupy as oc
from omnicupy.choose import backward_table
from omnicupy.gpu import stream_memory, workspace
from omnicupy.gpu.backward_plan import BackwardPlan, Launch
from omnicupy.gpu.mask_cache import existing_cache
from omnicupy.gpu.workspace import Need
from omnicupy.jit import archs
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import round_up

NAN = 0x7E00  # bits of a float16


def launches_of(mask: Any) -> list[Launch]:
    """Those of all backward passes that were planned for a mask, and for masks that are given with it."""
    cache = existing_cache(mask)
    assert cache is not None
    plans = [plan for plan in cache.plans.values() if isinstance(plan, BackwardPlan)]
    return [launch for plan in plans for launch in plan._launches]


def field_of(launch: Launch, name: str) -> int:
    """A number in the parameter struct of a launch."""
    return int(np.frombuffer(launch.template, PARAMS[launch.kernel.params])[name][0])


class Gradients:
    """Arrays of a forward and a backward pass in float16, made on the current stream, which is waited for."""

    def __init__(self, cupy: Any, mask: Any, shape: Any, kv_heads: int | None = None, seed: int = 0) -> None:
        self.cupy, self.mask = cupy, mask
        batch, heads, _, head_dim = shape
        k_len = (mask[0] if isinstance(mask, (list, tuple)) else mask).shape[1]
        rng = np.random.default_rng(seed)
        of_keys = (batch, kv_heads or heads, k_len, head_dim)
        self.q, self.k, self.v, self.dout = (
            cupy.asarray(rng.standard_normal(one, np.float32).astype(np.float16))
            for one in (shape, of_keys, of_keys, shape)
        )
        self.out, self.lse = oc.attention(self.q, self.k, self.v, mask, return_lse=True)
        cupy.cuda.Device().synchronize()

    @property
    def arrays(self) -> tuple[Any, ...]:
        """In the order of attention_backward."""
        return self.dout, self.q, self.k, self.v, self.out, self.lse

    def run(self, **options: Any) -> Any:
        return oc.attention_backward(*self.arrays, self.mask, **options)

    def targets(self) -> tuple[Any, Any, Any]:
        """For out_grads, full of NaN."""
        dq, dk, dv = (self.cupy.full(x.shape, np.nan, x.dtype) for x in (self.q, self.k, self.v))
        return dq, dk, dv

    def check(self, made: Any) -> None:
        """Near what the CPU engine makes of the same arrays; the error budget proper has tests of its own."""
        host = [self.cupy.asnumpy(array) for array in self.arrays]
        for name, array, right in zip(
            ("dq", "dk", "dv"), made, oc.attention_backward(*host, self.mask), strict=True
        ):
            largest = float(np.abs(right.astype(np.float32)).max())
            np.testing.assert_allclose(
                self.cupy.asnumpy(array).astype(np.float32),
                right.astype(np.float32),
                atol=0.02 * max(1.0, largest),
                err_msg=name,
            )


def bits(cupy: Any, made: Any) -> bytes:
    """Of all gradients, which are waited for: NaN equals itself in them."""
    return b"".join(cupy.asnumpy(array).tobytes() for array in made)


def config_of(cupy: Any, kernel: str, head_dim: int) -> BackwardSpec | None:
    """The kernels of that name for the current device, None where it has none."""
    capability = cupy.cuda.Device().compute_capability
    arch = archs.arch_of(int(capability[:-1]), int(capability[-1]))
    padded = round_up(head_dim, 16)
    if kernel == "naive":
        return backward_table.naive(arch, "float16", padded)
    for row in backward_table.TABLE:
        if row.kernel == kernel and row.serves(arch, padded):
            return row.spec(arch, "float16", padded)
    return None


def one_or_two_kernels(cupy: Any, count: int, head_dim: int) -> BackwardSpec | None:
    """What makes all gradients on the current device: one kernel in one order (None without one), or two, one for dQ
    and one for dK and dV.
    """
    config = config_of(cupy, "sm90", head_dim) or config_of(cupy, "sm80", head_dim)
    assert config is not None
    if count == 2:
        return replace(config, ordered=None)
    return config if config.ordered is not None else None


def counters_of(cupy: Any, stream: Any) -> list[int]:
    """The work counters and counters of arrivals of a stream, zero between launches."""
    memory = stream_memory.memory_of(int(cupy.cuda.Device().id), stream)
    space = memory.workspace(Need(0, 0))
    found: list[int] = []
    for address, size in (
        (memory.counters, workspace.COUNTER_BYTES),
        (space.arrivals, 4 * space.need.arrivals),
    ):
        owner = cupy.cuda.UnownedMemory(address, size, None)
        view = cupy.ndarray((size // 4,), np.int32, cupy.cuda.MemoryPointer(owner, 0))
        found += cupy.asnumpy(view).tolist()
    return found


def poison_work_memory(cupy: Any, mask: Any) -> None:
    """Leave ones in what a backward pass with this mask has for work memory on the current stream: what CuPy's pool
    hands out next, or what stays with the stream.
    """
    kept = existing_cache(mask)
    assert kept is not None
    plans = [plan for plan in kept.plans.values() if isinstance(plan, BackwardPlan)]
    assert plans
    for plan in plans:
        stream = cupy.cuda.get_current_stream()
        if plan.scratch_bytes:
            cupy.full(plan.scratch_bytes, 255, np.uint8)
        else:
            own = stream_memory.memory_of(plan.device, stream).workspace(plan.need)
            cupy.cuda.runtime.memsetAsync(own.partials, 255, own.need.partial_bytes, stream.ptr)
