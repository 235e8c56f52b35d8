"""What a row of the tables becomes where scores are capped: its kernels with soft caps, which take registers, and so a
smaller tile where its own leaves none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omnicupy.jit.backward_kernel import MAKES_ALL, TileShape
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.spec import AttnSpec

# By kernel, rows, keys and warps: the least head_dim from which on the tile spills, and what is taken in its place.
_SMALLER: dict[tuple[str, int, int, int], tuple[int, dict[str, Any]]] = {
    ("sm90", 192, 128, 16): (16, {"bc": 96}),
    ("sm80", 128, 64, 4): (80, {"warps": 8}),
    ("sm80", 128, 96, 4): (16, {"warps": 8}),
    ("sm80", 64, 64, 4): (272, {"bc": 32}),
}
_SMALLER_FUSED = dict.fromkeys(
    (TileShape(64, 192, 3, 16), TileShape(64, 128, 4, 16)), TileShape(64, 128, 4, 12)
)
_SMALLER_DKDV = {TileShape(128, 128, 4, 12): TileShape(64, 192, 4, 16)}


def capped(spec: AttnSpec) -> AttnSpec:
    """The variant that takes a row's place in a call with a soft cap."""
    least, changes = _SMALLER.get((spec.kernel, spec.br, spec.bc, spec.warps), (0, {}))
    return replace(spec, softcap=True, **(changes if spec.head_dim >= least else {}))


def capped_backward(spec: BackwardSpec) -> BackwardSpec:
    """The kernels that take a row's place in a backward pass with a soft cap."""
    make_all = {name: getattr(spec, name) for name in MAKES_ALL}
    tiles = {name: _SMALLER_FUSED.get(one, one) for name, one in make_all.items()}
    return replace(spec, softcap=True, dkdv=_SMALLER_DKDV.get(spec.dkdv, spec.dkdv), **tiles)
