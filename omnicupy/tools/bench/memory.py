"""Device memory of a call and of the mask object that it needs, for us and for rivals."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

from omnicupy.api import attention
from omnicupy.masks.mask import Mask
from omnicupy.tools.bench import torch_inputs
from omnicupy.tools.bench.gradients import PASSES, Gradients, Pass
from omnicupy.tools.bench.measure import Session, make_inputs, reason, rounded
from omnicupy.tools.bench.peers import prepare
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.torch_inputs import Shared
from omnicupy.tools.random_arrays import DTYPES, random_bits
from omnicupy.tools.workloads.workload import Workload


def measure(session: Session, workload: Workload, systems: Sequence[str]) -> None:
    """Add each system's device memory to the record, in bytes and beside q, k and v.

    output_bytes: of the result, of a backward pass dq, dk and dv.  call_bytes: the most that a warm call holds at
    once, its result left out.  first_bytes: the same of making the mask object and the first call.  kept_bytes: what
    the mask object keeps, of a rival's backward pass also what its forward pass saved. All are what the library's own
    allocator hands out; taken_bytes is how much less memory the device has free after the first call, with what the
    allocators keep for themselves.
    """
    mask = workload.mask()
    arrays = make_inputs(workload, mask, session.dtype)
    for name in systems:
        try:
            if name.partition(":")[0] == OURS:
                figures = _ours(session, workload, arrays)
            else:
                shared = Shared(workload, mask, arrays, _dout(session, arrays))
                figures = _theirs(name, shared, session.limit_s, session.timed)
        except Exception as error:  # whatever a library raises is its result here
            figures = {"problem": reason(error)}
        row = {"workload": workload.name, "system": name, "pass": session.timed.name}
        session.record.add(**row, figures=rounded(figures))
        session.say(f"{workload.name}: {name}: {', '.join(f'{k} {v}' for k, v in figures.items())}")


class Peak:
    """The most bytes that are held at once, of those taken after it was made."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.most = 0

    def take(self, block: int, size: int) -> None:
        """A block of `size` bytes is handed out."""
        self.held[block] = size
        self.most = max(self.most, sum(self.held.values()))

    def give(self, block: int) -> None:
        """A block comes back; one that was handed out before is no matter."""
        self.held.pop(block, None)


def _ours(session: Session, workload: Workload, arrays: tuple[Any, Any, Any]) -> dict[str, Any]:
    import cupy

    device = cupy.cuda.Device()
    made = (
        Gradients(workload, workload.mask(), arrays, session.dtype) if session.timed.has_gradients else None
    )

    def call(mask: Mask) -> None:
        if made:
            made.call(session.timed, mask, None)()
        else:
            attention(*arrays, mask)
        device.synchronize()

    call(workload.mask())  # loads the kernels
    mask = workload.mask()
    free = _free_after_emptying()
    first = _peak_of_cupy(lambda: call(mask))
    taken = free - int(device.mem_info[0])
    warm = _peak_of_cupy(lambda: call(mask))
    return _figures(_output_bytes(session.timed, *arrays), warm, first, _kept_by(mask), taken)


def _theirs(name: str, shared: Shared, limit_s: float, timed: Pass = PASSES["fwd"]) -> dict[str, Any]:
    torch = torch_inputs.library("torch")
    shared.bshd  # noqa: B018 - copies of the inputs in another layout are inputs, not memory of the call
    free, before = _free_after_emptying(), int(torch.cuda.memory_allocated())
    peer, first = _peak_of_torch(lambda: prepare(name, shared, limit_s, timed))
    taken = free - int(torch.cuda.mem_get_info()[0])
    gc.collect()
    kept = int(torch.cuda.memory_allocated()) - before
    inputs = (shared.q, shared.k, shared.v) if timed.has_gradients else (shared.q,)
    output = _output_bytes(timed, *inputs)
    return _figures(output, _peak_of_torch(peer.call)[1], first, kept, taken)


def _output_bytes(timed: Pass, *inputs: Any) -> int:
    """Bytes of the result of a pass on q, k and v: like q, or like all three."""
    return sum(int(array.nbytes) for array in (inputs if timed.has_gradients else inputs[:1]))


def _dout(session: Session, arrays: tuple[Any, Any, Any]) -> Any:
    """A gradient of the output for rivals; None where the pass makes none."""
    if not session.timed.has_gradients:
        return None
    import cupy

    return random_bits(arrays[0].shape, 4, session.dtype, 1.0, cupy).view(DTYPES[session.dtype])


def _figures(output: int, warm: int, first: int, kept: int, taken: int) -> dict[str, Any]:
    return {
        "output_bytes": output,
        "call_bytes": warm - output,
        "first_bytes": first - output,
        "kept_bytes": kept,
        "taken_bytes": taken,
    }


def _peak_of_cupy(call: Callable[[], Any]) -> int:
    import cupy

    peak = Peak()

    class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]
        name = "peak"

        def malloc_postprocess(self, **event: int) -> None:
            peak.take(event["pmem_id"], event["mem_size"])

        def free_postprocess(self, **event: int) -> None:
            peak.give(event["pmem_id"])

    with Hook():
        call()
    return peak.most


def _peak_of_torch(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and the most bytes of torch's that it held at once."""
    torch = torch_inputs.library("torch")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = int(torch.cuda.memory_allocated())
    found = call()
    torch.cuda.synchronize()
    return found, int(torch.cuda.max_memory_allocated()) - before


def _free_after_emptying() -> int:
    """Bytes free on the device once no allocator keeps any for itself."""
    import cupy

    gc.collect()
    torch_inputs.free_memory()
    return int(cupy.cuda.Device().mem_info[0])


def _kept_by(mask: Mask) -> int:
    """Bytes of a mask's device copies."""
    from omnicupy.gpu.mask_cache import existing_cache

    found = existing_cache(mask)
    return sum(blocks.nbytes for blocks in found.blocks.values()) if found else 0
