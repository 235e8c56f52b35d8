"""The masks of a training step as each attention of transformers takes them, on the device of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omnicupy.masks.mask import Mask
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.bench.torch_inputs import library

FLEX, SDPA = "flex_attention", "sdpa"
SYSTEMS = (FLEX, OURS, SDPA)
Maker = Callable[[dict[str, Mask]], dict[str, Any]]


def maker(system: str, kinds: Sequence[str], tokens: int, device: str) -> Maker:
    """What makes the `attention_mask` of each kind of layer of new masks, which have one interval per key.

    system: one of SYSTEMS. Ours are masks as they are; FlexAttention's are block masks, made by its compiled
    create_block_mask on a GPU; SDPA's are booleans (1, 1, tokens, tokens). Raises ValueError for another system.
    """
    if system == OURS:
        return _ours(device)
    if system not in SYSTEMS:
        raise ValueError(f"bench step: the systems are {', '.join(SYSTEMS)}, got {system!r}")
    made = {kind: (_block_mask if system == FLEX else _dense)(Bounds(tokens, device)) for kind in kinds}
    return lambda masks: {kind: make(masks[kind]) for kind, make in made.items()}


def _ours(device: str) -> Maker:
    from omnicupy.transformers import attention_mask

    return lambda masks: {kind: attention_mask(mask, device=device) for kind, mask in masks.items()}


class Bounds:
    """The rows [start[k], stop[k]) that see key k, int32 (tokens,) each, in the same memory for every mask: functions
    that read them are compiled once.
    """

    def __init__(self, tokens: int, device: str) -> None:
        torch = library("torch")
        self.device, self.shape = device, (tokens, tokens)
        self.start, self.stop = (torch.zeros(tokens, dtype=torch.int32, device=device) for _ in range(2))

    def set(self, mask: Mask) -> None:
        """Those of a mask, copied behind what the device has to do. Raises ValueError where it has several intervals
        for a key, or another shape.
        """
        torch = library("torch")
        if mask.intervals is None or len(mask.intervals[0]) != 1 or mask.shape != self.shape:
            raise ValueError(f"bench step: expected a mask {self.shape} of one interval per key, got {mask}")
        for target, (bound,) in zip((self.start, self.stop), mask.intervals, strict=True):
            host = torch.from_numpy(bound.copy())
            target.copy_(host.pin_memory() if self.device == "cuda" else host, non_blocking=True)


def _block_mask(bounds: Bounds) -> Callable[[Mask], Any]:
    torch, module = library("torch"), library("torch.nn.attention.flex_attention")
    start, stop, (tokens, _) = bounds.start, bounds.stop, bounds.shape
    build = module.create_block_mask
    if bounds.device == "cuda":
        build = torch.compile(build)

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= start[k]) & (q < stop[k])

    def make(mask: Mask) -> Any:
        bounds.set(mask)
        return build(visible, None, None, tokens, tokens, device=bounds.device)

    return make


def _dense(bounds: Bounds) -> Callable[[Mask], Any]:
    rows = library("torch").arange(bounds.shape[0], dtype=bounds.start.dtype, device=bounds.device)[:, None]

    def make(mask: Mask) -> Any:
        bounds.set(mask)
        found = rows >= bounds.start
        found &= rows < bounds.stop
        return found[None, None]

    return make
