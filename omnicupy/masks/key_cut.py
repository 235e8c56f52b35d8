"""The cut by blocks of keys: what by_key_blocks makes of the cut by blocks of queries, straight from intervals.

The intervals of a block of keys say which blocks of queries see some of its keys, and which see all. That is the order
in which the backward pass walks, so nothing is turned round.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, DEAD, FULL, PARTIAL
from omnicupy.masks.cut import CHUNK_KEYS, causal_tiles, cut, live_blocks, see_causally
from omnicupy.masks.intervals import BoolArray
from omnicupy.masks.pairs import PairSet
from omnicupy.masks.stretches import KeyArray, Stretches, spread, stretches
from omnicupy.masks.transpose import KeyBlocks, by_key_blocks, outside

FEW_KEYS = 8  # a stretch: where it has fewer on average, keys are looked at one by one
_WHOLE = 32  # keys that see all of a block of queries are counted from this bit on


class _Ranges(NamedTuple):
    """Ranges of blocks of queries that see some keys of one block. block: of keys, ascending.  row: the first block of
    queries, ascending in each.  length: their number.  full: whether all tiles are FULL; no two such touch.
    """

    block: KeyArray
    row: KeyArray
    length: KeyArray
    full: BoolArray


def cut_by_keys(mask: PairSet, br: int, bc: int) -> KeyBlocks:
    """by_key_blocks(cut(mask, br, bc)), the same arrays. Raises ValueError for br that are no multiple of 32."""
    every = None
    if mask.intervals is not None and not br % 32:
        live = live_blocks(mask, bc)
        every = stretches(mask.intervals, live, bc, (live[1] - live[0]) * len(mask.intervals[0]) // FEW_KEYS)
    if every is None:
        return by_key_blocks(cut(mask, br, bc))
    q_len, k_len = mask.shape
    used = _used(every, q_len, br)
    found = _ranges(used, q_len, br, bc)
    # A run of FULL tiles is an entry, any other tile is one of its own.
    number = np.where(found.full, 1, found.length)
    which = np.repeat(np.arange(len(number)), number)
    block, full = found.block.take(which), found.full.take(which)
    row = spread(found.row, number)
    entries = np.empty((len(which), 4), np.int32)
    entries[:, 1] = -1
    np.multiply(row, br, out=entries[:, 2], casting="unsafe")
    tiles = np.where(found.full, found.length, 1).astype(np.int32).take(which)
    np.multiply(tiles, np.int32(br), out=entries[:, 3])
    if q_len % br:
        np.minimum(entries[:, 3], q_len - entries[:, 2], out=entries[:, 3])
    kind = np.where(full, FULL, PARTIAL)
    kind[_causal(mask, used, (row, block, full), br, bc)] = CAUSAL
    unseen = ((every.stop == 0) & (every.slot == 0)).nonzero()[0]
    if len(unseen):
        dead = np.zeros(-(-k_len // bc), np.int64)
        dead[every.key.take(unseen) // bc] = DEAD
        kind |= np.where(full, 0, dead.take(block))
    entries[:, 0] = kind
    offsets = block.searchsorted(np.arange(-(-k_len // bc) + 1)).astype(np.int32)
    bit_tiles = np.zeros((0, bc, br // 32), np.uint32)
    for array in (offsets, entries, tiles, bit_tiles):
        array.setflags(write=False)
    dead_rows = outside(used.start, used.stop + used.grows * (used.keys - 1), q_len)
    return KeyBlocks(mask, br, bc, offsets, entries, tiles, bit_tiles, dead_rows)


def _used(every: Stretches, q_len: int, br: int) -> Stretches:
    """Those that some row sees. Where the last block of queries is short, keys that are seen to the end are apart."""
    used = every.of(every.stop.nonzero()[0])
    if not q_len % br or not used.grows.any():
        return used
    at = (used.grows * (used.stop + used.keys - 1) == q_len).nonzero()[0]
    long = used.of(at)
    ahead, one, none = long.keys - 1, np.ones_like(long.keys), np.zeros_like(long.keys)
    last = Stretches(
        long.key + ahead, one, long.start + long.rises * ahead, long.stop + ahead, none, none, long.slot
    )
    keys = used.keys.copy()
    keys[at] -= 1
    shorter = vars(used) | {"keys": keys}
    return Stretches(*(np.concatenate([array, getattr(last, name)]) for name, array in shorter.items()))


def _ranges(used: Stretches, q_len: int, br: int, bc: int) -> _Ranges:
    """The ranges of all tiles that are listed."""
    q_blocks = -(-q_len // br)
    base = (
        used.key // bc * (q_blocks + 1)
    )  # places of blocks of queries, those of one block of keys after the other
    of, ahead, keys, start = _by_code(used.start, used.rises, used.keys, br)
    row, counts, begins = used.stop, used.keys, base.take(of)
    if used.grows.any():
        grows = used.grows.take(of)
        row = row.take(of) + grows * ahead
        again, _, keys, stop = _by_code(row, grows, keys, br)
        row, counts, start, begins = row.take(again), keys, start.take(again), begins.take(again)
        base, of = begins, np.arange(len(again))
    else:
        stop = row // br + -(-row // br)
    # Rows past q_len do not exist: what ends there covers a short last block.
    stop = np.where(row == q_len, 2 * q_blocks, stop)
    ends = base + (stop >> 1)
    whole = np.minimum(begins + (start + 1 >> 1), ends.take(of))
    place = np.concatenate([begins + (start >> 1), base + (stop + 1 >> 1), whole, ends])
    seen = np.concatenate([keys, -counts])
    seen = np.concatenate([seen, seen << _WHOLE])
    order = place.argsort(kind="stable")
    place = place.take(order)
    length = place[1:] - place[:-1]
    state = seen.take(order).cumsum()[:-1]
    found = ((state != 0) & (length > 0)).nonzero()[0]
    place, length, full = place.take(found), length.take(found), state.take(found) >> _WHOLE == bc
    goes_on = full[1:] & full[:-1]
    goes_on &= place[1:] == place[:-1] + length[:-1]
    if goes_on.any():
        first = np.append(True, ~goes_on).nonzero()[0]
        place, length, full = place.take(first), np.add.reduceat(length, first), full.take(first)
    block, row = np.divmod(place, q_blocks + 1)
    return _Ranges(block, row, length, full)


def _by_code(
    row: KeyArray, moves: KeyArray, keys: KeyArray, br: int
) -> tuple[NDArray[np.intp], KeyArray, KeyArray, KeyArray]:
    """Keys with bounds in the same block of queries: which stretch they are of, keys of it ahead of them, their number,
    and their code: twice the block, and one more where the bound is not its first row.

    row: the bound of the first key of each stretch.  moves: by how much that of each next key is further on, 0 or 1.
    """
    last = row + moves * (keys - 1)
    code = row // br + -(-row // br)
    number = last // br + -(-last // br) - code + 1
    of = np.repeat(np.arange(len(row)), number)
    codes = spread(code, number)
    ahead = np.maximum((codes >> 1) * br + (codes & 1) - row.take(of), 0)
    counts = np.empty_like(ahead)
    counts[:-1] = ahead[1:]
    counts[number.cumsum() - 1] = keys
    counts -= ahead
    return of, ahead, counts, codes


def _causal(
    mask: PairSet, used: Stretches, tiles: tuple[KeyArray, KeyArray, BoolArray], br: int, bc: int
) -> NDArray[np.intp]:
    """Which tiles are CAUSAL. tiles: block of queries, block of keys, and whether it is FULL, of each."""
    assert mask.intervals is not None
    (row, block, full), (q_len, k_len) = tiles, mask.shape
    ahead = (
        block * bc - row * br - mask.diagonal
    )  # of its first key, from the first one that its first row may not see
    crossed = (ahead > 1 - bc) & (ahead < np.minimum(br, q_len - row * br)) & (block < k_len // bc)
    crossed &= ~full
    some = crossed.nonzero()[0]
    # Most are, as all keys of their block are seen from the diagonal on, and up to a later block of queries.
    exact = (
        (used.start == used.key - mask.diagonal) & ((used.rises > 0) | (used.keys == 1)) & (used.slot == 0)
    )
    at = exact.nonzero()[0]
    of, blocks = used.key.take(at) // bc, -(-k_len // bc)
    lowest = np.full(blocks, q_len)
    np.minimum.at(lowest, of, used.stop.take(at))
    lowest[np.bincount(of, used.keys.take(at), blocks) < bc] = -1
    row, block = row.take(some), block.take(some)
    are = lowest.take(block) >= np.minimum(row * br + br, q_len)
    rest = (~are).nonzero()[0]
    if len(rest):
        are[rest] = _tested(mask, row.take(rest), block.take(rest), br, bc)
    return some[are]


def _tested(mask: PairSet, row: KeyArray, block: KeyArray, br: int, bc: int) -> BoolArray:
    """Which of these tiles are CAUSAL, key by key."""
    assert mask.intervals is not None
    if len(row) * bc > CHUNK_KEYS:  # their last keys first: most fail there
        return causal_tiles(mask.intervals, row, block, mask, br, bc)
    return see_causally(mask.intervals, row, block, mask, (br, bc), slice(None))
