"""Arguments of plans, of shards and of calls of all ranks that only look right: what each is told."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import odd_values
import pytest

import omnicupy as oc
from omnicupy.parallel import Speeds, attention_backward_of_ranks, attention_of_ranks, plan

MASK = oc.causal(8)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no mask": (lambda: plan(3, 2), TypeError, "masks must be a Mask or a list of masks, got int"),
    "no masks": (lambda: plan([], 2), ValueError, "at least one mask"),
    "shapes": (lambda: plan([MASK, oc.full(9)], 2), ValueError, r"\(8, 8\) and \(9, 9\)"),
    "ranks": (lambda: plan(MASK, 0), ValueError, "ranks must be at least 1, got 0"),
    "float ranks": (lambda: plan(MASK, 2.0), TypeError, "ranks must be an integer"),
    "node": (lambda: plan(MASK, 2, node=0), ValueError, "node must be at least 1"),
    "too many": (lambda: plan(MASK, 10**6), oc.UnsupportedError, "at most 16,384 ranks"),
    "heads": (lambda: plan(MASK, 2, heads=8), TypeError, r"heads must be \(q_heads, kv_heads, head_dim\)"),
    "groups": (lambda: plan(MASK, 2, heads=(6, 4, 8)), ValueError, "multiple of kv_heads"),
    "weights": (lambda: plan(MASK, 2, weights=[1, 2]), ValueError, "a positive number for each of 1 masks"),
    "rows": (lambda: plan(MASK, 2, rows="striped"), ValueError, "one of contiguous, zigzag, two_ended"),
    "names of weights": (
        lambda: plan(MASK, 2, weights=["1"]),
        TypeError,
        r"weights\[0\] must be a number, got str",
    ),
    "no list of weights": (
        lambda: plan(MASK, 2, weights="1"),
        TypeError,
        "weights must be a list of numbers",
    ),
    "a huge weight": (lambda: plan(MASK, 2, weights=[10**400]), ValueError, "a positive number for each"),
    "huge heads": (
        lambda: plan(MASK, 2, heads=(10**400, 1, 8)),
        ValueError,
        "heads must be at most 2147483647",
    ),
    "masked owners": (
        lambda: plan(MASK, 2, rows=np.ma.zeros(8, int)),
        TypeError,
        "rows must be a plain NumPy array",
    ),
    "owners": (lambda: plan(MASK, 2, rows=[0, 1]), ValueError, r"rows must have shape \(8,\)"),
    "owner": (lambda: plan(MASK, 2, keys=[2] * 8), ValueError, "ranks from 0 to 1, got 2"),
    "float owners": (lambda: plan(MASK, 2, rows=[0.0] * 8), TypeError, "rows must hold integers"),
    "keys": (lambda: plan(MASK, 2, keys="best"), ValueError, "'rows' or 'contiguous'"),
    "keys as rows": (lambda: plan(oc.full(4, 5), 2, keys="rows"), ValueError, "as many keys as rows"),
    "speeds": (lambda: plan(MASK, 2, speeds=3), TypeError, "speeds must be a Speeds"),
    "rank": (lambda: plan(MASK, 2).local(2), ValueError, "local: rank must be from 0 to 1, got 2"),
    "mask": (lambda: plan(MASK, 2).local(0, 1), ValueError, "mask must name masks of the plan, from 0 to 0"),
    "shard": (lambda: plan(MASK, 2).shard(np.zeros(9), 0, 0), ValueError, "plan's 8 rows along axis 0"),
    "axis": (lambda: plan(MASK, 2).shard(np.zeros(8), 0), ValueError, "axis must be an axis of x"),
    "no array": (lambda: plan(MASK, 2).shard([1], 0), TypeError, "x must be an array"),
    "a name of speeds": (lambda: Speeds(flops="fast"), TypeError, "Speeds: flops must be a number, got str"),
    "no speed": (lambda: Speeds(near=0), ValueError, "Speeds: near must be above 0"),
    "NaN": (lambda: Speeds(launch_s=float("nan")), ValueError, "Speeds: launch_s must be above 0"),
    "a mask in place of its place": (
        lambda: plan(MASK, 2).local(0, MASK),  # type: ignore[arg-type]
        TypeError,
        "mask must name masks of the plan by their places, 0 for the first, got a Mask; make the plan of it",
    ),
    "axis None": (
        lambda: plan(MASK, 2).shard(np.zeros(8), 0, None),
        TypeError,
        "shard: axis must be an integer",
    ),
    "axis True": (
        lambda: plan(MASK, 2).shift(np.zeros((1, 8)), 1, True),
        TypeError,
        "shift: axis must be an integer",
    ),
    "keys by name": (
        lambda: plan(MASK, 2).shard(np.zeros(8), 0, 0, keys="no"),
        TypeError,
        "keys must be True or False",
    ),
    "no parts": (
        lambda: plan(MASK, 2).unshard(None),
        TypeError,
        "parts must be a list with an array for each rank",
    ),
    "dtypes": (
        lambda: plan(MASK, 2).unshard([np.zeros((4, 1)), np.ones((4, 1), "f4")]),
        TypeError,
        "dtype of parts",
    ),
    "other axes": (
        lambda: plan(MASK, 2).unshard([np.zeros((4, 1)), np.zeros((4, 2))]),
        ValueError,
        "the shape of parts",
    ),
    "other axis": (
        lambda: plan(MASK, 2).unshard([np.zeros((4, 1)), np.zeros((1, 4, 1))]),
        ValueError,
        "shape of parts",
    ),
    "half": (
        lambda: plan(MASK, 2).shift(np.arange(8), fill=0.5),
        ValueError,
        "a number that int64 holds, got 0.5",
    ),
    "below": (
        lambda: plan(MASK, 2).shift(np.zeros(8, "u1"), fill=-100),
        ValueError,
        "a number that uint8 holds, got -100",
    ),
    "fills": (
        lambda: plan(MASK, 2).shift(np.arange(8), fill=[1]),
        TypeError,
        "fill must be a number, got list",
    ),
    "parts": (lambda: plan(MASK, 2).unshard([np.zeros(8)], 0), ValueError, "parts of 2 ranks, got 1"),
    "part": (lambda: plan(MASK, 2).unshard([np.zeros(8)] * 2, 0), ValueError, "4 rows of rank 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


Q = [np.zeros((1, 2, 4, 8), np.float32)] * 2
ROWS = [np.zeros((1, 2, 4), np.float32)] * 2
FORWARD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no list": ({"k": None}, TypeError, "k must be a list with an array for each of 2 ranks, got NoneType"),
    "no array": ({"q": [Q[0], "x"]}, ValueError, "q must have shape .*, got str on rank 1"),
    "batch": (
        {name: [Q[0], np.zeros((2, 2, 4, 8), "f4")] for name in "qkv"},
        ValueError,
        "q must have one batch",
    ),
    "heads": (
        {name: [Q[0], np.zeros((1, 1, 4, 8), "f4")] for name in "kv"},
        ValueError,
        "k must have one batch",
    ),
    "widths": (
        {"v": [Q[0], np.zeros((1, 2, 4, 4), "f4")]},
        ValueError,
        r"v must have .* \(1, 2, 4, 4\) on rank 1",
    ),
    "dtypes": ({name: [Q[0], Q[0].astype("f2")] for name in "qkv"}, ValueError, "one dtype on all ranks"),
    "return_lse": ({"return_lse": 1}, TypeError, "attention_of_ranks: return_lse must be True or False"),
}
BACKWARD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no list": ({"dout": 3}, TypeError, "dout must be a list with an array for each of 2 ranks, got int"),
    "fewer": ({"lse": ROWS[:1]}, ValueError, "lse must be a list with an array for each of 2 ranks, got 1"),
    "more": ({"dlse": ROWS * 2}, ValueError, "dlse must be a list with an array for each of 2 ranks, got 4"),
    "no array": (
        {"out": [Q[0], None]},
        ValueError,
        r"out must have the shape \(1, 2, 4, 8\) on rank 1, .* NoneType",
    ),
    "rows": (
        {"dout": [Q[0][:, :, :3], Q[0]]},
        ValueError,
        r"dout must have .* on rank 0, .* got \(1, 2, 3, 8\)",
    ),
    "wanted": ({"wanted": "q"}, TypeError, "wanted must be a list or tuple of names"),
}


@pytest.mark.parametrize("name", FORWARD)
def test_bad_arguments_of_all_ranks_are_named(name: str) -> None:
    changes, kind, message = FORWARD[name]
    given: dict[str, Any] = {"q": Q, "k": Q, "v": Q, "plan": plan(MASK, 2)}
    attention_of_ranks(**given)
    with pytest.raises(kind, match=message):
        attention_of_ranks(**given | changes)


@pytest.mark.parametrize("name", BACKWARD)
def test_bad_arguments_of_gradients_are_named_also_where_no_rank_computes(name: str) -> None:
    changes, kind, message = BACKWARD[name]
    alone = plan(oc.from_dense(np.zeros((8, 8), bool)), 2, keys=[0] * 8)  # rank 1 has rows, and no key
    keys = [np.zeros((1, 2, n, 8), np.float32) for n in (8, 0)]
    given: dict[str, Any] = {"dout": Q, "q": Q, "out": Q, "lse": ROWS}
    for made, shards in ((plan(MASK, 2), Q), (alone, keys)):
        every = given | {"k": shards, "v": shards, "plan": made}
        attention_backward_of_ranks(**every)
        with pytest.raises(kind, match=message):
            attention_backward_of_ranks(**every | changes)


def test_a_node_may_be_larger_than_all_ranks() -> None:
    wanted = plan(MASK, 4, node=4)
    for node in (5, sys.maxsize, 10**30):
        made = plan(MASK, 4, node=node)
        assert (made.name, made.positions(1).tolist()) == (wanted.name, wanted.positions(1).tolist())
        assert made.stats().far_received.sum() == 0


def test_odd_values_never_fail_inside() -> None:
    made, x = plan(MASK, 2), np.zeros((1, 1, 8, 4))
    shards = [made.shard(x, rank) for rank in range(2)]
    outs, lses = attention_of_ranks(shards, shards, shards, made, return_lse=True)
    of_call: dict[str, Any] = {"q": shards, "k": shards, "v": shards, "plan": made, "mask": 0, "scale": None}
    of_call |= {"sink_logits": None, "softcap": None}
    of_plan = {
        "masks": MASK,
        "ranks": 2,
        "node": 8,
        "heads": None,
        "weights": None,
        "rows": None,
        "keys": None,
    }
    results = {"dout": outs, "out": outs, "lse": lses, "dlse": None, "wanted": ("q", "k")}
    calls: list[tuple[Any, dict[str, Any]]] = [
        (plan, of_plan | {"speeds": None}),
        (
            Speeds,
            dict.fromkeys(("flops", "near", "far", "near_s", "far_s", "launch_s", "split_s", "copied"), 1.0),
        ),
        (made.shard, {"x": x, "rank": 0, "axis": -2, "keys": False}),
        (made.unshard, {"parts": shards, "axis": -2, "keys": False}),
        (made.shift, {"x": x, "by": 1, "axis": -2, "fill": 0, "mask": None}),
        *((one, {"rank": 0, "mask": 0}) for one in (made.local, made.locals, made.exchange)),
        *((one, {"rank": 0}) for one in (made.positions, made.key_positions)),
        (made.travels, {"mask": 0}),
        (attention_of_ranks, of_call | {"return_lse": False}),
        (attention_backward_of_ranks, of_call | results),
    ]
    found = []
    for call, good in calls:
        call(**good)
        found += odd_values.raw_errors(call, good)
    assert not found
