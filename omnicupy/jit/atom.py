"""The shape of the tensor-core instructions that a kernel is made of."""

from __future__ import annotations

from typing import NamedTuple

WIDEST = 256  # columns of a wgmma instruction


class Atom(NamedTuple):
    """What is not the same for all instructions. k: of mma.sync, 16 or 8.  scores, sums: columns that wgmma has at
    most, in products whose results are scores or gradients of weights, and in those that add up O or gradients.

    The default is what every kernel is made of; others are for the study of them (tools/bench/atoms.py) alone.
    """

    k: int = 16
    scores: int = WIDEST
    sums: int = WIDEST

    def defines(self) -> dict[str, int]:
        """The macros that the source files read."""
        return {
            "OMNI_MMA_ATOM_K": self.k,
            "OMNI_SCORES_ATOM_N": self.scores,
            "OMNI_SUMS_ATOM_N": self.sums,
        }


SHIPPED = Atom()
