"""The suite `accuracy`: relative RMS errors of out, dq, dk and dv against float64, ours and rivals' in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.api import attention, attention_backward
from omnicupy.call.arrays import module_of, widen
from omnicupy.masks.mask import Mask
from omnicupy.reference.attention import attention64
from omnicupy.reference.backward import gradients64
from omnicupy.tools.bench import accuracy_table, torch_inputs
from omnicupy.tools.bench.accuracy_cases import DTYPE_NAMES, OVERFLOW, Case, cases, share
from omnicupy.tools.bench.accuracy_table import NAMES
from omnicupy.tools.bench.gradients import IN_ANY_ORDER, PASSES
from omnicupy.tools.bench.measure import reason, rounded
from omnicupy.tools.bench.peers import COMPILE_LIMIT_S, missing, prepare
from omnicupy.tools.bench.records import OURS, Record
from omnicupy.tools.bench.torch_inputs import Shared, as_cupy

SYSTEMS = (OURS, IN_ANY_ORDER, "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "flex", "fa4", "cudnn-flex")
OF_TORCH = ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient")
# From here on a value rounds to Inf.
LIMITS = {"float16": 65520.0, "bfloat16": 2.0**128 - 2.0**119}
CANCELLED = 1e-6  # of the terms of a gradient: where it is smaller, its error is given over theirs

Results = tuple[Any, Any, Any, Any]  # out, dq, dk, dv
Say = Callable[[str], None]


def measure(
    record: Record,
    say: Say,
    *,
    systems: Sequence[str] = (),
    dtypes: Sequence[str] = DTYPE_NAMES,
    limit_s: float = COMPILE_LIMIT_S,
    part: tuple[int, int] = (1, 1),
) -> None:
    """Add a row a case and system to the record. What cannot run gets a row that says why.

    systems: () for SYSTEMS.  limit_s: seconds that a rival may take to be ready.  part: as `share` takes it.
    """
    import cupy

    absent = missing([name for name in systems or SYSTEMS if name.partition(":")[0] != OURS])
    if absent:
        record.set(missing=absent)
    present = [name for name in systems or SYSTEMS if name not in absent]
    before = len(record.rows)
    for case in share(tuple(cases(dtypes)), *part):
        for row in _rows(case, case.arrays(cupy), present, limit_s):
            record.add(**row)
            say(f"{case.name}: {row['system']}: {row.get('problem') or row['rms']}")
        cupy.get_default_memory_pool().free_all_blocks()
    for line in accuracy_table.summary(record.rows[before:]):
        say(line)


def _rows(
    case: Case, inputs: tuple[Any, Any, Any, Any], systems: Sequence[str], limit_s: float
) -> Iterable[dict[str, Any]]:
    """The rows of all systems: they are compared with each other, so none is made before all have run."""
    dout, q, k, v = inputs
    workload = case.workload()
    mask = workload.mask()
    judge, xp = Judge(case, inputs, mask), module_of(q)
    shared: Shared | None = None
    rows: dict[str, dict[str, Any]] = {}
    broken: dict[str, list[Any]] = {}
    for name in systems:
        try:
            if name.partition(":")[0] == OURS:
                results = _ours(name, inputs, mask)
            else:
                shared = shared or Shared(workload, mask, (q, k, v), dout)
                results = _theirs(name, shared, limit_s)
            rows[name] = judge.figures(results)
            broken[name] = [~xp.isfinite(widen(one, np.float32, xp)) for one in results]
        except Exception as error:  # whatever a library raises is its result here
            rows[name] = {"problem": reason(error)}
    _compare(rows, broken, judge.holdable)
    shape = [q.shape[0], q.shape[1], k.shape[1], *mask.shape, case.head_dim]
    known = {
        "workload": case.name,
        "input": case.input,
        "mask": case.mask,
        "dtype": case.dtype,
        "shape": shape,
    }
    return [{**known, "system": name, **figures} for name, figures in rows.items()]


def _ours(name: str, inputs: tuple[Any, Any, Any, Any], mask: Mask) -> Results:
    if name not in (OURS, IN_ANY_ORDER):
        raise ValueError(f"{name}: expected {OURS} or {IN_ANY_ORDER} in the suite accuracy")
    dout, q, k, v = inputs
    out, lse = attention(q, k, v, mask, return_lse=True)
    dq, dk, dv = attention_backward(dout, q, k, v, out, lse, mask, deterministic=name == OURS)
    return out, dq, dk, dv


def _theirs(name: str, shared: Shared, limit_s: float) -> Results:
    peer = prepare(name, shared, limit_s, PASSES["fwd+bwd"])
    assert peer.forward is not None  # of a pass with gradients
    out, (dq, dk, dv) = peer.forward(), peer.output()
    torch_inputs.library("torch").cuda.synchronize()  # CuPy reads the results on its own stream
    return as_cupy(out), as_cupy(dq), as_cupy(dk), as_cupy(dv)


def _compare(rows: dict[str, dict[str, Any]], broken: dict[str, list[Any]], holdable: Sequence[Any]) -> None:
    """Add to each row of ours how many elements are Inf or NaN there alone though the dtype can hold them, and in all
    results of torch's alone.
    """
    theirs = [broken[name] for name in OF_TORCH if name in broken]
    if not theirs:
        return
    for name in (OURS, IN_ANY_ORDER):
        if name not in broken:
            continue
        only_here, only_there = {}, {}
        for place, of in enumerate(NAMES):
            anywhere, everywhere = theirs[0][place].copy(), theirs[0][place].copy()
            for one in theirs[1:]:
                anywhere |= one[place]
                everywhere &= one[place]
            only_here[of] = int((broken[name][place] & holdable[place] & ~anywhere).sum())
            only_there[of] = int((everywhere & ~broken[name][place]).sum())
        for key, counts in (("only_here", only_here), ("only_there", only_there)):
            if any(counts.values()):
                rows[name][key] = {of: count for of, count in counts.items() if count}


@dataclass(frozen=True)
class _Exact:
    """One result in float64. unit: what its errors are given over.  is_cancelled: the size of its terms, that is."""

    values: Any
    unit: float
    is_cancelled: bool


class Judge:
    """What the results of a case are held against: float64 on the exact inputs.

    inputs: dout, q, k, v.
    """

    def __init__(self, case: Case, inputs: tuple[Any, Any, Any, Any], mask: Mask) -> None:
        dout, q, k, v = inputs
        self._case, self._xp = case, module_of(q)
        xp = self._xp
        out, lse = attention64(q, k, v, mask)
        gradients = gradients64(dout, q, k, v, mask, whole=(out, lse))
        of_dout, of_q, of_k, of_v = (_rms(widen(one, np.float64, xp), xp) for one in inputs)
        # A score's gradient is the sum of head_dim products, of which q or k is taken over the root of head_dim.
        terms = (0.0, of_dout * of_v * of_k, of_dout * of_v * of_q, 0.0)
        self._exact = []
        for values, size in zip((out, *gradients), terms, strict=True):
            held = xp.where(abs(values) < LIMITS[case.dtype], values, 0.0)
            own = _rms(held, xp)
            is_cancelled = own < CANCELLED * size
            self._exact.append(_Exact(values, size if is_cancelled else own, is_cancelled))

    @property
    def holdable(self) -> list[Any]:
        """Of each result, which elements its dtype can hold."""
        return [abs(one.values) < LIMITS[self._case.dtype] for one in self._exact]

    def figures(self, results: Results) -> dict[str, Any]:
        """rms: by name, the relative RMS error. over_terms: names of what is 0 or nearly so because its terms cancel,
        whose error is given over the size of these. not_finite, finite: by name, how many elements are Inf or NaN that
        the dtype can hold, and finite that it cannot; where there are any.

        Where gradients overflow, the error is that of the elements that are finite; elsewhere one that is not finite
        makes it inf.
        """
        xp = self._xp
        rms: dict[str, Any] = {}
        lost, kept = {}, {}
        for name, exact, can, found in zip(NAMES, self._exact, self.holdable, results, strict=True):
            values = widen(found, np.float64, xp)
            is_finite = xp.isfinite(values)
            lost[name], kept[name] = int((can & ~is_finite).sum()), int((~can & is_finite).sum())
            error = _rms(xp.where(can & is_finite, values - exact.values, 0.0), xp)
            fails = lost[name] and self._case.input != OVERFLOW
            rms[name] = float("inf") if fails else error / (exact.unit or 1.0)
        figures: dict[str, Any] = {"rms": rounded(rms)}
        if terms := [name for name, exact in zip(NAMES, self._exact, strict=True) if exact.is_cancelled]:
            figures["over_terms"] = terms
        for key, counts in (("not_finite", lost), ("finite", kept)):
            if any(counts.values()):
                figures[key] = {name: count for name, count in counts.items() if count}
        return figures


def _rms(values: Any, xp: Any) -> float:
    return float(xp.sqrt((values**2).mean()))
