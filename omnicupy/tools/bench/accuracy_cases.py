"""The problems of the suite `accuracy`: inputs that are easy, inputs at the ends of the dtypes' ranges, and masks under
which weights are exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.call.arrays import narrow
from omnicupy.masks.constructors import causal, from_dense, full
from omnicupy.masks.mask import Mask
from omnicupy.tools.random_arrays import DTYPES, normals, random_bits
from omnicupy.tools.workloads.workload import Workload

HEADS, HEAD_DIMS = 8, (64, 128, 256)
DRAWS = 8  # of inputs whose errors a few rows decide, where two keys have nearly all the weight
DTYPE_NAMES = ("bfloat16", "float16")
SHORT, MIDDLE, LONG = 1024, 2048, 4096
LONE_ROWS = 64  # of "few": one row of so many sees itself alone
LEAST_DOUT, MOST_DOUT = 2e4, 6e4  # of "overflow": all of one sign, so that sums over rows leave float16


def diagonal(length: int) -> Mask:
    """Each row sees one key, its own."""
    return from_dense(np.eye(length, dtype=np.bool_))


def few(length: int) -> Mask:
    """Every row sees every key, but one row of LONE_ROWS, which sees its own alone."""
    dense = np.ones((length, length), np.bool_)
    lone = np.arange(0, length, LONE_ROWS)
    dense[lone] = False
    dense[lone, lone] = True
    return from_dense(dense)


MASKS: dict[str, Callable[[int], Mask]] = {"full": full, "causal": causal, "diagonal": diagonal, "few": few}


@dataclass(frozen=True)
class Input:
    """How normal inputs are scaled. note: what it is.  cases: (mask, length).  q, k, dout: factors.  dtypes: it is
    for.  batch: of its calls.
    """

    note: str
    cases: tuple[tuple[str, int], ...]
    q: float = 1.0
    k: float = 1.0
    dout: float = 1.0
    dtypes: tuple[str, ...] = DTYPE_NAMES
    batch: int = 1


INPUTS = {
    "normal": Input("random normal", (("causal", SHORT), ("full", SHORT), ("causal", MIDDLE))),
    "peaky": Input("q x 8: few keys have all the weight", (("causal", SHORT), ("full", SHORT)), q=8.0),
    "ones": Input("weights of exactly 1: rows that see one key", (("diagonal", SHORT), ("few", SHORT))),
    "scores": Input("scores of 1e4", (("causal", SHORT), ("full", SHORT)), q=50.0, k=50.0, batch=DRAWS),
    "large": Input("dout x 1e3", (("causal", SHORT),), dout=1e3, dtypes=("float16",)),
    "overflow": Input("gradients that float16 cannot hold", (("causal", SHORT),), dtypes=("float16",)),
    "long": Input("random normal, long", (("causal", LONG),)),
}
OVERFLOW, LONG_HEAD_DIM = "overflow", 128


@dataclass(frozen=True)
class Case:
    """One problem: an input of INPUTS, a mask of MASKS, sizes and dtype."""

    input: str
    mask: str
    length: int
    head_dim: int
    dtype: str

    @property
    def name(self) -> str:
        """As a record's workload: "normal-causal-d64-s1024-float16", "scores-full-d64-s1024-b8-float16"."""
        batch = INPUTS[self.input].batch
        sizes = f"d{self.head_dim}-s{self.length}" + (f"-b{batch}" if batch > 1 else "")
        return f"{self.input}-{self.mask}-{sizes}-{self.dtype}"

    def workload(self) -> Workload:
        """Its sizes and mask as a benchmark's workload."""
        sizes = (HEADS, HEADS, self.head_dim)
        of = INPUTS[self.input]
        return Workload(self.name, of.batch, sizes, lambda: MASKS[self.mask](self.length), of.note)

    def arrays(self, xp: Any) -> tuple[Any, Any, Any, Any]:
        """dout, q, k and v, (batch, HEADS, length, head_dim) of the dtype, in the module xp."""
        of = INPUTS[self.input]
        shape = (of.batch, HEADS, self.length, self.head_dim)
        factors = (of.dout, of.q, of.k, 1.0)
        dout, q, k, v = (
            random_bits(shape, seed, self.dtype, factor, xp).view(DTYPES[self.dtype])
            for seed, factor in zip((4, 1, 2, 3), factors, strict=True)
        )
        if self.input == OVERFLOW:
            values = abs(normals(int(np.prod(shape)), 4, xp).reshape(shape)) * np.float32(LEAST_DOUT)
            dout = narrow(values.clip(LEAST_DOUT, MOST_DOUT), DTYPES[self.dtype])
        return dout, q, k, v


def cases(dtypes: Sequence[str] = DTYPE_NAMES) -> Iterator[Case]:
    """Every case of these dtypes; those of one mask and shape together, so that a compiled rival is found again."""
    for dtype in dtypes:
        for head_dim in HEAD_DIMS:
            for mask in MASKS:
                for name, of in INPUTS.items():
                    if dtype not in of.dtypes or (name == "long" and head_dim != LONG_HEAD_DIM):
                        continue
                    for kind, length in of.cases:
                        if kind == mask:
                            yield Case(name, mask, length, head_dim, dtype)


def share(found: Sequence[Case], part: int, parts: int) -> list[Case]:
    """Share `part`, 1 to `parts`, of cases, in their order, for processes that run side by side. Cases of one mask and
    shape stay together; the shares are about as long.
    """
    groups: dict[tuple[object, ...], list[Case]] = {}
    for case in found:
        groups.setdefault((case.dtype, case.head_dim, case.mask, case.length), []).append(case)
    shares: list[list[Case]] = [[] for _ in range(parts)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    mine = set(shares[part - 1])
    return [case for case in found if case in mine]
