"""Specs of kernels whose tensor-core instructions have other shapes than the shipped ones: the study's alone.

They are values of their own: their macros (kernels/omni/mma_atom.cuh) are part of a cubin's key, and no table, saved
choice or word of configs names them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from omnicupy.jit.backward_kernel import WITHOUT_TILES, BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec

WIDEST = 256  # columns of a wgmma instruction


class Atom(NamedTuple):
    """The shape of an instruction. k: of mma.sync, 16 or 8.  scores, sums: columns that wgmma has at most, in products
    whose results are scores or gradients of weights, and in those that add up O or gradients.
    """

    k: int = 16
    scores: int = WIDEST
    sums: int = WIDEST

    def defines(self) -> dict[str, int]:
        """The macros of kernels/omni/mma_atom.cuh."""
        return {
            "OMNI_MMA_ATOM_K": self.k,
            "OMNI_SCORES_ATOM_N": self.scores,
            "OMNI_SUMS_ATOM_N": self.sums,
        }


SHIPPED = Atom()


@dataclass(frozen=True, kw_only=True)
class AtomSpec(AttnSpec):
    """A forward kernel whose instructions have the shape of `atom`."""

    atom: Atom = SHIPPED

    def defines(self) -> dict[str, int]:
        """The macros that the source files read."""
        return super().defines() | self.atom.defines()


@dataclass(frozen=True, kw_only=True)
class AtomKernel(BackwardKernel):
    """A kernel of a backward pass whose instructions have the shape of `atom`."""

    atom: Atom = SHIPPED

    def defines(self) -> dict[str, int]:
        """The macros that the source files read."""
        return super().defines() | self.atom.defines()


@dataclass(frozen=True, kw_only=True)
class AtomBackwardSpec(BackwardSpec):
    """The kernels of a backward pass, those with products of the shape of `atom`."""

    atom: Atom = SHIPPED

    def part(self, part: str) -> BackwardKernel:
        """The kernel of a part, as in BackwardSpec."""
        made = super().part(part)
        return made if part in WITHOUT_TILES else AtomKernel(**_fields(made), atom=self.atom)


def with_atom(spec: AttnSpec, atom: Atom) -> AttnSpec:
    """The forward kernel `spec` with another instruction; itself with the shipped one."""
    return spec if atom == SHIPPED else AtomSpec(**_fields(spec), atom=atom)


def backward_with_atom(spec: BackwardSpec, atom: Atom) -> BackwardSpec:
    """The kernels `spec` of a backward pass with another instruction; themselves with the shipped one."""
    return spec if atom == SHIPPED else AtomBackwardSpec(**_fields(spec), atom=atom)


def _fields(spec: AttnSpec | BackwardSpec | BackwardKernel) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in fields(spec)}
