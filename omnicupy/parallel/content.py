"""What a mask allows, as a digest: ranks compare their plans by it."""

from __future__ import annotations

import hashlib

import numpy as np

from omnicupy.parallel.seen import Shown


def content_of(shown: Shown) -> bytes:
    """What two masks in one form share only if they allow the same pairs."""
    mask = shown.mask
    found = hashlib.sha256(repr(mask.shape).encode())
    if shown.few is not None:
        parts = [np.ascontiguousarray(part, "<i8") for part in shown.few.content()]
    elif mask.intervals is not None:
        parts = [np.ascontiguousarray(side, "<i4") for side in mask.intervals]
    elif mask.bits is not None:
        parts = [mask.bits]
    else:
        assert mask.tiles is not None
        content = mask.tiles.content()
        parts = [
            np.ascontiguousarray(part) for part in (*content["bounds"], content["offsets"], content["keys"])
        ]
        if content["inner"] is not None:
            found.update(content_of(Shown.of(content["inner"])))
    for part in parts:
        found.update(repr((part.shape, part.dtype.str)).encode() + part.tobytes())
    return found.digest()
