"""Specs of kernels whose tensor-core instructions have other shapes than the shipped ones: the study's alone.

They are values of their own: their macros are part of a cubin's key, and no table, saved
choice or word of configs names them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from omnicupy.jit.atom import SHIPPED, Atom
from omnicupy.jit.backward_kernel import WITHOUT_TILES, BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec


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
