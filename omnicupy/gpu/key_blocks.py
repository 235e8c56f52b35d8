"""Device copies of block lists by blocks of keys: kept as those by blocks of queries are (mask_cache.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.gpu.mask_cache import cache_for, keep_few
from omnicupy.masks.mask import Mask
from omnicupy.masks.transpose import KeyBlocks
from omnicupy.schedule.block_lists import BlockLists
from omnicupy.schedule.parts import Workers


def device_key_blocks(
    masks: Sequence[Mask],
    tile: tuple[int, int],
    workers: Workers,
    device: int,
    pack: Callable[[Sequence[KeyBlocks], Workers], BlockLists],
) -> DeviceBlocks:
    """As mask_cache.device_blocks, by blocks of keys."""
    cache, key = cache_for(masks), (pack, device, *tile, workers)
    found = cache.blocks.get(key)
    if found is None:
        found = DeviceBlocks(pack([mask.key_blocks(*tile) for mask in masks], workers), device)
        keep_few(cache)
        found = cache.blocks.setdefault(key, found)
    return found
