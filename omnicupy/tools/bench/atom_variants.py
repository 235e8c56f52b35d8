"""What the study of instruction shapes compares: kernels as the tables have them, with other instructions and heights.

For 16-bit numbers mma.sync has two shapes, m16n8k16 and m16n8k8, and wgmma m64nNk16 with N up to 256. So K can vary for
the one, and N for the other; M grows with the warpgroups of a thread block, 64 rows each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from omnicupy.choose import backward_table, variants
from omnicupy.jit.atom import SHIPPED, Atom
from omnicupy.jit.backward_kernel import TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec, KernelSpec
from omnicupy.tools.bench.atom_specs import backward_with_atom, with_atom

HEAD_DIMS = (64, 128)
SHORT_K = Atom(k=8)
# Columns of scores at most, and of sums.
NARROW = tuple(
    Atom(scores=scores, sums=sums)
    for scores, sums in ((64, 256), (256, 64), (64, 64), (32, 256), (256, 32), (32, 32))
)
PORTABLE_TILES = ("sm80-128x64-s1-w4", "sm80-64x64-s2-w4")
WIDE_TILES = {64: "sm90-192x128-s3-w16", 128: "sm90-128x128-s2-w12"}  # of the table
# Heights beside each other: keys and stages are the same.
HEIGHTS = {
    64: (("sm90-192x128-s3-w16", "sm90-128x128-s3-w12", "sm90-64x128-s3-w8"),),
    128: (
        ("sm90-128x128-s2-w12", "sm90-64x128-s2-w8"),
        ("sm90-192x64-s3-w16", "sm90-128x64-s3-w12", "sm90-64x64-s3-w8"),
    ),
}
KEY_HEIGHTS = (192, 128, 64)  # keys of a tile of the kernel for all gradients


@dataclass(frozen=True)
class Variant:
    """One of the compared. base: the name of the one that it is compared with.  parts: of a backward pass, the kernels
    that are launched; empty for a forward pass.  columns: of scores and of sums in a tile.
    """

    study: str
    base: str
    name: str
    spec: AttnSpec | BackwardSpec
    atom: Atom = SHIPPED
    parts: tuple[str, ...] = ()
    columns: tuple[int, int] = (0, 0)

    @property
    def tile(self) -> str:
        """The name of the tiles, whatever the instruction."""
        return self.name.removesuffix(_suffix(self.atom))

    @property
    def deterministic(self) -> bool:
        """False where sums may have any order."""
        return "fused" not in self.parts

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """M, N of scores, N of sums and K of its instructions."""
        if self.spec.kernel == "sm80":
            return 16, 8, 8, self.atom.k
        scores, sums = (
            min(of, most) for of, most in zip(self.columns, (self.atom.scores, self.atom.sums), strict=True)
        )
        return 64, scores, sums, 16

    def kernels(self) -> dict[str, KernelSpec]:
        """The kernels with products, by what they make."""
        if isinstance(self.spec, BackwardSpec):
            return {part: self.spec.part(part) for part in self.parts}
        return {"forward": self.spec}

    def helpers(self) -> list[KernelSpec]:
        """The kernels that are launched beside them."""
        if not isinstance(self.spec, BackwardSpec):
            return []
        return [self.spec.part(part) for part in ("prepare", "convert")[: 1 + (not self.deterministic)]]


def every(arch: str, dtype: str, head_dim: int, *, backward: bool) -> list[Variant]:
    """All variants of a pass. Raises StopIteration for an architecture without a row of the table."""
    if backward:
        return list(_backward(arch, dtype, head_dim))
    return list(_forward(arch, dtype, head_dim))


def _forward(arch: str, dtype: str, head_dim: int) -> Iterator[Variant]:
    def tile(word: str) -> AttnSpec:
        return variants.parse(word, arch, dtype, head_dim)

    for word in PORTABLE_TILES:
        for atom in (SHIPPED, SHORT_K):
            yield Variant("k", word, word + _suffix(atom), with_atom(tile(word), atom), atom)
    if arch != "sm_90":
        return
    word = WIDE_TILES[head_dim]
    base = tile(word)
    columns = (base.bc, head_dim)
    for atom in _narrow(columns):
        yield Variant("n", word, word + _suffix(atom), with_atom(base, atom), atom, columns=columns)
    for words in HEIGHTS[head_dim]:
        for word in words:
            spec = tile(word)
            yield Variant("m", words[0], word, spec, columns=(spec.bc, head_dim))


def _backward(arch: str, dtype: str, head_dim: int) -> Iterator[Variant]:
    portable = _row("sm80", arch, dtype, head_dim)
    for parts in (("dkdv", "dq"), ("fused",)):
        word = "sm80 " + ", ".join(f"{part} {variants.tile_word(getattr(portable, part))}" for part in parts)
        spec = replace(portable, fused=portable.fused if parts == ("fused",) else None)
        for atom in (SHIPPED, SHORT_K):
            yield Variant("k", word, word + _suffix(atom), backward_with_atom(spec, atom), atom, parts)
    if arch != "sm_90":
        return
    table = replace(_row("sm90", arch, dtype, head_dim), ordered=None)
    assert table.fused is not None
    stages = table.fused.stages

    def fused(keys: int) -> tuple[str, Callable[[Atom], BackwardSpec]]:
        shape = TileShape(64, keys, stages, 4 + keys // 16)
        spec = replace(table, fused=shape)
        return f"sm90 fused {variants.tile_word(shape)}", lambda atom: backward_with_atom(spec, atom)

    of: dict[str, Any] = {"parts": ("fused",), "columns": (64, head_dim)}
    word, make = fused(table.fused.bc)
    for atom in _narrow(of["columns"]):
        yield Variant("n", word, word + _suffix(atom), make(atom), atom, **of)
    for keys in KEY_HEIGHTS:
        if keys <= table.fused.bc:  # more do not fit
            other, make = fused(keys)
            yield Variant("m", word, other, make(SHIPPED), **of)


def _row(kernel: str, arch: str, dtype: str, head_dim: int) -> BackwardSpec:
    rows = (row for row in backward_table.TABLE if row.kernel == kernel and row.serves(arch, head_dim))
    return next(rows).spec(arch, dtype, head_dim)


def _narrow(columns: tuple[int, int]) -> list[Atom]:
    """The shipped instruction, and narrower ones that differ on tiles of so many columns of scores and sums."""
    found: dict[tuple[int, int], Atom] = {}
    for atom in (SHIPPED, *NARROW):
        found.setdefault((min(atom.scores, columns[0]), min(atom.sums, columns[1])), atom)
    return list(found.values())


def _suffix(atom: Atom) -> str:
    """What a name goes on with: "-k8", "-scores64", "-sums32"; "" for the shipped instruction."""
    words = (
        ("k", atom.k, SHIPPED.k),
        ("scores", atom.scores, SHIPPED.scores),
        ("sums", atom.sums, SHIPPED.sums),
    )
    return "".join(f"-{name}{value}" for name, value, shipped in words if value != shipped)
