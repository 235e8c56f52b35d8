"""What a benchmark of the backward pass needs beside a workload's inputs: the passes, dout, and our calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from omnicupy.api import attention, attention_backward
from omnicupy.call.check_backward import GRADIENTS
from omnicupy.choose import backward_table
from omnicupy.choose.ceilings import Device
from omnicupy.choose.keys_kernel import keys_kernel
from omnicupy.choose.variants import parsed_tile
from omnicupy.jit.backward_kernel import MAKES_ALL, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import round_up
from omnicupy.masks.mask import Mask
from omnicupy.reference.checked_gradients import CheckedGradients
from omnicupy.tools.bench.records import OURS
from omnicupy.tools.random_arrays import DTYPES, random_bits
from omnicupy.tools.workloads.workload import Workload

ANY_ORDER = "any-order"  # of our systems: deterministic=False
IN_ANY_ORDER = f"{OURS}:{ANY_ORDER}"
SPLIT = "split"
ALONE_PARTS = ("dkdv", "dq")
ALONE = {"dkdv-alone": ("k", "v"), "dq-alone": ("q",)}
WORDS = ("sm80", ANY_ORDER, f"sm80-{ANY_ORDER}", SPLIT, *ALONE, "dkdv-64x128-s4-w12 (any tile)")
TILED = (*ALONE_PARTS, *MAKES_ALL)  # kernels that may be asked for with another tile


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


class Asked(NamedTuple):
    """What the name of one of our systems asks for. kernel: of gradients, "" for the table's choice.  free: may their
    sums have any order?  two: are dK and dV made by one kernel and dQ by another, where the table has one for all?
    wanted: the gradients.  part, tile: another tile for one of the kernels.
    """

    kernel: str = ""
    free: bool = False
    two: bool = False
    wanted: tuple[str, ...] = GRADIENTS
    part: str = ""
    tile: TileShape | None = None

    @property
    def needs_config(self) -> bool:
        """True where it is not what a call without `config` gets."""
        return bool(self.kernel or self.two or self.part)


EVERYTHING = Asked()


def asked(words: str) -> Asked:
    """What the name of one of our systems asks for, behind "omnicupy:".

    "sm80" (a kernel of the table, or "naive"), "any-order", "sm80-any-order"; "split": two kernels in place of one for
    all; "dkdv-alone", "dq-alone": these gradients alone; "dkdv-64x128-s4-w12", also of dq, fused and ordered: another
    tile of this kernel. Raises ValueError for a tile that is none.
    """
    if words == SPLIT:
        return Asked(two=True)
    if words in ALONE:
        return Asked(wanted=ALONE[words])
    part, _, tile = words.partition("-")
    if part in TILED and tile:
        return Asked(free=part == "fused", two=part in ALONE_PARTS, part=part, tile=parsed_tile(tile))
    free = words == ANY_ORDER or words.endswith(f"-{ANY_ORDER}")
    return Asked(words.removesuffix(ANY_ORDER).removesuffix("-") if free else words, free)


class Gradients:
    """The backward pass of a workload: q, k, v, a random dout, and out and lse that our forward pass gave."""

    def __init__(self, workload: Workload, mask: Mask, arrays: tuple[Any, Any, Any], dtype: str) -> None:
        import cupy

        self.arrays, self.mask, self._workload, self._dtype = arrays, mask, workload, dtype
        shape = (*arrays[0].shape[:3], arrays[2].shape[3])
        self.dout = random_bits(shape, 4, dtype, 1.0, cupy).view(DTYPES[dtype])
        self.out, self.lse = attention(*arrays, mask, return_lse=True)

    def judge(self, batch: int | None = None) -> CheckedGradients:
        """What gradients (dq, dk, dv) are held against: of the first `batch` elements, of all for None."""
        dout, q, k, v, out, lse = (one[:batch] for one in (self.dout, *self.arrays, self.out, self.lse))
        return CheckedGradients((dout, q, k, v), self.mask, out, lse)

    def spec(self, arch: str, asked: Asked) -> BackwardSpec:
        """The kernels of our call. Raises ValueError for a kernel that the table does not have, or an illegal tile."""
        found = self._of_kernel(arch, asked)
        if asked.two:
            found = replace(found, fused=None, ordered=None)
        tile: dict[str, Any] = {asked.part: asked.tile} if asked.part else {}
        if asked.part == "fused":  # sums of few additions would have the other kernel
            tile["ordered"] = None
        return replace(found, **tile)

    def part(self, spec: BackwardSpec, asked: Asked, device: Device) -> str:
        """The name of the kernel of `spec` that makes dK and dV of our call, or all gradients."""
        problem = self._workload.problem(self.mask, self._dtype)
        how: dict[str, Any] = {"deterministic": not asked.free, "wanted": asked.wanted}
        return keys_kernel(spec, problem, self.mask, device, **how)

    def _of_kernel(self, arch: str, asked: Asked) -> BackwardSpec:
        word = asked.kernel
        head_dim = round_up(self._workload.head_dim, 16)
        if word == "naive":
            return backward_table.naive(arch, self._dtype, head_dim)
        if not word:
            problem = self._workload.problem(self.mask, self._dtype)
            return backward_table.chosen_for(arch, problem, (self.mask,), deterministic=not asked.free)
        for row in backward_table.TABLE:
            if row.kernel == word and row.serves(arch, head_dim):
                return row.spec(arch, self._dtype, head_dim)
        known = dict.fromkeys(row.kernel for row in backward_table.TABLE if row.serves(arch, head_dim))
        raise ValueError(
            f"config: expected naive or {' or '.join(known)} for gradients, got {word!r}; or {ANY_ORDER}, {SPLIT}, "
            f"{' or '.join(ALONE)}"
        )

    def call(
        self, timed: Pass, mask: Mask | None, config: BackwardSpec | None, asked: Asked = EVERYTHING
    ) -> Callable[[], Any]:
        """Our call, which returns dq, dk and dv, None for one that is not wanted.

        mask: as it is passed.  config: of the backward pass.
        """
        how: dict[str, Any] = {"config": config, "deterministic": not asked.free, "wanted": asked.wanted}

        def backward() -> Any:
            return attention_backward(self.dout, *self.arrays, self.out, self.lse, mask, **how)

        def both() -> Any:
            out, lse = attention(*self.arrays, mask, return_lse=True)
            return attention_backward(self.dout, *self.arrays, out, lse, mask, **how)

        return both if timed.has_forward else backward
