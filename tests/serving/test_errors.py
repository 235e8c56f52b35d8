"""Calls on caches: odd values of every argument are refused in words, and what is read may not be written."""

from __future__ import annotations

from typing import Any

import numpy as np
import odd_values
import pytest

import omnicupy as oc

Q, NEW = np.zeros((2, 4, 3, 8), np.float16), np.zeros((2, 2, 3, 8), np.float16)
RAGGED: dict[str, Any] = {
    "q": np.zeros((5, 4, 8), np.float16),
    "rows": np.array([0, 2, 5], np.int32),
    "max_rows": 3,
}
NONE: dict[str, Any] = {"scale": None, "sink_logits": None, "softcap": None, "return_lse": True, "out": None}
NONE |= {"config": None, "split": None, "rows": None, "max_rows": None}


def _caches(paged: bool, fp8: bool) -> dict[str, Any]:
    dtype = np.uint8 if fp8 else np.float16
    given: dict[str, Any] = {"lengths": np.array([5, 16], np.int32)}
    if paged:
        given |= {name: np.zeros((6, 4, 2, 8), dtype) for name in ("k_pages", "v_pages")}
        given["page_table"] = np.array([[0, 1, 2, 3], [3, 4, 5, 0]], np.int32)
    else:
        given |= {name: np.zeros((2, 2, 16, 8), dtype) for name in ("k", "v")}
    return given | ({"k_scale": 1.0, "v_scale": 1.0} if fp8 else {})


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_odd_values_never_fail_inside(paged: bool, fp8: bool, ragged: bool) -> None:
    arrays, kind = _caches(paged, fp8), oc.PagedKV if paged else oc.CachedKV
    call = {"q": Q, "mask": oc.cached()} | NONE | (RAGGED if ragged else {})
    starts = {name: call[name] for name in ("rows", "max_rows")}

    def attention(**given: Any) -> None:
        kv = given.pop("kv") if "kv" in given else kind(**{name: given.pop(name) for name in arrays})
        oc.attention(given.pop("q"), kv, **given)

    def plan(q: Any, mask: Any, softcap: Any, split: Any, rows: Any, max_rows: Any, **of_caches: Any) -> None:
        how: dict[str, Any] = {"softcap": softcap, "split": split, "rows": rows, "max_rows": max_rows}
        oc.plan(q, kind(**of_caches), mask, **how)

    def layer(**given: Any) -> None:
        step = oc.plan(call["q"], kind(**arrays), oc.cached(), **starts)
        attention(**given | {"mask": step})

    every = arrays | call
    attention(**every)
    of_plan = {name: every[name] for name in (*arrays, "q", "mask", "softcap", "split", "rows", "max_rows")}
    found = odd_values.raw_errors(attention, every) + odd_values.raw_errors(
        attention, call | {"kv": kind(**arrays)}
    )
    found += odd_values.raw_errors(plan, of_plan) + odd_values.raw_errors(layer, every)
    found += odd_values.raw_errors(lambda **given: repr(kind(**given)), arrays)
    assert not found


@pytest.mark.parametrize("slots", [None, np.array([0, 1, -1])])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("paged", [False, True])
def test_odd_values_never_fail_inside_of_append(paged: bool, fp8: bool, slots: Any) -> None:
    arrays, kind = _caches(paged, fp8), oc.PagedKV if paged else oc.CachedKV
    new = NEW if slots is None else np.zeros((3, 2, 8), np.float16)
    good = arrays | {"k_new": new, "v_new": new, "slots": slots}

    def append(k_new: Any, v_new: Any, slots: Any, **of_caches: Any) -> None:
        oc.append(kind(**of_caches), k_new, v_new, slots)

    append(**good)
    assert not odd_values.raw_errors(append, good)


def test_odd_values_never_fail_inside_of_rules() -> None:
    assert not odd_values.raw_errors(oc.cached, {"window": 3, "sink": 2, "tail": oc.causal(3)})
    rule = oc.cached(window=2, sink=1, tail=oc.causal(3))
    assert not odd_values.raw_errors(rule.mask, {"keys": 5, "q_len": 3, "k_len": 7, "sequence": 0})


WORDS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": np.zeros(())}, ValueError, r"q must have 4 axes .* got shape \(\)"),
    ({"split": np.array(1.0)}, TypeError, "split must be a number of keys or None, got numpy.ndarray"),
    ({"k_scale": 10**400}, ValueError, "k_scale must be finite and above 0 in float32"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), WORDS)
def test_words(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"q": Q, "split": None} | _caches(paged=True, fp8=True) | changes
    with pytest.raises(kind, match=message):
        oc.attention(given.pop("q"), mask=oc.cached(), split=given.pop("split"), k=oc.PagedKV(**given))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", ["lengths", "page_table", "rows", "sink_logits", "q", "k_pages"])
def test_out_may_not_overlap_what_is_read(name: str, ragged: bool) -> None:
    memory = np.zeros(4096, np.float32)
    given = {"q": Q.astype(np.float32)} | (RAGGED | {"q": np.zeros((5, 4, 8), np.float32)} if ragged else {})
    given |= {"sink_logits": np.zeros(4, np.float32)}
    caches = {
        n: x.astype(np.float32) if x.dtype == np.float16 else x for n, x in _caches(True, False).items()
    }
    if name == "rows" and not ragged:
        return
    of = caches if name in caches else given
    like = of[name]
    of[name] = memory[: like.size].view(like.dtype).reshape(like.shape)
    of[name][...] = like
    out = memory[: given["q"].size].reshape(given["q"].shape)
    q, kv, sinks = given.pop("q"), oc.PagedKV(**caches), given.pop("sink_logits")
    for mask in (oc.cached(), oc.plan(q, kv, oc.cached(), **given)):
        with pytest.raises(ValueError, match=f"^out must not overlap {name}"):
            oc.attention(q, kv, mask=mask, out=out, sink_logits=sinks, **given)


@pytest.mark.parametrize("name", ["lengths", "page_table", "slots"])
@pytest.mark.parametrize("written", ["k_pages", "v_pages", "k_scale"])
def test_append_may_not_write_what_it_reads(name: str, written: str) -> None:
    fp8 = written == "k_scale"
    caches, slots = _caches(paged=True, fp8=fp8), np.array([0, 1, -1]) if name == "slots" else None
    memory = np.zeros(4096, np.float32)
    shape, dtype = ((6, 4, 2), np.dtype(np.float32)) if fp8 else (caches[written].shape, np.dtype(np.float16))
    caches[written] = memory.view(dtype)[: int(np.prod(shape))].reshape(shape)
    like: Any = slots if name == "slots" else caches[name]
    same = memory.view(like.dtype)[: like.size].reshape(like.shape)
    same[...] = like
    if name == "slots":
        slots = same
    else:
        caches[name] = same
    new = NEW if slots is None else np.zeros((3, 2, 8), np.float16)
    before = memory.copy()
    with pytest.raises(ValueError, match=f"^{written} must not overlap {name}: it is read while"):
        oc.append(oc.PagedKV(**caches), new, new, slots)
    assert memory.tobytes() == before.tobytes()
