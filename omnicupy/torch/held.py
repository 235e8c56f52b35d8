"""Masks that a graph of torch names by number, kept until its backward pass has run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from omnicupy.masks.mask import Mask

# The last masks that calls with gradients used inside graphs. They serve where lse itself is gone before the backward
# pass: activation checkpointing inside a graph makes it anew, offloading and CUDA graphs copy it.
MAX_HELD = 64
_latest: dict[int, Mask] = {}
_lock = threading.Lock()


def hold(masks: Mask | Sequence[Mask] | None, lse: Any) -> None:
    """Keep the masks of a call as long as the memory of its lse, which the backward pass reads, and among the last."""
    if masks is not None:
        masks = (masks,) if isinstance(masks, Mask) else tuple(masks)
        # The storage, since the same memory comes back as another tensor.
        lse.untyped_storage()._omnicupy_masks = masks
        keep(masks)


def keep(masks: Sequence[Mask]) -> None:
    """Keep masks among the last."""
    with _lock:
        for mask in masks:
            _latest.pop(mask.handle, None)
            _latest[mask.handle] = mask
        while len(_latest) > MAX_HELD:
            del _latest[next(iter(_latest))]


def held(lse: Any) -> Any:
    """The masks that `hold` keeps with this lse, a tuple; None where its elements lie elsewhere by now."""
    return getattr(lse.untyped_storage(), "_omnicupy_masks", None)
