"""The Hopper kernel over the planner's lists, packed tiles too: both sources run on the CPU, given their structs as
plans of calls on caches do, against float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cached_cases
import cuda_on_cpu
import numpy as np
import planned
import pytest
from cuda_on_cpu import aligned
from forward_on_cpu import Forward, fill_maps
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import variants
from omnicupy.gpu import cached_planning
from omnicupy.gpu.planning import score_fields, struct_of
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference import budget
from omnicupy.schedule.grid import Grid

pytestmark = [
    pytest.mark.in_turn(8),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

HEAD_DIM = 64
WORDS = (
    "sm90-64x64-s2-w8",
    "sm90-64x64-s2-w8-packed",
    "sm90-128x64-s2-w12-packed",
    "sm90-64x128-s3-w12-packed",
)
WRITTEN = ("row_offsets", "entries", "parts", "splits", "bit_tiles", "dead", "n_parts")
Array = NDArray[Any]


def _spec(word: str) -> AttnSpec:
    return CachedSpec.of(variants.parse(word, "sm_90", "bfloat16", HEAD_DIM))


@pytest.fixture(scope="module")
def library() -> Callable[[AttnSpec], Any]:
    return cuda_on_cpu.build


@pytest.fixture(scope="module")
def planner() -> Any:
    return planned.build()


class Cached(Forward):
    """A call on caches. masks: what the rule says of each sequence's length."""

    def __init__(
        self, problem: Problem, rule: oc.CachedRule, lengths: list[int], sm_count: int, **options: Any
    ) -> None:
        self.rule, self.lengths = rule, np.array(lengths, np.int32)
        masks = [
            oc.from_dense(cached_cases.dense(rule, n, problem.q_len, problem.k_len, b))
            for b, n in enumerate(lengths)
        ]
        super().__init__(problem, masks, tokens_first=True, sm_count=sm_count, seed=5, **options)

    def run_planned(self, spec: AttnSpec, library: Any, planner: Any) -> tuple[Array, Array, int]:
        """out and lse, and into how many parts the planner cut the block rows that it cut."""
        p = self.problem
        grid = Grid.of(spec, p, p.batch, sm_count=self.sm_count, l2_bytes=50 << 20, split=self.split)
        lists = cached_planning.lists_of(grid, self.rule)
        found = planned.run(planner, lists, self.lengths)
        fields = cached_planning._fields_of(grid, lists)
        arrays = tuple(self.arrays[name] for name in ("q", "k", "v", "out"))
        template = struct_of(grid, score_fields(p.head_dim**-0.5, self.softcap), fields, arrays)
        params = np.frombuffer(template, PARAMS[spec.kernel]).copy()[0:1].reshape(())
        need, partial_bytes = cached_planning._need_of(grid, lists)
        held: dict[str, Array] = {**self.arrays, "lse": aligned((p.batch, p.q_heads, p.q_len), np.float32)}
        held["partials"] = aligned(max(1, partial_bytes // 4), np.float32)
        for name in ("out", "lse", "partials"):
            held[name].fill(np.nan)
        held["counter"], held["arrivals"] = aligned(4, np.int32), aligned(max(1, need.arrivals), np.uint32)
        for name in ("counter", "arrivals"):
            held[name].fill(0)
        if self.sinks is not None:
            held["sink_logits"] = aligned(len(self.sinks), np.float32)
            held["sink_logits"][...] = self.sinks
        for name, array in held.items():
            params[name] = array.ctypes.data
        for name in WRITTEN:
            if name in (params.dtype.names or ()):
                params[name] = found.buffer.ctypes.data + lists.offsets[name]
        fill_maps(params, self, spec)
        blocks = grid.thread_blocks(lists.most_parts)[0]
        cuda_on_cpu.run(library(spec), spec, params, (blocks, 1), (), late=False)
        assert not held["counter"][:2].any()
        assert not held["arrivals"].any()
        return held["out"], held["lse"], int((found.splits[:, 0] >= 0).sum())


CASES: dict[str, tuple[int, list[int], Callable[[], oc.CachedRule]]] = {
    "one-row": (1, [0, 1, 64, 65, 200], lambda: oc.cached()),
    "window-and-sink": (1, [200, 130, 3], lambda: oc.cached(window=50, sink=4)),
    "tree": (9, [200, 9, 5], lambda: oc.cached(window=90, tail=cached_cases.TAILS["random"](9))),
    "chunk": (64, [200, 69, 70, 0, 133], lambda: oc.cached()),
    "images": (23, [200, 70], lambda: oc.cached(window=150, tail=[oc.prefix(23, 10), oc.full(23)])),
}


def _compare(call: Cached, spec: AttnSpec, library: Any, planner: Any) -> int:
    call.poison()
    with np.errstate(all="ignore"):
        expected = budget.budget(*(call.arrays[name] for name in "qkv"), call.mask, **call.changes)
    out, lse, parts = call.run_planned(spec, library, planner)
    found = budget.compare(out, lse, expected)
    assert found.ok, str(found)
    return parts


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("group", [2, 7, 8, 71])
@pytest.mark.parametrize("case", CASES)
def test_against_float64(
    case: str, group: int, word: str, library: Callable[[AttnSpec], Any], planner: Any
) -> None:
    spec = _spec(word)
    q_len, lengths, rule = CASES[case]
    kv_heads = 2 if group < 64 else 1
    problem = Problem(len(lengths), group * kv_heads, kv_heads, q_len, 200, HEAD_DIM, "bfloat16")
    _compare(Cached(problem, rule(), lengths, 8), spec, library, planner)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("q_len", [1, 5])
def test_split_rows(q_len: int, word: str, library: Callable[[AttnSpec], Any], planner: Any) -> None:
    """Few sequences of many keys, on a device that they do not fill: parts that are merged."""
    for lengths in ([4000], [3999, 0, 65], [q_len, 4000, 1500]):
        problem = Problem(len(lengths), 4, 2, q_len, 4000, HEAD_DIM, "bfloat16")
        call = Cached(problem, oc.cached(window=3000, sink=3), lengths, 132)
        assert _compare(call, _spec(word), library, planner) > 1


SINKS = (-np.inf, 0.0, 30.0, 2.0, 1e4, -3.0)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("softcap", "split"), [(None, None), (20.0, None), (20.0, 384)])
def test_score_changes(
    softcap: float | None, split: int | None, word: str, library: Callable[[AttnSpec], Any], planner: Any
) -> None:
    """Sinks and soft caps, of rows in one part and of split ones; a row that sees nothing has no use for a sink."""
    spec = replace(_spec(word), softcap=softcap is not None)
    for q_len, lengths in ((1, [4000]), (5, [3999, 0, 65, 3])):
        problem = Problem(len(lengths), 6, 2, q_len, 4000, HEAD_DIM, "bfloat16")
        options = {"softcap": softcap, "sinks": SINKS, "factor": 4.0, "split": split}
        call = Cached(problem, oc.cached(window=3000, sink=3), lengths, 132, **options)
        assert _compare(call, spec, library, planner) > 1


def _split(call: Cached, lengths: Sequence[int], spec: AttnSpec, library: Any, planner: Any) -> Any:
    call.lengths[...] = lengths
    out, lse, _ = call.run_planned(spec, library, planner)
    return out.view(np.uint16).copy(), lse.view(np.uint32).copy()


@pytest.mark.parametrize("word", WORDS)
def test_bits_of_a_split_are_those_of_the_sequence_alone(
    word: str, library: Callable[[AttnSpec], Any], planner: Any
) -> None:
    """The same caches, as a replayed graph has them, for other lengths and on other devices: whatever the others are,
    the bits of a sequence follow from its own length.
    """
    spec, found = _spec(word), {}
    for sm_count, every in (
        (132, ([3000, 64, 0], [1, 64, 3000], [3000, 3000, 3000], [65, 385, 384], [3000, 65, 1])),
        (8, ([3000, 385, 1],)),
    ):
        problem = Problem(3, 4, 2, 2, 3000, HEAD_DIM, "bfloat16")
        call = Cached(problem, oc.cached(window=2500, sink=3), [3000] * 3, sm_count, split=384)
        for lengths in every:
            out, lse = _split(call, lengths, spec, library, planner)
            for b, length in enumerate(lengths):
                before = found.setdefault((b, length), (out[b], lse[b]))
                assert (out[b] == before[0]).all(), (lengths, b)
                assert (lse[b] == before[1]).all(), (lengths, b)
    one = Problem(1, 4, 2, 2, 3000, HEAD_DIM, "bfloat16")
    alone = Cached(one, oc.cached(window=2500, sink=3), [3000], 132, split=384)
    for name in ("q", "k", "v"):
        alone.arrays[name][...] = call.arrays[name][:1]
    out, lse = _split(alone, [3000], spec, library, planner)
    assert (out[0] == found[0, 3000][0]).all()
    assert (lse[0] == found[0, 3000][1]).all()
