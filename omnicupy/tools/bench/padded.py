"""bench padded: what the host does for the mask of a step of decoding where prompts are padded on the left.

Every sequence of the batch then has a mask of its own, new at each step. Beside transformers' mask for torch's
attention: masks of the host, and on a Hopper GPU what takes their place there, which stays on the device.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omnicupy.tools.bench.generate import PADDING
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.torch_inputs import library

SUITE = "padded"
MASKS, SDPA = f"{OURS}:masks", "sdpa"
STEPS, WARM_UP, KEPT = 100, 10, 8  # KEPT: steps whose masks are counted in bytes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Batch:
    """tokens: of a prompt with its padding.  room: keys of a static cache, None for one that grows."""

    tokens: int = 2048
    room: int | None = None
    padding: tuple[int, ...] = PADDING

    @property
    def workload(self) -> str:
        """What a row of a record calls it."""
        cache = "a cache that grows" if self.room is None else f"a static cache for {self.room:,}"
        return f"the mask of a step, batch {len(self.padding)} from {self.tokens:,} tokens, {cache}"


BATCHES = (Batch(), Batch(room=2304))


def padded(record: Record, say: Say) -> None:
    """A row for each batch and way, on torch's GPU where it finds one. Raises ImportError without transformers."""
    device = "cuda" if library("torch").cuda.is_available() else "cpu"
    for batch in BATCHES:
        for system, figures in measure(batch, device).items():
            record.add(workload=batch.workload, system=system, figures=figures, **{"pass": "forward"})
            say(f"{batch.workload}: {system}: {figures}")


def measure(batch: Batch, device: str) -> dict[str, dict[str, Any]]:
    """Microseconds of the host a step and bytes that its mask keeps, by system."""
    torch = library("torch")
    ways = _ways(device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    took: dict[str, list[float]] = {system: [] for system in ways}
    with torch.no_grad():
        for turn in range(WARM_UP + STEPS):
            given = _given(batch, turn, device)
            for system, make in ways.items():
                wait()
                begin = time.perf_counter()
                make(given)
                if turn >= WARM_UP:
                    took[system].append(1e6 * (time.perf_counter() - begin))
        kept = {system: _kept_bytes(make, batch, device) for system, make in ways.items()}
    us = {system: statistics.median(of) for system, of in took.items()}
    return {
        system: {
            "host_us": round(us[system], 2),
            "least, us": round(min(took[system]), 2),
            "time over SDPA's mask": round(us[system] / us[SDPA], 3),
            "KB kept": round(kept[system] / 1e3, 2),
            "memory over SDPA's mask": round(kept[system] / kept[SDPA], 3),
        }
        for system in ways
    }


def _ways(device: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What makes the mask of a step, by system."""
    from omnicupy.transformers.masking import make_mask

    sdpa_mask = library("transformers.masking_utils").sdpa_mask
    no_skip = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    found: dict[str, Callable[[dict[str, Any]], Any]] = {}
    if device == "cuda":
        found[OURS] = lambda given: make_mask(**given, device=device)
    found[MASKS] = lambda given: make_mask(**given, device="cpu")
    found[SDPA] = lambda given: sdpa_mask(**given, device=library("torch").device(device), **no_skip)
    return found


def _given(batch: Batch, step: int, device: str) -> dict[str, Any]:
    """What transformers says of a step."""
    torch = library("torch")
    tokens = batch.tokens + 1 + step
    seen = torch.ones((len(batch.padding), tokens), dtype=torch.bool)
    for i, count in enumerate(batch.padding):
        seen[i, :count] = False
    sizes = {"batch_size": len(batch.padding), "q_length": 1, "kv_length": batch.room or tokens}
    return sizes | {"q_offset": tokens - 1, "attention_mask": seen.to(device)}


def _kept_bytes(make: Callable[[dict[str, Any]], Any], batch: Batch, device: str) -> float:
    """Bytes that a step's mask keeps, on the host and on the device: of steps that no mask was made for."""
    cuda = library("torch").cuda
    given = [_given(batch, WARM_UP + STEPS + step, device) for step in range(KEPT + 1)]
    kept = [make(given[KEPT])]
    gc.collect()
    tracemalloc.start()
    before = cuda.memory_allocated() if device == "cuda" else 0
    kept += [make(one) for one in given[:KEPT]]
    on_host = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    of_torch = cuda.memory_allocated() - before if device == "cuda" else sum(map(_storage, kept[1:]))
    return (on_host + of_torch) / KEPT


def _storage(mask: Any) -> int:
    """Bytes of a tensor's elements, which tracemalloc does not see; 0 for masks in a tensor's place."""
    return 0 if hasattr(mask, "held") else int(mask.untyped_storage().nbytes())
