"""What a benchmark of the backward pass needs beside a workload's inputs: the passes, dout, and our calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from omnicupy.api import attention, attention_backward
from omnicupy.choose import backward_table
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import round_up
from omnicupy.masks.mask import Mask
from omnicupy.reference.checked_gradients import CheckedGradients
from omnicupy.tools.random_arrays import DTYPES, random_bits
from omnicupy.tools.workloads.workload import Workload

ANY_ORDER = "any-order"  # of our systems: deterministic=False


class Pass(NamedTuple):
    """What of attention is timed. name: in rows of records.  flops: its operations over those of the forward pass, as
    all libraries count them: five products of the backward pass beside two.
    """

    name: str
    flops: float

    @property
    def has_gradients(self) -> bool:
        """True where it makes gradients."""
        return self is not PASSES["fwd"]

    @property
    def has_forward(self) -> bool:
        """True where the forward pass is part of what is timed."""
        return self is not PASSES["bwd"]


PASSES = {
    "fwd": Pass("forward", 1.0),
    "bwd": Pass("backward", 2.5),
    "fwd+bwd": Pass("forward+backward", 3.5),
}


def kernel_and_order(words: str) -> tuple[str, bool]:
    """What the name of one of our systems asks for: a kernel of gradients ("" for the table's choice), and whether
    their sums may have any order: "sm80", "any-order", "sm80-any-order".
    """
    free = words == ANY_ORDER or words.endswith(f"-{ANY_ORDER}")
    return words.removesuffix(ANY_ORDER).removesuffix("-") if free else words, free


class Gradients:
    """The backward pass of a workload: q, k, v, a random dout, and out and lse that our forward pass gave."""

    def __init__(self, workload: Workload, mask: Mask, arrays: tuple[Any, Any, Any], dtype: str) -> None:
        import cupy

        self.arrays, self.mask, self._workload, self._dtype = arrays, mask, workload, dtype
        self.dout = random_bits(arrays[0].shape, 4, dtype, 1.0, cupy).view(DTYPES[dtype])
        self.out, self.lse = attention(*arrays, mask, return_lse=True)

    def judge(self) -> CheckedGradients:
        """What gradients (dq, dk, dv) are held against."""
        return CheckedGradients((self.dout, *self.arrays), self.mask, self.out, self.lse)

    def spec(self, arch: str, word: str = "") -> BackwardSpec:
        """The kernels of our call. word: a kernel of the table, or "naive"; "" for the table's choice.

        Raises ValueError for another word.
        """
        head_dim = round_up(self._workload.head_dim, 16)
        if word == "naive":
            return backward_table.naive(arch, self._dtype, head_dim)
        if not word:
            return backward_table.pick(arch, self._dtype, head_dim)
        for row in backward_table.TABLE:
            if row.kernel == word and row.serves(arch, head_dim):
                return row.spec(arch, self._dtype, head_dim)
        known = dict.fromkeys(row.kernel for row in backward_table.TABLE if row.serves(arch, head_dim))
        raise ValueError(f"config: expected naive or {' or '.join(known)} for gradients, got {word!r}")

    def call(
        self, timed: Pass, mask: Mask | None, config: BackwardSpec | None, *, deterministic: bool = True
    ) -> Callable[[], Any]:
        """Our call, which returns dq, dk and dv. mask: as it is passed.  config: of the backward pass."""
        how: dict[str, Any] = {"config": config, "deterministic": deterministic}

        def backward() -> Any:
            return attention_backward(self.dout, *self.arrays, self.out, self.lse, mask, **how)

        def both() -> Any:
            out, lse = attention(*self.arrays, mask, return_lse=True)
            return attention_backward(self.dout, *self.arrays, out, lse, mask, **how)

        return both if timed.has_forward else backward
