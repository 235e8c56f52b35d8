"""The cut: a set of pairs and a tile size to a BlockMask, in time that follows keys + entries.

Interval masks: the row range of a key touches a range of query blocks and covers a part of it fully.
Neighbouring keys with equal ranges collapse to a run; a sweep over the few run bounds of each key block then
gives, exactly, the ranges of query blocks to list and, within them, the FULL ones. FULL tiles are not listed one by
one: another sweep, over the FULL ranges of neighbouring key blocks, gives the query blocks where a run of them begins
or ends. Only tiles on the diagonal are looked at key by key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, DEAD, FULL, PARTIAL, BlockMask
from omnicupy.masks.cut_bits import classify_bits
from omnicupy.masks.cut_tiles import classify_lists
from omnicupy.masks.intervals import BoolArray, IntArray, Intervals
from omnicupy.masks.pairs import PairSet

KeyArray = NDArray[np.int64]  # for tiles int32 where that holds their number
Listed = tuple[
    KeyArray, KeyArray, KeyArray
]  # query block, key block and kind of tiles, in the order of the lists

DENSE_KEYS = 16  # sort keys a tile for which marking all of them is quicker than sorting
CHUNK_KEYS = 1 << 14  # bounds looked at together: their arrays stay in the nearest caches


def cut(mask: PairSet, br: int, bc: int) -> BlockMask:
    """Cut `mask` into tiles of br rows and bc keys (a multiple of 32), both trusted."""
    tiles = np.zeros((0, br, bc // 32), np.uint32)
    if mask.intervals is not None:
        few = mask.shape[0] <= br and len(mask.intervals[0]) == 1
        row, block, kind, count = _classify_one_row(mask, bc) if few else _classify(mask, br, bc)
        payload = None
        on_diagonal = np.flatnonzero(kind == PARTIAL)
        on_diagonal = on_diagonal[_crossed(row[on_diagonal], block[on_diagonal], mask, br, bc)]
        if len(on_diagonal):
            causal = causal_tiles(mask.intervals, row[on_diagonal], block[on_diagonal], mask, br, bc)
            kind[on_diagonal[causal]] = CAUSAL
    elif mask.bits is not None:
        row, block, kind, payload, tiles = classify_bits(mask, br, bc)
    else:
        inner = None if mask.tiles is None or mask.tiles.inner is None else mask.tiles.inner.blocks(br, bc)
        row, block, kind, payload, tiles = classify_lists(mask, br, bc, inner)
    if payload is not None:
        begins, count = _joined((row, block, kind))
        row, block, kind, payload = row[begins], block[begins], kind[begins], payload[begins]
    return _assemble(mask, (br, bc), (row, block, kind), count, payload, tiles)


def _codes(bound: IntArray, br: int) -> tuple[NDArray[np.uint32], int]:
    """One integer for floor(bound / br) and ceil(bound / br): their sum, times the unit returned with it.

    Unsigned, because the sum for a bound of MAX_LENGTH rows is 2**31 and more.
    """
    whole = bound.view(np.uint32)
    up = whole + np.uint32(br - 1)
    if br & (br - 1):
        up //= np.uint32(br)
        up += whole // np.uint32(br)
        return up, 1
    low = np.uint32(2**32 - br)  # a power of two: masks are several times faster than divisions
    up &= low
    up += whole & low
    return up, br


def _runs(
    a: Intervals, keys: tuple[int, int], q_len: int, br: int, bc: int
) -> tuple[KeyArray, IntArray, IntArray, KeyArray]:
    """Runs of neighbouring keys of one slot and one key block whose intervals meet the same query blocks.

    keys: a range of whole key blocks (but for the last key), outside of which nothing is used. Returns key block,
    code of start, code of stop and number of keys of each run; see _codes.
    """
    n = len(a[0])
    step = max(1, CHUNK_KEYS // (n * bc)) * bc
    parts = []
    for k0 in range(*keys, step):
        starts, stops = (side[:, k0 : min(k0 + step, keys[1])] for side in a)
        last = (stops == q_len) if q_len % br else None
        (begins, unit), (ends, _) = _codes(starts, br), _codes(stops, br)
        if last is not None:
            # rows past q_len do not exist: an interval that ends at q_len covers the short last block
            ends[last] = 2 * unit * -(-q_len // br)
        change = np.empty(begins.shape, np.bool_)
        np.not_equal(begins[:, 1:], begins[:, :-1], out=change[:, 1:])
        change[:, 1:] |= ends[:, 1:] != ends[:, :-1]
        change[:, ::bc] = True
        first = np.flatnonzero(change)
        length = np.diff(first, append=begins.size)
        block = (first % begins.shape[1] + k0) // bc
        blocks_of = (codes.reshape(-1)[first] // np.uint32(unit) for codes in (begins, ends))
        parts.append((block, *(code.astype(np.int32) for code in blocks_of), length))
    block, start, stop, length = (np.concatenate(part) for part in zip(*parts, strict=True))
    used = stop > 0
    return block[used], start[used], stop[used], length[used]


def _classify(mask: PairSet, br: int, bc: int) -> tuple[KeyArray, KeyArray, KeyArray, IntArray]:
    """Query block, key block and kind (FULL or PARTIAL) of each entry, in the order of the lists, and its tiles."""
    assert mask.intervals is not None
    q_len = mask.shape[0]
    block, start, stop, keys = _runs(mask.intervals, live_blocks(mask, bc), q_len, br, bc)
    stride = -(-q_len // br) + 1
    base = block * stride
    inner0, inner1 = (start + 1) >> 1, stop >> 1  # query blocks that the interval covers whole
    whole = inner0 < inner1
    full = keys[whole] << 32  # weights in keys: FULL in the high word, listed in the low one
    place = np.concatenate(
        [base + (start >> 1), base + ((stop + 1) >> 1), (base + inner0)[whole], (base + inner1)[whole]]
    )
    place, length, state = _swept(place, np.concatenate([keys, -keys, full, -full]))
    is_full = state >> 32 == bc
    listed = ((state & 0xFFFFFFFF) > 0) & ~is_full
    edges, lengths = _run_edges(place[is_full], length[is_full], stride)
    place = np.concatenate([place[listed], edges])
    length = np.concatenate([length[listed], lengths])
    is_edge = np.arange(len(place)) >= len(place) - len(edges)
    return _expand(*np.divmod(place, stride), length, is_edge, -(-mask.shape[1] // bc))


def _swept(place: KeyArray, weight: KeyArray) -> tuple[KeyArray, KeyArray, KeyArray]:
    """Ranges of places between neighbouring bounds: first place, length, sum of the weights up to there.

    Only ranges that are not empty and whose sum is not 0.
    """
    order = np.argsort(place, kind="stable")
    place = place[order]
    state = np.cumsum(weight[order])[:-1]
    length = np.diff(place)
    found = np.flatnonzero((state != 0) & (length > 0))
    return place[found], length[found], state[found]


def _run_edges(place: KeyArray, length: KeyArray, stride: int) -> tuple[KeyArray, KeyArray]:
    """Where runs of FULL tiles begin or end: ranges of query blocks in which the key blocks before and behind differ.

    place: key block * stride + first query block of each range of FULL tiles.  Returns the same of the first key block
    of runs and of the one behind them, and the ranges' lengths. In a query block they take turns.
    """
    one = np.ones(len(place), np.int64)
    bounds = [place, place + length, place + stride, place + (stride + length)]
    edges, lengths, _ = _swept(np.concatenate(bounds), np.concatenate([one, -one, -one, one]))
    return edges, lengths


def _classify_one_row(mask: PairSet, bc: int) -> tuple[KeyArray, KeyArray, KeyArray, IntArray]:
    """`_classify` of one block of query rows and one interval a key, as decoding has them: key block by key block."""
    assert mask.intervals is not None
    first, last = live_blocks(mask, bc)
    start, stop = (side[0, first:last] for side in mask.intervals)
    places = np.arange(0, last - first, bc)
    full = (np.minimum.reduceat(stop, places) == mask.shape[0]) & (np.maximum.reduceat(start, places) == 0)
    if (last - first) % bc:
        full[-1] = False  # not all of its keys exist
    listed = np.maximum.reduceat(stop, places) > 0
    masked = np.flatnonzero(listed & ~full)
    beside = np.zeros(len(full) + 2, np.bool_)
    beside[1:-1] = full
    edges = np.flatnonzero(beside[1:] != beside[:-1])
    block = np.concatenate([masked, edges[::2]])
    kind = np.full(len(block), FULL)
    kind[: len(masked)] = PARTIAL
    count = np.ones(len(block), np.int32)
    count[len(masked) :] = edges[1::2] - edges[::2]
    return np.zeros_like(block), block + first // bc, kind, count


def live_blocks(mask: PairSet, bc: int) -> tuple[int, int]:
    """The keys of the key blocks from the first to the last of which some row sees a key; at least one block."""
    first, stop = mask.live
    return first // bc * bc, min(-(-max(stop, 1) // bc) * bc, mask.shape[1])


def _expand(
    block: KeyArray, row: KeyArray, length: KeyArray, is_edge: BoolArray, k_blocks: int
) -> tuple[KeyArray, KeyArray, KeyArray, IntArray]:
    """Ranges of query blocks [row, row + length) of one key block each, to entries in the order of the lists.

    is_edge: where runs of FULL tiles begin or end; elsewhere are masked tiles.  Returns query block, key block, kind
    and tiles of each entry.
    """
    shift = k_blocks.bit_length()
    step = 2 << shift  # sort key: row, FULL, key block
    last = int((row + length).max(initial=0)) * step  # past every sort key
    count = int(length.sum())
    # Half of the memory where it can be, most of which is new to the process each time.
    dtype = np.int32 if max(last, step * count) < 1 << 31 else np.int64
    first = (row * 2 + is_edge << shift) + block - step * (np.cumsum(length) - length)
    tiles = np.repeat(first.astype(dtype), length)
    tiles += np.arange(0, step * count, step, dtype=dtype)
    if last <= DENSE_KEYS * len(tiles):  # marking all sort keys takes time that follows the tiles, too
        marked = np.zeros(last, np.bool_)
        marked[tiles] = True
        tiles = np.flatnonzero(marked)
    else:
        tiles.sort(kind="stable")  # made of ascending runs, which the stable sort merges
    tiles = tiles.astype(dtype, copy=False)
    at = np.flatnonzero(tiles >> shift & 1)  # edges: where a run begins, where it ends, and so on
    counts = np.ones(len(tiles), np.int32)
    counts[at[::2]] = tiles[at[1::2]] - tiles[at[::2]]
    counts[at[1::2]] = 0
    entries = np.flatnonzero(counts)
    tiles, counts = tiles[entries], counts[entries]
    kind = (tiles >> shift & 1) * (FULL - PARTIAL) + PARTIAL
    return tiles >> (shift + 1), tiles & ((1 << shift) - 1), kind, counts


def _joined(listed: Listed) -> tuple[NDArray[np.intp], IntArray]:
    """The tiles that begin an entry, and the tiles of each: neighbouring FULL ones of a query block are one."""
    row, block, kind = listed
    full = kind == FULL
    follows = full[1:] & full[:-1] & (row[1:] == row[:-1]) & (block[1:] == block[:-1] + 1)
    begins = np.flatnonzero(np.append(True, ~follows)[: len(row)])
    return begins, np.diff(begins, append=len(row)).astype(np.int32)


def _crossed(row: KeyArray, block: KeyArray, mask: PairSet, br: int, bc: int) -> BoolArray:
    """Which tiles the diagonal crosses and whose keys all exist: the only ones that can be CAUSAL."""
    q_len, k_len = mask.shape
    q0 = row * br
    q1 = np.minimum(q0 + br, q_len)
    k0 = block * bc
    crossed: BoolArray = (k0 + (bc - 1) > q0 + mask.diagonal) & (k0 < q1 + mask.diagonal) & (k0 + bc <= k_len)
    return crossed


def causal_tiles(a: Intervals, row: KeyArray, block: KeyArray, mask: PairSet, br: int, bc: int) -> BoolArray:
    """Which of these tiles hold exactly the pairs k <= q + diagonal, tested key by key."""
    found = np.ones(len(row), np.bool_)
    for columns in (slice(bc - 1, None), slice(None)):  # the last keys first: most other tiles fail there
        left = np.flatnonzero(found)
        found[left] = see_causally(a, row[left], block[left], mask, (br, bc), columns)
    return found


def see_causally(
    a: Intervals, row: KeyArray, block: KeyArray, mask: PairSet, tile: tuple[int, int], columns: slice
) -> BoolArray:
    """Of which tiles these columns hold exactly the pairs k <= q + diagonal."""
    br, bc = tile
    q0 = (row * br).astype(np.int32)[:, None]
    q1 = np.minimum(q0 + np.int32(br), np.int32(mask.shape[0]))
    # The first row that should see each key; in place, as all that follows: new memory costs more than the sums.
    first = np.arange(-mask.diagonal, bc - mask.diagonal, dtype=np.int32)[columns]
    want = block.astype(np.int32)[:, None] * np.int32(bc) + first
    np.maximum(want, q0, out=want)
    np.minimum(want, q1, out=want)
    inside, outside, rows = np.zeros_like(want), np.zeros_like(want), np.empty_like(want)
    whole = mask.shape[1] // bc * bc
    for start, stop in zip(*a, strict=True):
        lo, hi = (bound[:whole].reshape(-1, bc)[:, columns].take(block, axis=0) for bound in (start, stop))
        np.minimum(hi, q1, out=hi)
        np.maximum(lo, want, out=rows)
        np.subtract(hi, rows, out=rows)
        inside += np.maximum(rows, 0, out=rows)
        np.minimum(hi, want, out=hi)
        np.maximum(lo, q0, out=lo)
        hi -= lo
        outside += np.maximum(hi, 0, out=hi)
    causal: BoolArray = ((inside == q1 - want) & (outside == 0)).all(axis=1)
    return causal


def _assemble(
    mask: PairSet,
    tile: tuple[int, int],
    listed: Listed,
    count: IntArray,
    payload: IntArray | None,
    bit_tiles: NDArray[np.uint32],
) -> BlockMask:
    """The BlockMask of the listed entries (query block, first key block, kind), which are in list order already.

    count: tiles of each.
    """
    (br, bc), (row, block, kind) = tile, listed
    q_len, k_len = mask.shape
    q_blocks = -(-q_len // br)
    offsets = np.searchsorted(row, np.arange(q_blocks + 1, dtype=row.dtype)).astype(np.int32)
    first, stop = live_blocks(mask, bc)  # no tile of other keys is listed
    dead = mask.dead_keys(first, stop)
    if dead.any():
        in_block = np.zeros(-(-(stop - first) // bc) * bc, np.bool_)
        in_block[: stop - first] = dead
        flags = in_block.reshape(-1, bc).any(axis=1) * kind.dtype.type(DEAD)
        kind = kind | flags.take(block - first // bc)  # FULL tiles hold none
    entries = np.empty((len(row), 4), np.int32)
    entries[:, 0] = kind
    entries[:, 1] = -1 if payload is None else payload
    np.multiply(block, bc, out=entries[:, 2], casting="unsafe")
    np.multiply(count, bc, out=entries[:, 3], casting="unsafe")
    if k_len % bc:
        entries[block == k_len // bc, 3] = k_len % bc
    for array in (offsets, entries, bit_tiles):
        array.setflags(write=False)
    return BlockMask(mask, br, bc, offsets, entries, bit_tiles)
