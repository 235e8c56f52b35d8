"""All ranks in one process: outputs, lse and gradients of the single-device engine, within its budget."""

from __future__ import annotations

from typing import Any

import gradient_cases
import numpy as np
import parallel_cases
import pytest
from gradient_cases import DTYPES, GradientCase

import omnicupy as oc
from omnicupy.parallel import Plan, attention_backward_of_ranks, attention_of_ranks, plan
from omnicupy.reference import budget, gradient_budget

CASES = 12  # of each kind of mask
WIDTHS = ((), (3, 16), (1, 20))  # of v, one of each; () for that of k
Which = int | list[int]


def _shards(made: Plan, x: Any, axis: int = 2, *, keys: bool = False) -> list[Any]:
    return [made.shard(x, rank, axis, keys=keys) for rank in range(made.ranks)]


def _run(made: Plan, case: GradientCase, which: Which = 0, wanted: Any = ("q", "k", "v")) -> tuple[Any, ...]:
    """out, lse, dq, dk and dv of all ranks together; gradients from the ranks' own out and lse."""
    dout, q, k, v, _, _, dlse = case.arrays
    q_parts, k_parts, v_parts = _shards(made, q), _shards(made, k, keys=True), _shards(made, v, keys=True)
    outs, lses = attention_of_ranks(q_parts, k_parts, v_parts, made, mask=which, return_lse=True)
    grads = attention_backward_of_ranks(
        *(_shards(made, dout), q_parts, k_parts, v_parts, outs, lses),
        plan=made,
        mask=which,
        dlse=None if dlse is None else _shards(made, dlse),
        wanted=wanted,
    )
    whole = [made.unshard(outs, 2), made.unshard(lses, 2)]
    for name, parts in zip("qkv", grads, strict=True):
        whole.append(None if parts is None else made.unshard(parts, 2, keys=name != "q"))
    return tuple(whole)


def _check(made: Plan, case: GradientCase, which: Which = 0) -> None:
    _within(_run(made, case, which), case, made)


def _within(found: tuple[Any, ...], case: GradientCase, made: Plan) -> None:
    """out, lse and gradients lie in the budget of a single device. case: the inputs, without any NaN."""
    (out, lse, *grads), given = found, case.arrays
    assert out.dtype == given.q.dtype
    worst = budget.compare(out, lse, budget.budget(given.q, given.k, given.v, case.mask))
    assert worst.ok, f"{made!r}, {case.label}: {worst}"
    # The budget is of the out and lse that the backward pass is given: those of the ranks.
    case = GradientCase(given._replace(out=out, lse=lse), case.masks, case.label)
    allowed = case.budget()
    if given.k.dtype.itemsize == 2:  # a rank's part of dk and dv is rounded before it is added
        allowed = _with_rounded_parts(allowed, made, case)
    worst = gradient_budget.compare(tuple(grads), allowed)
    assert worst.ok, f"{made!r}, {case.label}: {worst}"


def _with_rounded_parts(allowed: Any, made: Plan, case: GradientCase) -> Any:
    """The budget and half a unit of each part of dk and dv: at most u times the sum of the sizes of the parts."""
    u = 2.0 ** (-11 if case.arrays.k.dtype == np.float16 else -8)
    dq, dk, dv = allowed.allowed
    extra = [np.zeros_like(dk), np.zeros_like(dv)]
    for rank in range(made.ranks):
        rows = made.positions(rank)
        if not len(rows):
            continue
        part = gradient_budget.budget(
            *(np.ascontiguousarray(one[:, :, rows]) for one in case.arrays[:2]),
            *case.arrays[2:4],
            [_rows_of(mask, rows) for mask in (case.masks * len(dq) if len(case.masks) == 1 else case.masks)],
            out=case.arrays.out[:, :, rows],
            lse=case.arrays.lse[:, :, rows],
            dlse=None if case.arrays.dlse is None else case.arrays.dlse[:, :, rows],
        )
        for sums, exact in zip(extra, part.exact[1:], strict=True):
            sums += u * np.abs(exact).max(axis=-1) + 2.0**-25 * (exact != 0).any(axis=-1)
    return type(allowed)(allowed.exact, (dq, dk + extra[0], dv + extra[1]))


def _rows_of(mask: oc.Mask, rows: Any) -> oc.Mask:
    return oc.from_dense(mask.to_dense()[rows])


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("kind", parallel_cases.KINDS)
def test_random_cases(kind: str) -> None:
    """Every constructor, 2 to 16 ranks, every assignment, ranks that own nothing, all dtypes and kinds of inputs."""
    rng = np.random.default_rng(parallel_cases.KINDS.index(kind) + 100)
    for turn in range(CASES):
        mask = parallel_cases.case(rng, kind).mask
        _check(
            parallel_cases.made(rng, mask),
            gradient_cases.drawn(rng, [mask], DTYPES[turn % 4], WIDTHS[turn % 3]),
        )


def test_a_batch_of_masks() -> None:
    rng = np.random.default_rng(3)
    masks = [oc.random(80, seed) for seed in range(3)]
    case = gradient_cases.drawn(rng, masks, np.float32)
    _check(plan(masks, 4), case, [0, 1, 2])


def test_one_of_several_masks() -> None:
    masks = [oc.sliding_window(90, left=9), oc.causal(90)]
    made = plan(masks, 3)
    for which in (0, 1):
        _check(made, gradient_cases.made([masks[which]], (2, 1, 2), with_dlse=True), which)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_what_nobody_sees(dtype: Any) -> None:
    """Dead keys and rows that see nothing, at owners and in what would travel."""
    dense = np.random.default_rng(0).random((70, 70)) < 0.2
    dead_rows, dead_keys = [3, 4, 40, 69], [0, 17, 18, 50]
    dense[dead_rows] = False
    dense[:, dead_keys] = False
    for mask in (
        oc.from_dense(dense),
        oc.from_dense(dense) & oc.causal(70),
        oc.ranges([(5, 30, 9, 60)], 70, 70),
    ):
        rows, keys = ~mask.to_dense().any(axis=1), mask.dead_keys()
        case = gradient_cases.made([mask], (2, 2, 2), 8, dtype, with_dlse=True)
        made = plan(mask, 4)
        given = [array.copy() for array in case.arrays]
        for array, bad in zip(given, (rows, rows, keys, keys, rows, rows, rows), strict=True):
            array[:, :, bad] = np.nan
        found = _run(made, GradientCase(type(case.arrays)(*given), case.masks))
        _within(found, case, made)
        assert not found[2][:, :, rows].any()
        assert not found[3][:, :, keys].any()
        assert not found[4][:, :, keys].any()
        assert np.isneginf(found[1][:, :, rows]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_each_time_and_for_each_subset(dtype: Any) -> None:
    mask = oc.random(90, 2)
    case, made = gradient_cases.made([mask], (1, 2, 2), 16, dtype), plan(mask, 5)
    first = _run(made, case)
    for wanted in (("q", "k", "v"), ("k",), ("q", "v")):
        for name, a, b in zip(("", "", *"qkv"), _run(made, case, wanted=wanted), first, strict=True):
            assert a is None if name and name not in wanted else np.array_equal(a, b)


def test_a_scale() -> None:
    mask = oc.causal(40)
    case, made = gradient_cases.made([mask], (1, 1, 1), 8, np.float64), plan(mask, 3)
    q, k, v = (_shards(made, x) for x in case.arrays[1:4])
    outs = attention_of_ranks(q, k, v, made, scale=0.3)
    assert np.allclose(made.unshard(outs), oc.attention(*case.arrays[1:4], mask, scale=0.3), atol=1e-12)


def test_sinks_and_capped_scores() -> None:
    """Those of one device; the gradient of sinks is the sum of the ranks' parts, a rank without rows among them."""
    mask = oc.causal(40)
    made = plan(mask, 3, rows=[0] * 15 + [2] * 25)
    case = gradient_cases.made([mask], (2, 1, 2), 8, np.float64, with_dlse=True)
    dout, q, k, v, _, _, dlse = case.arrays
    scores: dict[str, Any] = {"sink_logits": np.array([0.5, -1.0]), "softcap": 2.0}
    wanted = ("q", "k", "v", "sink_logits")
    out, lse = oc.attention(q, k, v, mask, return_lse=True, **scores)
    expected = oc.attention_backward(dout, q, k, v, out, lse, mask, dlse=dlse, wanted=wanted, **scores)
    parts = [_shards(made, q), _shards(made, k, keys=True), _shards(made, v, keys=True)]
    outs, lses = attention_of_ranks(*parts, made, return_lse=True, **scores)
    *grads, sinks = attention_backward_of_ranks(
        *(_shards(made, dout), *parts, outs, lses),
        plan=made,
        dlse=_shards(made, dlse),
        wanted=wanted,
        **scores,
    )
    assert np.allclose(made.unshard(outs), out, atol=1e-12)
    assert len(sinks) == 3
    assert not sinks[1].any()
    for found, one in zip((*(made.unshard(part) for part in grads), sum(sinks)), expected, strict=True):
        assert np.allclose(found, one, atol=1e-12)


def _call(made: Plan, **changes: Any) -> Any:
    q = [np.zeros((1, 2, int(n), 8), np.float32) for n in made.rows.counts]
    k = [np.zeros((1, 1, int(n), 8), np.float32) for n in made.keys.counts]
    given = {"q": q, "k": k, "v": list(k), "plan": made} | changes
    return attention_of_ranks(**given)


def test_errors() -> None:
    made = plan(oc.causal(8), 2)
    wide = [np.zeros((1, 2, 4, 16), np.float32)] * 2
    with pytest.raises(TypeError, match="plan must be a Plan, got int"):
        _call(made, plan=3)
    with pytest.raises(ValueError, match="q must be a list with an array for each of 2 ranks, got 1"):
        _call(made, q=[np.zeros((1, 2, 4, 8), np.float32)])
    with pytest.raises(TypeError, match="attention_of_ranks: return_lse must be True or False"):
        _call(made, return_lse=1)
    rows = [np.zeros((1, 2, 4, 8), np.float32)] * 2
    keys, lse = [one[:, :1] for one in rows], [one[..., 0] for one in rows]
    given = {"dout": rows, "out": rows, "lse": lse, "dlse": lse}
    for name in given:
        with pytest.raises(
            ValueError, match=f"{name} must be a list with an array for each of 2 ranks, got 1"
        ):
            attention_backward_of_ranks(q=rows, k=keys, v=keys, plan=made, **given | {name: given[name][:1]})
        with pytest.raises(
            TypeError, match=f"{name} must be a list with an array for each of 2 ranks, got int"
        ):
            attention_backward_of_ranks(q=rows, k=keys, v=keys, plan=made, **given | {name: 3})
    with pytest.raises(ValueError, match="q must have the 4 rows of rank 1 under this plan"):
        _call(made, q=[np.zeros((1, 2, 4, 8), np.float32), np.zeros((1, 2, 5, 8), np.float32)])
    with pytest.raises(ValueError, match="k must have the 4 keys of rank 0"):
        _call(made, k=[np.zeros((1, 1, 3, 8), np.float32)] * 2)
    with pytest.raises(ValueError, match="the batch and head_dim of q"):
        _call(made, q=wide)
    with pytest.raises(ValueError, match=r"v the shape of k, its width aside, .* v \(1, 2, 4, 8\) on rank 0"):
        _call(made, v=[np.zeros((1, 2, 4, 8), np.float32)] * 2)
    with pytest.raises(ValueError, match="multiple of the heads of k"):
        _call(made, k=[np.zeros((1, 3, 4, 8), np.float32)] * 2, v=[np.zeros((1, 3, 4, 8), np.float32)] * 2)
    with pytest.raises(ValueError, match=r"heads that the plan was made for, \(4, 2, 8\), got \(2, 1, 8\)"):
        _call(plan(oc.causal(8), 2, heads=(4, 2, 8)))
    with pytest.raises(ValueError, match="one for each of 1 batch elements, got 2"):
        _call(made, mask=[0, 0])
    with pytest.raises(ValueError, match="must have shape"):
        _call(made, q=[np.zeros((4, 8))] * 2)
