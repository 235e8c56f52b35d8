"""Inputs of the backward cases, as NumPy or CuPy arrays (`xp` is the module)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnicupy.api import attention
from omnicupy.call.arrays import DTYPE_NAMES
from omnicupy.masks.mask import Mask
from omnicupy.reference.visible import counts
from omnicupy.tools.random_arrays import DTYPES, random_bits, unsigned
from omnicupy.tools.verify import inputs
from omnicupy.tools.verify.backward_cases import (
    ALL,
    COLUMNS_FIRST,
    ONES,
    PLAIN,
    ROWS,
    SLICED,
    TOKENS_FIRST,
    BackwardCase,
)
from omnicupy.tools.verify.cases import POISON
from omnicupy.tools.verify.inputs import NAN_BITS

ONE_BITS = {"float16": 0x3C00, "bfloat16": 0x3F80, "float32": 0x3F800000, "float64": 0x3FF0000000000000}


@dataclass(frozen=True)
class BackwardInputs:
    """What attention_backward takes; dlse None where lse has no gradient.  changes: sink_logits and softcap."""

    dout: Any
    q: Any
    k: Any
    v: Any
    out: Any
    lse: Any
    dlse: Any
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any, Any, Any]:
        """dout, q, k, v, out and lse, in the order of attention_backward."""
        return self.dout, self.q, self.k, self.v, self.out, self.lse


def inputs_of(case: BackwardCase, masks: Sequence[Mask], xp: Any, call: Any = attention) -> BackwardInputs:
    """The inputs of a case whose masks were built by case.masks(). `call` makes out and lse, of rows without poison."""
    made = inputs.inputs_of(case, masks, xp)
    mask = masks[0] if len(masks) == 1 else list(masks)
    with np.errstate(all="ignore"):
        out, lse = call(made.q, made.k, made.v, mask, return_lse=True, out=made.out, **made.changes)
    dout = dout_of(case, xp)
    dlse = (
        random_bits(lse.shape, _seed(case, "dlse"), "float32", 1.0, xp).view(np.float32)
        if case.dlse
        else None
    )
    if dlse is not None and lse.dtype != np.float32:
        dlse = dlse.astype(lse.dtype)
    if POISON in case.options:
        lse = lse.copy()
        for batch in range(case.batch):
            dead = xp.flatnonzero(counts(masks[batch % len(masks)], xp) == 0)
            for array in (made.q, dout, out, lse, *(() if dlse is None else (dlse,))):
                bits_of(array)[batch][:, dead] = NAN_BITS[_name(array)]
    return BackwardInputs(dout, made.q, made.k, made.v, out, lse, dlse, made.changes)


def dout_of(case: BackwardCase, xp: Any) -> Any:
    """A random dout of the case's shape, dtype and layout; "ones" holds 1 everywhere."""
    dtype = DTYPES[case.dtype]
    batch, heads, tokens, columns = shape = (case.batch, case.q_heads, case.q_len, case.value_columns)
    if case.dout == ONES:
        one = xp.full((1, 1, 1, 1), ONE_BITS[case.dtype], unsigned(case.dtype)).view(dtype)
        return xp.broadcast_to(one, shape)
    if case.dout == ROWS:
        return xp.broadcast_to(_random(case, (batch, heads, 1, columns), xp), shape)
    if case.dout == TOKENS_FIRST:
        return _random(case, (batch, tokens, heads, columns), xp).transpose(0, 2, 1, 3)
    if case.dout == COLUMNS_FIRST:
        return _random(case, (batch, heads, columns, tokens), xp).transpose(0, 1, 3, 2)
    if case.dout == SLICED:
        return _random(case, (batch, heads, tokens, columns + 9), xp)[..., 1 : 1 + columns]
    assert case.dout == PLAIN
    return _random(case, shape, xp)


def given_of(case: BackwardCase, made: BackwardInputs, xp: Any) -> tuple[Any, Any, Any] | None:
    """Arrays full of NaN for the gradients that the case wants; None for a case that gives none."""
    if not case.given:
        return None
    found = []
    for name, like in zip(ALL, (made.q, made.k, made.v), strict=True):
        bits = xp.full(like.shape, NAN_BITS[case.dtype], unsigned(case.dtype))
        found.append(bits.view(DTYPES[case.dtype]) if name in case.wanted else None)
    return found[0], found[1], found[2]


def bits_of(array: Any) -> Any:
    """An array of any strides as the unsigned integers that its elements are, in the same memory."""
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _name(array: Any) -> str:
    return DTYPE_NAMES[np.dtype(array.dtype)]


def _random(case: BackwardCase, shape: tuple[int, ...], xp: Any) -> Any:
    return random_bits(shape, _seed(case, "dout"), case.dtype, 1.0, xp).view(DTYPES[case.dtype])


def _seed(case: BackwardCase, name: str) -> int:
    return int(case.generator(f"input {name}").integers(2**31))
