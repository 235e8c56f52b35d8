"""Measured speeds of the kernels of the backward pass: a part of each device's entry in `ceilings.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.choose.interpolate import at_head_dim
from omnicupy.errors import UnsupportedError

FloatArray = NDArray[np.float64]

OF_KERNELS = ("pair_ps", "partial_ps", "causal_ps", "skipped_ps", "item_us", "merge_us")
PRODUCTS = {"dkdv": 4, "dq": 3, "fused": 5, "ordered": 5}  # of a tile, by the kernel's part
OF_PASSES = ("launch_us", "megabyte_us", "beside_us", "memory_us")


@dataclass(frozen=True)
class KernelCeiling:
    """The speeds of one kernel of the backward pass on one multiprocessor.

    kernel: "sm90".  part: "dkdv", "dq", "fused" or "ordered".  head_dim: the kernel's, or the mean of both widths.
    owned: tokens that a thread block owns, keys, for dq queries.  pair_ps: picoseconds a pair of a FULL tile.
    partial_ps, causal_ps: what a pair of such a tile takes longer.  skipped_ps: what a pair takes whose warpgroup gives
    the tile back unread; it counts for nothing else.  item_us: microseconds of a work item beside its tiles.  merge_us:
    what it takes longer as a part of a split block.
    """

    kernel: str
    part: str
    head_dim: int
    owned: int
    pair_ps: float
    partial_ps: float
    causal_ps: float
    skipped_ps: float
    item_us: float
    merge_us: float

    def full_tflops(self, sm_count: int) -> float:
        """The rate of `sm_count` multiprocessors over FULL tiles alone, in TFLOP/s of the products that it computes."""
        return 2 * PRODUCTS[self.part] * self.head_dim * sm_count / self.pair_ps

    @property
    def weights_us(self) -> FloatArray:
        """Microseconds of each of backward_prediction.TERMS."""
        of_pairs = (self.pair_ps, self.partial_ps, self.causal_ps, self.skipped_ps)
        return np.array([*(1e-6 * one for one in of_pairs), self.item_us, self.merge_us])


@dataclass(frozen=True)
class BackwardCeilings:
    """The speeds of the backward pass on one device. sources: the records that they were fitted on.

    launch_us: of each pass.  megabyte_us: of a megabyte that the launches which prepare and convert read or write.
    beside_us: of one where a warp of the kernel between them does so beside the others; so much longer these take.
    memory_us: of one that the kernels between them fetch and store.
    """

    of: tuple[KernelCeiling, ...]
    launch_us: float
    megabyte_us: float
    beside_us: float
    memory_us: float
    sources: tuple[str, ...] = ()

    def at(self, kernel: str, part: str, head_dim: int, owned: int) -> KernelCeiling:
        """The speeds of a kernel at a head_dim, with `owned` tokens a thread block or the nearest number known.

        Between the head_dims that were fitted they are interpolated. Below the least one a pair costs what it costs
        there, above the greatest in proportion to head_dim. Raises UnsupportedError for a kernel without any.
        """
        of_part = [one for one in self.of if (one.kernel, one.part) == (kernel, part)]
        if not of_part:
            raise UnsupportedError(
                f"no ceilings of kernel {kernel!r} for {part} are known; measure `bench fit --pass bwd` and fit "
                "them with `explain --fit`"
            )
        dims_of = {
            one.owned: [other.head_dim for other in of_part if other.owned == one.owned] for one in of_part
        }
        nearest = min(
            dims_of,
            key=lambda known: (
                known != owned,
                not min(dims_of[known]) <= head_dim <= max(dims_of[known]),
                abs(known - owned),
                known,
            ),
        )
        found = [one for one in of_part if one.owned == nearest]
        picked = at_head_dim(found, OF_KERNELS, head_dim, ("pair_ps", "item_us", "merge_us"))
        picked["item_us"] *= owned / nearest
        picked["merge_us"] *= owned / nearest
        return KernelCeiling(kernel, part, head_dim, owned, **picked)

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "sources": list(self.sources),
            **{name: _short(getattr(self, name)) for name in OF_PASSES},
            "kernels": [
                {name: _short(value) if name in OF_KERNELS else value for name, value in asdict(one).items()}
                for one in self.of
            ],
        }


def from_json(content: Mapping[str, Any]) -> BackwardCeilings:
    """The ceilings of as_json. Raises KeyError and TypeError for another content."""
    return BackwardCeilings(
        tuple(KernelCeiling(**one) for one in content["kernels"]),
        **{name: float(content[name]) for name in OF_PASSES},
        sources=tuple(content["sources"]),
    )


def _short(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")
