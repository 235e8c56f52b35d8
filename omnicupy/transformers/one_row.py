"""Masks of a single row for each batch element, as a step of decoding has them: rules read as rows of booleans, for all
elements at once. Each step asks for new ones, padded batches for one an element.
"""

from __future__ import annotations

import operator
from functools import lru_cache, reduce

import numpy as np

from omnicupy.masks.intervals import BoolArray, IntArray
from omnicupy.masks.mask import Mask
from omnicupy.transformers import rules
from omnicupy.transformers.kept import MAX_KEPT, kept
from omnicupy.transformers.rules import Band, Chunks, Joined, Keys, Rule, View


def masks_of(rule: Rule, view: View, batch: int) -> tuple[Mask, ...]:
    """What rules.masks_of gives, kept: equal masks of later calls are the same objects."""
    seen = _seen(rule, view, batch) if view.q_len == 1 else None
    if seen is None:
        return tuple(kept(mask) for mask in rules.masks_of(rule, view, batch))
    return of_seen(seen, view.q0 - view.k0)


def of_seen(seen: BoolArray, diagonal: int) -> tuple[Mask, ...]:
    """Masks of the rows (1 or batch, keys): one for all batch elements where they are equal. diagonal: as of a Mask."""
    if len(seen) > 1 and (seen == seen[0]).all():
        seen = seen[:1]
    rows = list(map(bytes, seen))
    made = {row: _mask(row, diagonal) for row in rows}
    return tuple(made[row] for row in rows)


@lru_cache(maxsize=MAX_KEPT)  # the row and the diagonal determine the mask, which is immutable
def _mask(row: bytes, diagonal: int) -> Mask:
    """The mask of a row that sees the keys whose bytes are 1."""
    seen = np.frombuffer(row, np.uint8)
    places = np.flatnonzero(seen)
    live = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    pairs = _zeros(len(row)), seen.astype(np.int32)[None]
    return Mask((1, len(row)), intervals=pairs, diagonal=diagonal, live=live)


@lru_cache(maxsize=4)
def _zeros(keys: int) -> IntArray:
    """Where each interval of a single row starts."""
    zeros = np.zeros((1, keys), np.int32)
    zeros.setflags(write=False)
    return zeros


def _seen(rule: Rule, view: View, batch: int) -> BoolArray | None:
    """Which keys the row of `view` sees, (batch, k_len), or (1, k_len) for all elements; None where no rule is known
    here.
    """
    row, keys = view.q0, view.keys
    if isinstance(rule, Band):
        seen = np.ones((1, view.k_len), np.bool_)
        if rule.low is not None:
            seen &= keys <= row - rule.low
        if rule.high is not None:
            seen &= keys >= row - rule.high
        return seen
    if isinstance(rule, Keys):
        seen = np.zeros((batch, view.k_len), np.bool_)
        given = rule.visible[:batch, view.k0 : view.k0 + view.k_len]
        seen[:, : given.shape[1]] = given
        return seen
    if isinstance(rule, Chunks):
        left = rule.left[:batch, None]
        chunk: BoolArray = (keys - left) // rule.size == (row - left) // rule.size
        return chunk
    if isinstance(rule, Joined):
        parts = [_seen(part, view, batch) for part in rule.parts]
        join = operator.and_ if rule.join is operator.and_ else operator.or_
        return None if any(part is None for part in parts) else reduce(join, parts)
    return None
