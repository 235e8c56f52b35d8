"""Argument checks of calls on a CachedKV: the only module that words their argument errors.

What q, k, v, scale, out and config must be is check.py's; here is what lengths and the rule add.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn

import numpy as np

from omnicupy.call import check, check_fp8, check_paged, check_ragged
from omnicupy.call.arrays import on_gpu as is_on_gpu
from omnicupy.call.problem import Problem, split_of, type_name
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.arguments import at_least_one, integer, plain_array
from omnicupy.masks.mask import Mask
from omnicupy.serving.caches import CACHES, AnyKV, PagedKV, pools_of, sizes_of
from omnicupy.serving.rule import CachedRule
from omnicupy.serving.step import CachedStep

LENGTHS_DTYPE = np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class CachedCall:
    """A call on a CachedKV that was checked. problem: its k_len is the capacity.  scale, softcap, split: as in
    check.Call.  total_rows: rows of all sequences, where each has a number of its own, of which the problem's q_len is
    the most; None where all have q_len.
    """

    problem: Problem
    rule: CachedRule
    scale: float
    softcap: float | None = None
    split: int | None = None
    total_rows: int | None = None


def call(
    q: Any,
    kv: AnyKV,
    v: Any,
    rule: Any,
    *,
    scale: float | None = None,
    sink_logits: Any = None,
    softcap: float | None = None,
    out: Any = None,
    config: AttnSpec | None = None,
    split: int | None = None,
    max_length: Any = None,
    rows: Any = None,
    max_rows: Any = None,
) -> CachedCall:
    """Check the arguments of `attention` with a CachedKV before any work. Arrays are not read, but for lengths on the
    host.

    v: None, as the CachedKV holds values.  rule: what `cached` returned.  max_length: that of `prepare`.  rows,
    max_rows: those of `attention`.
    Raises TypeError for an argument of a wrong type or dtype, ValueError for a wrong shape, value or layout,
    UnsupportedError for a config that does not read such a cache.
    """
    if v is not None:
        advice = "pass it as mask=" if isinstance(v, (CachedRule, CachedStep, Mask)) else "leave it out"
        raise TypeError(
            f"v must be left out where k is a {type(kv).__name__}, which holds the values, got {type_name(v)}; {advice}"
        )
    scores: dict[str, Any] = {"scale": scale, "sink_logits": sink_logits, "softcap": softcap}
    ragged = rows is not None or max_rows is not None
    like, target = (check_ragged.stand_in(q, rows, max_rows, rule), None) if ragged else (q, out)
    problem, factor, cap = check.arrays(
        like, *check_paged.arrays_of(like, kv, target), out=target, config=config, **scores
    )
    if ragged and out is not None:
        check_ragged.check_out(out, q, kv, problem.value_dim)
        check_fp8.check_out(out, q, kv)
    if not isinstance(rule, CachedRule):
        _refuse_rule(rule, kv)
    _check_lengths(q, kv.lengths, problem)
    if out is not None:
        check_out_apart(out, kv, rows, sink_logits)
    if rule.tail is not None:
        rule.check_tail("mask", problem.q_len)
        if len(rule.tail) not in (1, problem.batch):
            raise ValueError(
                f"mask: tail must hold one Mask per sequence ({problem.batch}), got {len(rule.tail)}; pass a single "
                "Mask to share it"
            )
    if max_length is not None:
        _check_max_length(max_length, problem.k_len)
    if isinstance(kv, PagedKV) and isinstance(q, np.ndarray):
        check_paged.check_entries(kv, rule, counts_of(rows, problem))
    return CachedCall(problem, rule, factor, cap, split_of(split), q.shape[0] if ragged else None)


def check_out_apart(out: Any, kv: AnyKV, rows: Any, sink_logits: Any) -> None:
    """What says which keys and rows there are is read while `out` is written. Of a device's arrays that is looked at by
    no warm call, so by no first one.
    """
    beside = {"sink_logits": sink_logits}
    if isinstance(out, np.ndarray):
        beside |= {"lengths": kv.lengths, "page_table": pools_of(kv)[2], "rows": rows}
    check.check_apart("out", out, beside, f"{check.READ_WHILE_WRITTEN}; pass another array")


def counts_of(rows: Any, problem: Problem) -> list[int]:
    """How many rows each sequence has, on the host."""
    return [problem.q_len] * problem.batch if rows is None else np.diff(rows).tolist()


def check_is_cache(k: object) -> None:
    """Raises TypeError for a rule of `cached` where k is no CachedKV or PagedKV."""
    if not isinstance(k, CACHES):
        raise TypeError(
            f"k must be a CachedKV or PagedKV where mask is a rule of cached(), got {type_name(k)}; pass "
            "CachedKV(k, v, lengths), or the Mask for one length, cached(...).mask(length, q_len)"
        )


def step_shapes(q: Any, kv: AnyKV, max_rows: int | None = None) -> tuple[Any, ...]:
    """What a step keeps of the arrays that it was made for: CachedStep.shapes."""
    return tuple(q.shape), sizes_of(kv), max_rows


def behind_step(step: CachedStep, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a layer behind a step: where it names no config or split, those of the step; its rows. Raises
    ValueError where the step was made for a softcap that is not the layer's.
    """
    mine = given["softcap"]
    if step.softcap is not None and (mine is None or (isinstance(mine, Real) and mine != step.softcap)):
        raise ValueError(
            f"softcap must be that of the step, {step.softcap}, got {mine}; name it in each layer, or leave it out of "
            "oc.plan"
        )
    names = [name for name in ("config", "split") if given[name] is None]
    own = {name: getattr(step, name) for name in names}
    return given | own | ({} if step.rows is None else {"rows": step.rows, "max_rows": step.shapes[2]})


def fits_step(q: Any, kv: AnyKV, step: CachedStep, rows: Any = None, max_rows: Any = None) -> None:
    """Raises ValueError unless a layer's arrays are like those that the step was made for, and its lengths the same.
    rows, max_rows: those of the layer, None where it leaves them to the step.
    """
    most = step.shapes[2] if max_rows is None else max_rows
    if max_rows is not None and type(max_rows) is not int:
        most = at_least_one("attention", "max_rows", max_rows)
    try:
        shapes = step_shapes(q, kv, most)
    except (AttributeError, TypeError, ValueError, IndexError):  # no arrays: the other checks say so
        check.arrays(q, *check_paged.arrays_of(q, kv, None))
        raise
    if shapes != step.shapes:
        made, mine = (
            f"{of[0]}" if of[2] is None else f"{of[0]}, max_rows {of[2]}" for of in (step.shapes, shapes)
        )
        raise ValueError(
            f"mask: the step was made for q of shape {made} and caches of (heads, capacity) {step.shapes[1]}, got "
            f"{mine} and {shapes[1]}; make another with oc.plan"
        )
    for name, mine, other in (("lengths", kv.lengths, step.lengths), ("rows", rows, step.rows)):
        if mine is other or (name == "rows" and mine is None):
            continue
        if not isinstance(mine, np.ndarray) and not hasattr(mine, "data_ptr"):
            check_paged.check_array(name, mine)
        if other is None or address_of(mine) != address_of(other):
            raise ValueError(
                f"mask: the step was made of another array of {name}; pass the same one to every layer"
            )


def address_of(array: Any) -> Any:
    """Where an array of lengths begins, on the host or a device."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return array.data_ptr() if hasattr(array, "data_ptr") else array.data.ptr


def _refuse_rule(rule: object, kv: AnyKV) -> NoReturn:
    hint = "its lengths live in arrays, which a Mask cannot follow; " if isinstance(rule, Mask) else ""
    found = "None" if rule is None else type_name(rule)
    raise TypeError(
        f"mask must be a rule of cached() where k is a {type(kv).__name__}, got {found}; {hint}pass mask=oc.cached()"
    )


def _check_lengths(q: Any, lengths: Any, problem: Problem) -> None:
    """Lengths that attention reads: int32 (batch,) beside q; on the host also their values."""
    check.check_place("lengths", lengths, q)
    if lengths.dtype != LENGTHS_DTYPE:
        raise TypeError(f"lengths must be int32, got {lengths.dtype}; cast it")
    if tuple(lengths.shape) != (problem.batch,):
        raise ValueError(
            f"lengths must have one entry per sequence, shape ({problem.batch},), got {tuple(lengths.shape)}"
        )
    if problem.batch > 1 and lengths.strides[0] != LENGTHS_DTYPE.itemsize:
        raise ValueError(
            f"lengths must be contiguous (a stride of {LENGTHS_DTYPE.itemsize} bytes), got {lengths.strides[0]}; "
            "copy it"
        )
    if is_on_gpu(lengths):
        if lengths.data.ptr % LENGTHS_DTYPE.itemsize:
            raise ValueError(
                f"lengths must start on a multiple of 4 bytes, got address {lengths.data.ptr:#x}; copy it"
            )
        return
    plain_array("lengths", lengths)
    bad = np.flatnonzero((lengths < 0) | (lengths > problem.k_len))
    if len(bad):
        raise ValueError(
            f"lengths[{bad[0]}] must be from 0 to the capacity {problem.k_len}, got {lengths[bad[0]]}; a cache cannot "
            "hold more keys than its arrays"
        )


def _check_max_length(max_length: Any, capacity: int) -> None:
    longest = integer("prepare", "max_length", max_length)
    if not 1 <= longest <= capacity:
        raise ValueError(
            f"prepare: max_length must be from 1 to the capacity {capacity}, got {longest}; make the cache larger"
        )
