"""Measured speeds of devices: one set for each kernel, head_dim and height of a tile, kept in `ceilings.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnicupy.choose import backward_ceilings
from omnicupy.choose.backward_ceilings import BackwardCeilings
from omnicupy.choose.interpolate import at_head_dim
from omnicupy.errors import UnsupportedError
from omnicupy.jit import trust
from omnicupy.jit.files import replace_file

FloatArray = NDArray[np.float64]

SCHEMA = 6
FILE = Path(__file__).with_name("ceilings.json")
FITTED = ("pair_ps", "partial_ps", "causal_ps", "skipped_ps", "item_us", "launch_us", "megabyte_us")


@dataclass(frozen=True)
class Ceiling:
    """The speeds of a kernel at a head_dim (the kernel's) and a number of query rows in a tile, on one multiprocessor.

    head_dim: where values have another width, the mean of both (AttnSpec.mean_columns): so much work a pair is.
    pair_ps: picoseconds a pair of a full tile.  partial_ps, causal_ps: what a pair of such a tile takes longer.
    skipped_ps: what a pair takes whose warpgroup gives the tile back unread; such a pair counts for nothing else.
    item_us: microseconds a work item takes beside its tiles.  launch_us: of each call.  megabyte_us: of a megabyte of
    q, k, v and the result in memory.
    """

    kernel: str
    head_dim: int
    br: int
    pair_ps: float
    partial_ps: float
    causal_ps: float
    skipped_ps: float
    item_us: float
    launch_us: float
    megabyte_us: float

    def full_tflops(self, sm_count: int) -> float:
        """The rate of `sm_count` multiprocessors over full tiles alone, in TFLOP/s."""
        return 4 * self.head_dim * sm_count / self.pair_ps

    @property
    def weights_us(self) -> FloatArray:
        """Microseconds of each of prediction.TERMS."""
        of_pairs = (self.pair_ps, self.partial_ps, self.causal_ps, self.skipped_ps)
        return np.array([*(1e-6 * one for one in of_pairs), self.item_us])


@dataclass(frozen=True)
class TileCost:
    """What a tile takes of one multiprocessor, where several tiles of the table compete for a call.

    head_dims: (least, greatest) kernel head_dim.  pair_ps: picoseconds a pair of a FULL or CAUSAL tile.  partial_ps: a
    pair of a PARTIAL tile, in the mean of those that some warpgroup skips and those that none does.  block_us: a block
    of query rows of one head, apart from its pairs.  launch_us: what a call takes apart from its blocks.
    """

    kernel: str
    head_dims: tuple[int, int]
    br: int
    bc: int
    pair_ps: float
    partial_ps: float
    block_us: float
    launch_us: float

    def serves(self, kernel: str, head_dim: int, br: int, bc: int) -> bool:
        """True when it is the cost of this tile at this head_dim of the kernel."""
        least, greatest = self.head_dims
        return (self.kernel, self.br, self.bc) == (kernel, br, bc) and least <= head_dim <= greatest


@dataclass(frozen=True)
class Device:
    """What the model needs to know of a GPU."""

    name: str
    sm_count: int
    l2_bytes: int


@dataclass(frozen=True)
class Ceilings:
    """The speeds of one device. sources: the records that they were fitted on.  tiles: costs of competing tiles.
    backward: of the kernels of the backward pass, None where it was not measured.
    """

    device: Device
    of: tuple[Ceiling, ...]
    sources: tuple[str, ...] = ()
    tiles: tuple[TileCost, ...] = ()
    backward: BackwardCeilings | None = None

    def at(self, kernel: str, head_dim: int, br: int) -> Ceiling:
        """The speeds at a head_dim of the kernel, with tiles of `br` rows or the nearest height that was fitted there.

        Between the head_dims that were fitted they are interpolated. Below the least one a pair costs what it costs
        there (the exponentials stay), above the greatest in proportion to head_dim. Raises UnsupportedError for a
        kernel without any.
        """
        of_kernel = [one for one in self.of if one.kernel == kernel]
        if not of_kernel:
            raise UnsupportedError(
                f"no ceilings of kernel {kernel!r} on {self.device.name} are known; fit them from a benchmark record"
            )
        dims_of = {one.br: [other.head_dim for other in of_kernel if other.br == one.br] for one in of_kernel}
        height = min(
            dims_of,
            key=lambda known: (
                not min(dims_of[known]) <= head_dim <= max(dims_of[known]),
                abs(known - br),
                known,
            ),
        )
        found = [one for one in of_kernel if one.br == height]
        picked = at_head_dim(found, FITTED, head_dim, ("pair_ps", "item_us"))
        picked["item_us"] *= br / height
        return Ceiling(kernel, head_dim, height, **picked)

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "device": asdict(self.device),
            "sources": list(self.sources),
            "ceilings": [
                {
                    name: float(f"{value:.5g}") if name in FITTED else value
                    for name, value in asdict(one).items()
                }
                for one in self.of
            ],
            "tiles": [
                {
                    **{
                        name: float(f"{value:.5g}") if isinstance(value, float) else value
                        for name, value in asdict(one).items()
                    },
                    "head_dims": list(one.head_dims),
                }
                for one in self.tiles
            ],
            "backward": None if self.backward is None else self.backward.as_json(),
        }


def load(path: Path = FILE) -> list[Ceilings]:
    """The ceilings of every device in a file. Raises ValueError for a file that holds none, OSError."""
    try:
        content = trust.parsed_json(path.read_bytes())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        return [
            Ceilings(
                Device(**one["device"]),
                tuple(Ceiling(**ceiling) for ceiling in one["ceilings"]),
                tuple(one["sources"]),
                tuple(TileCost(**{**tile, "head_dims": tuple(tile["head_dims"])}) for tile in one["tiles"]),
                None if one["backward"] is None else backward_ceilings.from_json(one["backward"]),
            )
            for one in content["devices"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no ceilings ({error}); fit them anew") from error


@cache
def _of_the_library() -> list[Ceilings]:
    return load()


def tile_cost(kernel: str, head_dim: int, br: int, bc: int) -> TileCost:
    """The cost of a tile that competes, on the first device of the library's file that knows it.

    Devices differ in their speeds, hardly in which of two tiles is the faster one. Raises UnsupportedError for a tile
    without one.
    """
    for ceilings in _of_the_library():
        for tile in ceilings.tiles:
            if tile.serves(kernel, head_dim, br, bc):
                return tile
    raise UnsupportedError(
        f"the cost of {br} x {bc} tiles of kernel {kernel!r} at head_dim {head_dim} is not known; measure "
        "`bench choices` and fit it with `explain --fit`"
    )


def save(ceilings: Ceilings, path: Path = FILE) -> None:
    """Put the ceilings of a device into a file, before those of others and in place of older ones of its own."""
    others = [one for one in load(path) if one.device.name != ceilings.device.name] if path.exists() else []
    content = {"schema": SCHEMA, "devices": [one.as_json() for one in (ceilings, *others)]}
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def nearest(devices: Sequence[Ceilings], name: str | None, kernel: str) -> tuple[Ceilings, str]:
    """The ceilings of a device by its name, and "" or a sentence that says whose they are instead.

    kernel: which one they must be of, where those of any device are.
    """
    having = [one for one in devices if any(of.kernel == kernel for of in one.of)] or list(devices)
    for one in having:
        if one.device.name == name:
            return one, ""
    found = having[0]
    asked = f"{name} has not been measured" if name else "there is no GPU here"
    if any(one.device.name == name for one in devices):
        asked = f"kernel {kernel} has not been measured on {name}"
    return found, f"{asked}: these are the ceilings of {found.device.name}"
