"""sink_logits and softcap on NumPy arrays, both passes, against float64 and against what defines them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc
from omnicupy.reference import budget, gradient_budget

BATCH, Q_HEADS, KV_HEADS, ROWS, KEYS, DIM = 2, 4, 2, 70, 90, 16
DTYPES: list[Any] = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SINKS = {
    "none": None,
    "each kind": (-np.inf, 0.0, 1.0, 30.0),
    "above every score": (1e4, 1e4, 1e4, 1e4),
    "far below": (-1e4, -1e4, -30.0, -np.inf),
}


def wide(dtype: Any) -> Any:
    return np.float64 if dtype == np.float64 else np.float32


def inputs(dtype: Any, factor: float = 1.0) -> dict[str, Any]:
    """dout, q, k and v, scores `factor` times as large as those of normal numbers, and a mask with an empty row and a
    dead key, which hold NaN.
    """
    rng = np.random.default_rng(5)
    shapes = {"dout": (Q_HEADS, ROWS), "q": (Q_HEADS, ROWS), "k": (KV_HEADS, KEYS), "v": (KV_HEADS, KEYS)}
    found = {name: rng.standard_normal((BATCH, *shape, DIM)) for name, shape in shapes.items()}
    found["q"] *= factor
    found = {name: array.astype(dtype) for name, array in found.items()}
    seen = rng.random((ROWS, KEYS)) < 0.7
    seen[5], seen[:, 7] = False, False
    found["q"][:, :, 5] = found["dout"][:, :, 5] = found["k"][:, :, 7] = found["v"][:, :, 7] = np.nan
    return found | {"mask": oc.from_dense(seen) & oc.sliding_window(ROWS, KEYS, left=60, right=40)}


def forward(given: dict[str, Any], **options: Any) -> Any:
    arrays = (given[name] for name in ("q", "k", "v", "mask"))
    return oc.attention(*arrays, return_lse=True, **options)


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda one: np.dtype(one).name)
@pytest.mark.parametrize("sinks", SINKS, ids=lambda one: one.replace(" ", "-"))
@pytest.mark.parametrize(("softcap", "factor"), [(None, 1.0), (50.0, 8.0), (20.0, 8.0), (2.0, 30.0)])
def test_both_passes_keep_their_budgets(dtype: Any, sinks: str, softcap: float | None, factor: float) -> None:
    given = inputs(dtype, factor)
    sink_logits = None if SINKS[sinks] is None else np.array(SINKS[sinks], wide(dtype))
    options: dict[str, Any] = {"sink_logits": sink_logits, "softcap": softcap}
    out, lse = forward(given, **options)
    arrays = [given[name] for name in ("q", "k", "v")]
    assert (found := budget.compare(out, lse, budget.budget(*arrays, given["mask"], **options))).ok, str(
        found
    )
    assert (out[:, :, 5] == 0).all()
    assert (lse[:, :, 5] == -np.inf).all()
    dlse = np.random.default_rng(6).standard_normal(lse.shape).astype(lse.dtype)
    wanted = ("q", "k", "v", *(() if sink_logits is None else ("sink_logits",)))
    for of_lse in (None, dlse):
        expected = gradient_budget.budget(
            given["dout"], *arrays, given["mask"], out=out, lse=lse, dlse=of_lse, **options
        )
        grads = oc.attention_backward(
            given["dout"], *arrays, out, lse, given["mask"], dlse=of_lse, wanted=wanted, **options
        )
        assert len(grads) == len(wanted)
        assert (result := gradient_budget.compare(grads, expected)).ok, str(result)
        assert (grads[0][:, :, 5] == 0).all()
        assert all((grad[:, :, 7] == 0).all() for grad in grads[1:3])


def test_lse_holds_no_sink_and_out_is_shared() -> None:
    given = inputs(np.float64)
    sink_logits = np.array([-np.inf, 0.0, 3.0, 30.0])
    plain, lse = forward(given)
    out, with_sinks = forward(given, sink_logits=sink_logits)
    assert np.array_equal(lse, with_sinks)
    share = 1 / (1 + np.exp(sink_logits[:, None] - np.where(lse == -np.inf, 0, lse)))
    np.testing.assert_allclose(out, plain * share[..., None], rtol=1e-12, atol=1e-300)
    assert np.array_equal(out[:, 0], plain[:, 0])


def test_a_sink_is_a_key_of_its_own_without_a_value() -> None:
    """Appended as a key whose score is the logit, and whose value is 0."""
    given = inputs(np.float64)
    q, k, v = (np.nan_to_num(given[name]) for name in ("q", "k", "v"))
    logit = 1.5
    one = np.concatenate([q, np.ones_like(q[..., :1])], axis=3)
    keys = np.concatenate([k, np.zeros_like(k[..., :1])], axis=3)
    own = np.zeros_like(keys[:, :, :1])
    own[..., -1] = logit / 0.25
    seen = np.concatenate([given["mask"].to_dense(), np.ones((ROWS, 1), bool)], axis=1)
    values = np.concatenate([np.pad(v, ((0, 0),) * 3 + ((0, 1),)), np.zeros_like(own)], axis=2)
    plain = oc.attention(one, np.concatenate([keys, own], axis=2), values, oc.from_dense(seen), scale=0.25)
    out = oc.attention(q, k, v, given["mask"], scale=0.25, sink_logits=np.full(Q_HEADS, logit))
    np.testing.assert_allclose(out, plain[..., :-1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("options", [{"softcap": 1.5}, {"sink_logits": np.array([-np.inf, -1.0, 0.5, 2.0])}])
@pytest.mark.parametrize("with_lse", [False, True])
def test_gradients_are_those_of_differences(options: dict[str, Any], with_lse: bool) -> None:
    given = inputs(np.float64)
    given = {name: np.nan_to_num(one) if name != "mask" else one for name, one in given.items()}
    rng = np.random.default_rng(7)
    dlse = rng.standard_normal((BATCH, Q_HEADS, ROWS)) if with_lse else np.zeros((BATCH, Q_HEADS, ROWS))

    def loss(changed: dict[str, Any], more: dict[str, Any]) -> float:
        out, lse = forward(given | changed, **more)
        return float((out * given["dout"]).sum() + (np.where(lse == -np.inf, 0, lse) * dlse).sum())

    out, lse = forward(given, **options)
    arrays = [given[name] for name in ("dout", "q", "k", "v")]
    wanted = ("q", "k", "v", *(("sink_logits",) if "sink_logits" in options else ()))
    grads = oc.attention_backward(
        *arrays, out, lse, given["mask"], dlse=dlse if with_lse else None, wanted=wanted, **options
    )
    step = 1e-6
    for name, grad in zip(wanted, grads, strict=True):
        base = options[name] if name == "sink_logits" else given[name]
        direction = rng.standard_normal(base.shape)
        moved = [base + sign * step * direction for sign in (1, -1)]
        if name == "sink_logits":
            up, down = (loss({}, options | {name: one}) for one in moved)
        else:
            up, down = (loss({name: one}, options) for one in moved)
        np.testing.assert_allclose((grad * direction).sum(), (up - down) / (2 * step), rtol=1e-6, atol=1e-7)


def test_a_share_that_vanishes_leaves_the_gradient_of_lse() -> None:
    """P and sigmoid(lse - sink) both underflow; what dlse says stays as it is without a sink."""
    given = inputs(np.float32)
    arrays = [given[name] for name in ("dout", "q", "k", "v")]
    out, lse = forward(given)
    dlse = np.random.default_rng(8).standard_normal(lse.shape).astype(np.float32)
    nothing = np.zeros_like(arrays[0])
    plain = oc.attention_backward(nothing, *arrays[1:], out, lse, given["mask"], dlse=dlse)
    for logit in (40.0, 90.0, 1e4, 3e38):
        sink_logits = np.full(Q_HEADS, logit, np.float32)
        out, lse = forward(given, sink_logits=sink_logits)
        found = oc.attention_backward(*arrays, out, lse, given["mask"], dlse=dlse, sink_logits=sink_logits)
        for one, other in zip(found[:2], plain[:2], strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_gradients_of_sinks_do_not_depend_on_what_else_is_wanted() -> None:
    given = inputs(np.float32)
    arrays = [given[name] for name in ("dout", "q", "k", "v")]
    options: dict[str, Any] = {"sink_logits": np.array([-1.0, 0.0, 1.0, 2.0], np.float32), "softcap": 5.0}
    out, lse = forward(given, **options)

    def sinks(*wanted: str) -> Any:
        found = oc.attention_backward(*arrays, out, lse, given["mask"], wanted=wanted, **options)
        return found[3]

    assert sinks("sink_logits").dtype == np.float32
    assert np.array_equal(sinks("sink_logits"), sinks("q", "sink_logits", "k", "v"))
    found = oc.attention_backward(*arrays, out, lse, given["mask"], wanted=("sink_logits",), **options)
    assert found[:3] == (None, None, None)


def test_a_large_cap_changes_little_and_a_small_one_much() -> None:
    given = inputs(np.float64)
    plain, _ = forward(given)
    assert np.abs(forward(given, softcap=1e6)[0] - plain).max() < 1e-9
    assert np.abs(forward(given, softcap=0.1)[0] - plain).max() > 0.1


def test_out_must_not_overlap_sink_logits() -> None:
    q = np.zeros((1, 4, 1, 8), np.float32)
    with pytest.raises(ValueError, match="out must not overlap sink_logits"):
        oc.attention(q, q, q, sink_logits=(out := np.zeros_like(q)).ravel()[:4], out=out)


def test_parts_of_the_keys_share_all_gradients_but_those_of_sinks() -> None:
    rng = np.random.default_rng(0)
    dout, q, k, v = rng.standard_normal((4, 1, 2, 40, 8))
    mask, sinks = oc.causal(40), np.array([0.3, 1.0])
    out, lse = oc.attention(q, k, v, mask, sink_logits=sinks, return_lse=True)
    how: dict[str, Any] = {"sink_logits": sinks, "wanted": ("q", "k", "v", "sink_logits")}
    whole = oc.attention_backward(dout, q, k, v, out, lse, mask, **how)
    parts = [
        oc.attention_backward(dout, q, k[:, :, keys], v[:, :, keys], out, lse, mask[:, keys], **how)
        for keys in (slice(0, 20), slice(20, 40))
    ]
    assert np.allclose(parts[0][0] + parts[1][0], whole[0], atol=1e-13)
    for name in (1, 2):
        assert np.allclose(np.concatenate([part[name] for part in parts], 2), whole[name], atol=1e-13)
    assert np.allclose(parts[0][3], whole[3])  # every row sees one of its keys
    assert np.abs(parts[0][3] + parts[1][3] - whole[3]).max() > 0.05
    rows = [
        oc.attention_backward(
            *(one[:, :, a:b] for one in (dout, q)), k, v, out[:, :, a:b], lse[:, :, a:b], mask[a:b, :], **how
        )
        for a, b in ((0, 20), (20, 40))
    ]
    for name in (1, 2, 3):
        assert np.allclose(rows[0][name] + rows[1][name], whole[name], atol=1e-13)
