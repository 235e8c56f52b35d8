"""A mask shared among ranks, by a model: the plan beside what other libraries do, and what making a plan takes.

Nothing here runs on several GPUs. Times are those of `parallel.prediction` with its nominal speeds: the exchange, then
one launch, and the slowest rank counts. Efficiency is the time of one rank with everything over (ranks times that).

- "heap of chunks": chunks of 512 tokens, cut without regard to documents, the heaviest left to the rank with the least
  work, equal counts (MagiAttention's); needed keys travel.
- "all-gather": the same, and every rank gets all keys (torch's context parallel for FlexAttention).
- "ring": a rank has one of the first and one of the last runs (`zigzag`), and shards go round, one step for each rank;
  partial results are merged in float32 (ring-flash-attention). Up to 64 ranks.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import segments
from omnicupy.parallel import Plan, Speeds, plan
from omnicupy.parallel.owners import Owners
from omnicupy.parallel.prediction import pairs_of
from omnicupy.parallel.seen import row_work
from omnicupy.tools.bench import host
from omnicupy.tools.bench.records import Record
from omnicupy.tools.workloads import model_masks
from omnicupy.tools.workloads.workload import NAMED, Workload

STRONG = (2, 4, 8)
MANY = (8, 16, 64, 256, 1024)
TOKENS = 8192  # of a rank, where the problem grows with the ranks
ALL_TOKENS = 1 << 20  # of all ranks, where it does not
CHUNK = 512
NODE = 8  # ranks
MOST_RING = 64  # ranks
MEMORY = 3e12  # bytes a second, by which partial results are merged
TURNS = 3
PACKS = ("W1", "W12")
Heads = tuple[int, int, int]


def sharing(record: Record, say: host.Say) -> None:
    """Packs as they are on the ranks of a node, then packs of documents of their lengths that grow with the ranks (weak
    scaling), or have a million tokens on however many (strong scaling).
    """
    record.set(speeds=asdict(Speeds()), node=NODE)
    for name in PACKS:
        workload = NAMED[name]
        for ranks in STRONG:
            _add(record, say, f"{name}, {ranks} ranks", workload.mask(), ranks, _heads(workload))
    for name in PACKS:
        for ranks in MANY:
            label = f"{name}-like, {TOKENS:,} tokens a rank, {ranks} ranks"
            _add(record, say, label, grown(name, TOKENS * ranks), ranks, _heads(NAMED[name]))
    for name in PACKS:
        mask = grown(name, ALL_TOKENS)
        for ranks in MANY:
            label = f"{name}-like, {ALL_TOKENS:,} tokens, {ranks} ranks"
            _add(record, say, label, mask, ranks, _heads(NAMED[name]))


def _heads(workload: Workload) -> Heads:
    return workload.q_heads, workload.kv_heads, workload.head_dim


def grown(name: str, tokens: int) -> Mask:
    """A pack of so many tokens, of documents like those of W1 or W12, their lengths up to a fifth more or less."""
    rng = np.random.default_rng([PACKS.index(name), tokens])
    samples = (
        model_masks.bagel_pack() if name == "W1" else [[("text", length)] for length in model_masks.PACKED]
    )
    found = []
    while tokens:
        document = []
        for kind, length in samples[int(rng.integers(len(samples)))]:
            size = min(tokens, max(1, int(length * rng.uniform(0.8, 1.2))))
            if size:
                document.append((kind, size))
            tokens -= size
        found.append(document)
    return segments(found)


def _add(record: Record, say: host.Say, label: str, mask: Mask, ranks: int, heads: Heads) -> None:
    took = []
    for _ in range(TURNS):
        begin = time.process_time()  # of one core, whatever else runs
        made = plan(mask, ranks, node=NODE, heads=heads)
        took.append(1e3 * (time.process_time() - begin))
    stats = made.stats()
    work = row_work(mask)
    heap = plan(mask, ranks, node=NODE, heads=heads, rows=heap_of_chunks(work, ranks))
    others = {
        name: plan(mask, ranks, node=NODE, heads=heads, rows=name).stats().efficiency
        for name in ("contiguous", "zigzag")
    }
    figures = {
        "assignment": made.name,
        "balance": round(stats.balance, 3),
        "plan": round(stats.efficiency, 3),
        **{name: round(value, 3) for name, value in others.items()},
        "heap of chunks": round(heap.stats().efficiency, 3),
        "all-gather": round(all_gathered(heap, work), 3),
    }
    if ranks <= MOST_RING:
        figures["ring"] = round(ring(plan(mask, ranks, node=NODE, heads=heads, rows="zigzag")), 3)
    figures["received, MB"] = round(stats.received.max() / 1e6, 1)
    figures["across nodes, MB"] = round(stats.far_received.max() / 1e6, 1)
    figures["heap received, MB"] = round(heap.stats().received.max() / 1e6, 1)
    figures["plan_ms"] = round(min(took), 2)
    host.add(record, say, label, figures)


def heap_of_chunks(work: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """The owner of each row. work: of each row."""
    chunk = min(CHUNK, max(1, len(work) // (4 * ranks)))
    starts = np.arange(0, len(work), chunk)
    amounts = np.add.reduceat(work, starts)
    room = -(-len(starts) // ranks)
    heap, count = [(0.0, rank) for rank in range(ranks)], [0] * ranks
    owner = np.empty(len(starts), np.int64)
    for at in np.argsort(-amounts, kind="stable").tolist():
        load, rank = heapq.heappop(heap)
        owner[at] = rank
        count[rank] += 1
        if count[rank] < room:
            heapq.heappush(heap, (load + float(amounts[at]), rank))
    return np.repeat(owner, np.diff(np.append(starts, len(work))))


def all_gathered(made: Plan, work: NDArray[np.int64]) -> float:
    """Efficiency where every rank gets all keys before its launch; across nodes each card brings its share once."""
    setting, tokens = made.setting, made.keys.tokens
    speeds, token = setting.speeds, setting.heads.key_bytes
    nodes = -(-made.ranks // setting.node)
    near = tokens * (made.ranks - 1) / made.ranks * token / speeds.near
    far = tokens * (nodes - 1) / nodes / setting.node * token / speeds.far
    wait = speeds.far_s if nodes > 1 else speeds.near_s
    exchange = max(near, far) + (wait if made.ranks > 1 else 0.0)
    before = np.append(0.0, np.cumsum(work))
    pairs = pairs_of((np.arange(len(before)), before), made.rows)
    slowest = speeds.launch_s + exchange + float(setting.work_s(pairs).max())
    return setting.alone_s(float(before[-1])) / (made.ranks * slowest)


def ring(made: Plan) -> float:
    """Efficiency of a ring: in each step the slowest rank sets the pace, and each step merges a partial result."""
    setting, ranks, speeds = made.setting, made.ranks, made.setting.speeds
    between = np.stack([pairs_with(made.masks[0], made.rows, rank) for rank in range(ranks)])
    shard = float(made.rows.counts.max())
    crosses = ranks > setting.node
    hop = speeds.far_s if crosses else speeds.near_s
    hop += shard * setting.heads.key_bytes / (speeds.far if crosses else speeds.near)
    merge = 3 * shard * setting.heads.q_heads * setting.heads.head_dim * 4 / MEMORY
    total, rank = 0.0, np.arange(ranks)
    for step in range(ranks):
        work = float(setting.work_s(between[rank, (rank - step) % ranks].astype(np.float64)).max())
        work += speeds.launch_s + (merge if step else 0.0)
        total += max(work, hop if step < ranks - 1 else 0.0)
    return setting.alone_s(float(between.sum())) / (ranks * total)


def pairs_with(mask: Mask, owners: Owners, rank: int) -> NDArray[np.int64]:
    """Allowed pairs of the rank's rows with the keys of each rank, whose owners are those of rows."""
    assert mask.intervals is not None
    before = owners.before(rank)
    counts = np.zeros(mask.shape[1], np.int64)
    for start, stop in zip(*mask.intervals, strict=True):
        counts += before[stop] - before[start]
    sums = np.add.reduceat(counts, owners.edges[:-1])
    return np.bincount(owners.owner, sums, owners.ranks).astype(np.int64)
