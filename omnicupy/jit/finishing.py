"""How a kernel of all gradients makes dQ of the sums that it adds to: names of its variants, and which may be."""

from __future__ import annotations

from typing import Protocol

# Names among the parts of a BackwardSpec, and `finishes` of a BackwardKernel: who adds last to a sum hands it over, or
# goes on while another warp reads it. "": a launch behind it makes dQ of the sums. The first ones are of part
# "ordered", the others of "fused", whose sums have no order.
FINISHING_PARTS = {"finishing": "at_once", "background": "background", "alone": "background"}
TICKET_PARTS = {"tickets": "background", "tickets_alone": "background"}
PREPARING_PARTS = ("alone", "tickets_alone")  # that make lse2 and delta, too
FINISHES = ("", *dict.fromkeys(FINISHING_PARTS.values()))


class Finishing(Protocol):
    """What is asked of a BackwardKernel."""

    @property
    def part(self) -> str: ...
    @property
    def bc(self) -> int: ...
    @property
    def warps(self) -> int: ...
    @property
    def finishes(self) -> str: ...
    @property
    def prepares(self) -> bool: ...
    @property
    def may_finish(self) -> bool: ...


def check_finishes(kernel: Finishing) -> None:
    """Raise ValueError for a kernel that cannot make dQ of sums as it says."""
    if kernel.finishes not in FINISHES:
        raise ValueError(
            f"config: finishes must be '' or one of {', '.join(FINISHES[1:])}, got {kernel.finishes!r}"
        )
    if kernel.finishes and not (kernel.may_finish and (kernel.part, kernel.finishes) != ("fused", "at_once")):
        raise ValueError(
            "config: finishes needs part='ordered', or part='fused' in the background, with two warpgroups that own "
            "keys and make dQ, 128 keys and 12 warps, for Hopper; got "
            f"part={kernel.part!r}, finishes={kernel.finishes!r}, bc={kernel.bc} and warps={kernel.warps}; leave "
            "finishes out"
        )
    if kernel.prepares and kernel.finishes != "background":
        raise ValueError(
            f"config: prepares needs finishes='background', got finishes={kernel.finishes!r}; leave prepares out"
        )
