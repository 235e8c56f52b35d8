"""plan(): tries a few assignments of rows to ranks and keeps the one that should be fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.errors import UnsupportedError
from omnicupy.masks.arguments import at_least_one, integer, plain
from omnicupy.masks.mask import Mask
from omnicupy.parallel import assign, check_numbers, nodes, seen, weigh
from omnicupy.parallel.chunks import Chunks
from omnicupy.parallel.exchange import expected_traffic
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.plan import Plan
from omnicupy.parallel.prediction import Heads, Setting, Speeds, pairs_of
from omnicupy.parallel.runs import Real, Whole, sums_before
from omnicupy.parallel.seen import Shown

MOST_RANKS = 1 << 14
CHUNKS_A_RANK = 16  # in which work is weighed; where a rank's run ends is exact to a token
MOST_CHUNK = 512  # tokens
USUAL_HEADS = Heads(32, 8, 128)
USUAL_SPEEDS = Speeds()
MIDDLES = "middle_pieces"
OF_GROUPS = {f"groups_of_{ranks}": ranks for ranks in (1, 2)} | {MIDDLES: 1}
NAMES = ("contiguous", "zigzag", "two_ended", "nodes_first", *OF_GROUPS)
MARGIN = 0.99  # of others' time: middle pieces cut more documents, and must be predicted below it
MIDDLE_RANKS = 4  # with more of them a plan takes 0.4 of its time longer, and documents of two ranks are few
MOST_DOCUMENTS = 32  # a rank: with more of them each is little, and where it is cut

Given = tuple[str, Owners, Owners]  # name, owners of rows, owners of keys


def plan(
    masks: Mask | Sequence[Mask],
    ranks: int,
    *,
    node: int = 8,
    heads: tuple[int, int, int] | None = None,
    weights: Sequence[float] | None = None,
    rows: NDArray[np.integer[Any]] | str | None = None,
    keys: NDArray[np.integer[Any]] | str | None = None,
    speeds: Speeds | None = None,
) -> Plan:
    """Who owns which rows and keys of a mask when `ranks` ranks share an attention call; the same on every rank.

    masks: a Mask, or a list of them with the same rows and keys: those of a model's kinds of layers, or of a batch's
        elements. One assignment serves them all.
    ranks: of the process group.  node: ranks that share fast links, ranks 0 to node - 1 the first ones.
    heads: (q_heads, kv_heads, head_dim); calls with others are refused. None predicts for (32, 8, 128), takes any.
    weights: how often each mask is used, such as layers of its kind; None is once each. It weighs in the prediction.
    rows: None tries assignments and keeps the one that is predicted fastest; "contiguous", "zigzag", "two_ended",
        "nodes_first", "groups_of_1", "groups_of_2" or "middle_pieces" asks for one; an integer array (q_len,) gives the
        owner of each row.
    keys: None gives keys the owners of rows where there are as many keys as rows (self-attention), else contiguous
        shards. "rows" and "contiguous" ask for these; an integer array (k_len,) gives the owner of each key.
    speeds: what the prediction takes for granted.

    Every rank gets the same number of rows, or one less where they do not come out even; owners that are given may
    leave ranks with other numbers, or none. Runs of rows end with their document (a place that no pair crosses) or
    where a rank's share is full. Needs no communication and no GPU.

    Raises TypeError or ValueError for other arguments, UnsupportedError for more than 16,384 ranks.
    """
    given = _masks(masks)
    setting = _setting(ranks, node, heads, speeds)
    shares = _weights(weights, len(given))
    q_len, k_len = given[0].shape
    shown = [Shown.of(mask) for mask in given]
    bounds = seen.documents(shown) if q_len == k_len else np.array([0, q_len])
    chunks = _chunks(shown, shares, bounds, setting.ranks)
    candidates = list(_candidates((rows, keys), (q_len, k_len), chunks, setting))
    name, own_rows, own_keys = candidates[0]
    if len(candidates) > 1:
        name, own_rows, own_keys = _fastest(candidates, shown, shares, chunks, setting)
    found = {("shown", at): one for at, one in enumerate(shown)}
    return Plan(given, shares, own_rows, own_keys, bounds, name, setting, heads is not None, found)


def _masks(masks: Mask | Sequence[Mask]) -> tuple[Mask, ...]:
    given = (masks,) if isinstance(masks, Mask) else masks
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, Mask) for one in given):
        raise TypeError(
            f"plan: masks must be a Mask or a list of masks, got {type(masks).__name__}; build them with "
            "omnicupy.full, causal, segments, ..."
        )
    if not given:
        raise ValueError("plan: masks must hold at least one mask, got an empty list")
    for one in given:
        if one.shape != given[0].shape:
            raise ValueError(
                f"plan: all masks must have the same rows and keys, got {given[0].shape} and {one.shape}; make a plan "
                "for each shape"
            )
    return tuple(given)


def _setting(ranks: int, node: int, heads: Any, speeds: Speeds | None) -> Setting:
    count = at_least_one("plan", "ranks", ranks)
    if count > MOST_RANKS:
        raise UnsupportedError(f"plan: at most {MOST_RANKS:,} ranks, got {count:,}")
    if speeds is not None and not isinstance(speeds, Speeds):
        raise TypeError(f"plan: speeds must be a Speeds or None, got {type(speeds).__name__}")
    found = USUAL_HEADS
    if heads is not None:
        if not isinstance(heads, (list, tuple)) or len(heads) != 3:
            raise TypeError(f"plan: heads must be (q_heads, kv_heads, head_dim), got {heads!r}")
        found = Heads(*(check_numbers.size("plan", "heads", one) for one in heads))
        if found.q_heads % found.kv_heads:
            raise ValueError(f"plan: q_heads must be a multiple of kv_heads, got heads {heads}")
    of_node = min(
        at_least_one("plan", "node", node), check_numbers.MOST
    )  # one node of all ranks, however large
    return Setting(count, of_node, found, speeds or USUAL_SPEEDS)


def _weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * count
    found = check_numbers.numbers("plan", "weights", weights)
    if len(found) != count or not all(0 < one < np.inf for one in found):
        raise ValueError(
            f"plan: weights must be a positive number for each of {count} masks, got {weights!r}; leave out masks that "
            "no layer uses"
        )
    return found


def _chunks(shown: Sequence[Shown], weights: tuple[float, ...], bounds: Whole, ranks: int) -> Chunks:
    """Chunks of rows with their weighted allowed pairs."""
    edges = seen.chunk_edges(bounds, _chunk(shown[0].mask.shape[0], ranks))
    work = np.zeros(len(edges) - 1)
    for one, weight in zip(shown, weights, strict=True):
        work += weight * seen.chunk_work(one, edges)
    return Chunks.of(edges, work, bounds)


def _chunk(q_len: int, ranks: int) -> int:
    return min(MOST_CHUNK, max(1, q_len // (CHUNKS_A_RANK * ranks)))


def _candidates(
    asked: tuple[Any, Any], shape: tuple[int, int], chunks: Chunks, setting: Setting
) -> Iterator[Given]:
    """What may be the plan. asked: `rows` and `keys` as given."""
    rows, keys = asked
    ranks, (q_len, k_len) = setting.ranks, shape
    if rows is not None and not isinstance(rows, str):
        own = _owners("rows", rows, q_len, ranks)
        yield "given", own, _keys(keys, own, k_len)
        return
    if rows is not None and rows not in NAMES:
        raise ValueError(f"plan: rows must be an array, None or one of {', '.join(NAMES)}, got {rows!r}")
    for name in _tried(chunks, setting) if rows is None else (rows,):
        if name == "contiguous":
            own = assign.contiguous(q_len, ranks)
        elif name == "zigzag":
            own = assign.zigzag(q_len, ranks)
        elif name == "two_ended":
            own = assign.two_ended(chunks, ranks)
        else:
            node = OF_GROUPS.get(name, setting.node)
            own = nodes.nodes_first(chunks, ranks, node, middles=name == MIDDLES)
        yield name, own, _keys(keys, own, k_len)


def _tried(chunks: Chunks, setting: Setting) -> Iterator[str]:
    """Assignments that may be the fastest."""
    documents = len(chunks.ends) - 1
    for name in NAMES:
        if name in OF_GROUPS:
            tries = OF_GROUPS[name] < setting.ranks <= setting.node
            tries = tries and 1 < documents <= MOST_DOCUMENTS * setting.ranks
            if name == MIDDLES:
                tries = tries and setting.ranks <= MIDDLE_RANKS and nodes.cuts_middles(chunks, setting.ranks)
        else:
            tries = name != "nodes_first" or setting.ranks > setting.node
        if tries:
            yield name


def _keys(keys: Any, rows: Owners, k_len: int) -> Owners:
    square = rows.tokens == k_len
    if keys is None:
        return rows if square else assign.contiguous(k_len, rows.ranks)
    if not isinstance(keys, str):
        return _owners("keys", keys, k_len, rows.ranks)
    if keys == "contiguous":
        return assign.contiguous(k_len, rows.ranks)
    if keys != "rows":
        raise ValueError(f"plan: keys must be an array, None, 'rows' or 'contiguous', got {keys!r}")
    if not square:
        raise ValueError(
            f"plan: keys='rows' needs as many keys as rows, got {rows.tokens} rows and {k_len} keys; pass None"
        )
    return rows


def _owners(name: str, given: Any, tokens: int, ranks: int) -> Owners:
    owner = np.asarray(plain("plan", name, given))
    if owner.dtype.kind not in "iu":
        raise TypeError(f"plan: {name} must hold integers, the owner of each token, got {owner.dtype}")
    if owner.shape != (tokens,):
        raise ValueError(
            f"plan: {name} must have shape ({tokens},), the owner of each token, got {owner.shape}"
        )
    if owner.min() < 0 or owner.max() >= ranks:
        wrong = integer("plan", name, owner[(owner < 0) | (owner >= ranks)][0])
        raise ValueError(f"plan: {name} must hold ranks from 0 to {ranks - 1}, got {wrong}")
    return Owners.of_tokens(owner, ranks)


def _fastest(
    candidates: Sequence[Given],
    shown: Sequence[Shown],
    weights: tuple[float, ...],
    chunks: Chunks,
    setting: Setting,
) -> Given:
    """The candidate whose slowest rank is predicted to be done first; the earlier one of equals."""
    q_len, k_len = shown[0].mask.shape
    edges = np.concatenate([chunks.first, chunks.stop[-1:]])
    key_edges = edges
    if q_len != k_len:
        key_edges = seen.chunk_edges(np.array([0, k_len]), _chunk(k_len, setting.ranks))
    parts = [(seen.rectangles(one, key_edges), weight) for one, weight in zip(shown, weights, strict=True)]
    # Of a layer in the mean: places, and the pairs before them.
    mean = (edges.astype(np.float64), sums_before(chunks.work) / sum(weights))
    margins = np.array([MARGIN if name == MIDDLES else 1.0 for name, _, _ in candidates])
    if weigh.serves(parts, len(candidates), setting):
        _, all_rows, all_keys = zip(*candidates, strict=True)
        took = weigh.seconds(all_rows, all_keys, mean, parts, setting) / margins
        return candidates[int(took.argmin())]
    pairs = [pairs_of(mean, rows) for _, rows, _ in candidates]
    still = [(0.0, weight) for weight in weights]
    least = [_seconds(one, still, setting) / margin for one, margin in zip(pairs, margins, strict=True)]
    best, found = np.inf, 0
    for at in sorted(range(len(candidates)), key=least.__getitem__):
        if least[at] > best:  # the work alone takes longer
            break
        _, rows, keys = candidates[at]
        waits = [(setting.flows_s(expected_traffic(one, rows, keys)), weight) for one, weight in parts]
        took = _seconds(pairs[at], waits, setting) / margins[at]
        if (took, at) < (best, found):
            best, found = took, at
    return candidates[found]


def _seconds(pairs: Real, waits: Sequence[tuple[Real | float, float]], setting: Setting) -> float:
    """Of all layers: the slowest rank of each. waits: seconds of each rank's exchange, and how many layers have it."""
    return sum(weight * float(setting.rank_s(pairs, wait).max()) for wait, weight in waits)
