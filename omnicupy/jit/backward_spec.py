"""The kernels of one backward pass as a value: what `config` of attention_backward may be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.backward_kernel import (
    CAPPED_PARTS,
    FUSED_PARTS,
    ORDERED_PARTS,
    PARTS,
    SINK_PARTS,
    WITHOUT_TILES,
    BackwardKernel,
    TileShape,
)
from omnicupy.jit.field_types import make_flags, make_numbers, number
from omnicupy.jit.finishing import FINISHING_PARTS, PREPARING_PARTS, TICKET_PARTS
from omnicupy.jit.spec import DTYPES, KERNELS, round_up


@dataclass(frozen=True, kw_only=True)
class BackwardSpec:
    """The kernels of one backward pass: `config` of attention_backward.

    arch, kernel, dtype, head_dim: as in AttnSpec.  dkdv: the tile of the kernel that makes dK and dV.  dq: that of the
    one that makes dQ. Neither adds to memory that another thread block writes: the same call gives the same bits.
    fused: that of the one kernel that takes their place where all gradients are wanted and sums may have any order
    (deterministic=False); None where the two are the fastest.  ordered: that of the one kernel that does so in one
    order; None as before.  softcap: scores are capped.  value_dim: columns of V and O in the kernels, as in AttnSpec.

    Raises TypeError for fields of other types, ValueError when a tile is illegal or does not fit shared memory.
    """

    arch: str
    kernel: str
    dtype: str
    head_dim: int
    dkdv: TileShape
    dq: TileShape
    fused: TileShape | None = None
    softcap: bool = False
    value_dim: int = None  # type: ignore[assignment]
    ordered: TileShape | None = None

    def __post_init__(self) -> None:
        for name, known in (("arch", tuple(SMEM_LIMIT_BYTES)), ("kernel", KERNELS), ("dtype", DTYPES)):
            value: object = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"config: {name} must be one of {', '.join(known)}, got {value!r}")
        make_numbers(self, ("head_dim",))
        if self.value_dim is None:
            object.__setattr__(self, "value_dim", self.head_dim)
        make_numbers(self, ("value_dim",))
        for name in ("dkdv", "dq", "fused", "ordered"):
            if getattr(self, name) is not None or name in ("dkdv", "dq"):
                object.__setattr__(self, name, _shape(name, getattr(self, name)))
        make_flags(self, ("softcap",))
        self.kernels()  # raises for an illegal one

    def part(self, part: str) -> BackwardKernel:
        """The kernel of one of PARTS or SINK_PARTS, or where there is such a tile of FUSED_PARTS and ORDERED_PARTS; of
        TICKET_PARTS and FINISHING_PARTS, too, where two warpgroups own keys.
        """
        return _part(self, part)

    def kernels(self) -> dict[str, BackwardKernel]:
        """The kernel of each part."""
        return _kernels(self).copy()

    def __str__(self) -> str:
        named = {"dkdv": self.dkdv, "dq": self.dq, "fused": self.fused, "ordered": self.ordered}
        shapes = (f"{name}={'x'.join(map(str, shape))}" for name, shape in named.items() if shape is not None)
        words = ["bwd", self.kernel, self.arch, self.dtype, f"head_dim={self.head_dim}"]
        words += [f"value_dim={self.value_dim}"] * (self.value_dim != self.head_dim)
        return " ".join([*words, *shapes] + ["softcap"] * self.softcap)


# Plans of new masks ask for the same kernels again and again, and making one takes longer than a look-up.
@lru_cache(maxsize=256)
def _part(spec: BackwardSpec, part: str) -> BackwardKernel:
    finishes, prepares = (FINISHING_PARTS | TICKET_PARTS).get(part, ""), part in PREPARING_PARTS
    part = "ordered" if part in FINISHING_PARTS else "fused" if part in TICKET_PARTS else part
    shapes = {"dkdv": spec.dkdv, "dq": spec.dq, "fused": spec.fused, "ordered": spec.ordered}
    shape = shapes.get(part) or TileShape(64, 64, 1, WITHOUT_TILES[part] // 32)
    # The kernels that prepare and that add up sinks are the same ones for all.
    for_all = part in ("prepare", *SINK_PARTS)
    kernel = "sm80" if for_all else spec.kernel
    arch = spec.arch.rstrip("a") if for_all else spec.arch
    return BackwardKernel(
        arch=arch,
        kernel=kernel,
        part=part,
        dtype=spec.dtype,
        head_dim=spec.head_dim,
        value_dim=spec.value_dim,
        br=shape.br,
        bc=shape.bc,
        stages=shape.stages,
        warps=shape.warps,
        softcap=spec.softcap and part in CAPPED_PARTS,
        finishes=finishes,
        prepares=prepares,
    )


@lru_cache(maxsize=64)
def _kernels(spec: BackwardSpec) -> dict[str, BackwardKernel]:
    fused: tuple[str, ...] = FUSED_PARTS if spec.fused is not None else ()
    if spec.fused is not None and _part(spec, "fused").may_finish:
        fused += tuple(TICKET_PARTS)
    ordered: tuple[str, ...] = ORDERED_PARTS if spec.ordered is not None else ()
    if spec.ordered is not None and _part(spec, "ordered").may_finish:
        ordered += tuple(FINISHING_PARTS)
    return {part: spec.part(part) for part in (*PARTS, *fused, *ordered, *SINK_PARTS)}


def padded_rows(q_len: int) -> int:
    """Rows of lse2 and delta: the last tile of any height ends inside."""
    return round_up(q_len + 255, 64)


def _shape(name: str, value: object) -> TileShape:
    if not isinstance(value, tuple) or not 2 <= len(value) <= 4:
        raise TypeError(f"config: {name} must be a TileShape (br, bc, stages, warps), got {value!r}")
    fields = zip(TileShape._fields, value, strict=False)
    return TileShape(*(number(f"{name}.{field}", given) for field, given in fields))
