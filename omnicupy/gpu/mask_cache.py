"""What a mask keeps for the GPU: device copies of its block lists, and the plans of calls with it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.masks.block_mask import BlockMask
from omnicupy.masks.mask import Mask
from omnicupy.schedule.block_lists import BlockLists, block_lists
from omnicupy.schedule.parts import Workers

Pack: TypeAlias = Callable[[Sequence[BlockMask], Workers], BlockLists]

MAX_STACKS = 32  # device copies of different batches that start with one mask
MAX_COPIES = (
    32  # of one mask or batch: for so many tile sizes, numbers of heads and devices; the oldest goes first
)


class DeviceCache:
    """What a mask or a batch of masks keeps for the GPU.

    blocks: by what packs them, device, br, bc and workers.  plans: those of gpu/attention.py and gpu/backward.py.
    """

    __slots__ = ("_others", "blocks", "plans")

    def __init__(self, others: Sequence[weakref.ref[Mask]] = ()) -> None:
        self.blocks: dict[tuple[Any, ...], DeviceBlocks] = {}
        self.plans: dict[Any, Any] = {}
        self._others = tuple(others)


def existing_cache(mask: Any) -> DeviceCache | None:
    """The cache of a mask or of a list of masks if there is one, None for what is neither; a cheap look-up, for the
    warm path. Raises AttributeError for a list of something else.
    """
    found: DeviceCache | None = None
    if isinstance(mask, Mask):
        found = mask._device.get(())
    elif isinstance(mask, (list, tuple)) and mask:
        found = mask[0]._device.get(() if len(mask) == 1 else tuple(map(id, mask)))
    return found


def cache_for(masks: Sequence[Mask]) -> DeviceCache:
    """The cache of one mask (kept on it), or of a batch (kept on its first mask until any is dropped)."""
    first = masks[0]
    if len(masks) == 1:
        only: DeviceCache = first._device.setdefault((), DeviceCache())
        return only
    key = tuple(map(id, masks))
    found: DeviceCache | None = first._device.get(key)
    if found is None:
        # Weak, so that a batch keeps none of its masks alive; an id is not used again before its entry is
        # gone.
        owner = weakref.ref(first)
        # At exit this module's names may be gone already: the callback holds what it calls.
        forget = partial(_forget, owner, key)
        others = [weakref.ref(m, forget) for m in masks if m is not first]
        stacks = [k for k in list(first._device) if k]
        for old in stacks[: max(0, len(stacks) - MAX_STACKS + 1)]:
            first._device.pop(old, None)
        found = first._device.setdefault(key, DeviceCache(others))
    return found


def device_blocks(
    masks: Sequence[Mask], tile: tuple[int, int], workers: Workers, device: int, pack: Pack = block_lists
) -> DeviceBlocks:
    """The device copy of one mask, or of one per batch element, cut at tile = (br, bc). `device` must be current.

    workers: who works on it.  pack: makes the lists of the cuts.  Raises UnsupportedError when it has to be made while
    the stream is captured.
    """
    blocks = cache_for(masks).blocks
    key = (pack, device, *tile, workers)
    found = blocks.get(key)
    if found is None:
        found = DeviceBlocks(pack([mask.blocks(*tile) for mask in masks], workers), device)
        keep_few(cache_for(masks))
        found = blocks.setdefault(key, found)
    return found


def keep_few(kept: DeviceCache) -> None:
    """Make room for a copy: without the oldest ones, and without the plans that would keep them."""
    while len(kept.blocks) >= MAX_COPIES:
        oldest = kept.blocks.pop(next(iter(kept.blocks)))
        for key in [key for key, plan in list(kept.plans.items()) if plan.reads(oldest)]:
            kept.plans.pop(key, None)


def _forget(owner: weakref.ref[Mask], key: tuple[int, ...], _: object = None) -> None:
    first = owner()
    if first is not None:
        first._device.pop(key, None)
