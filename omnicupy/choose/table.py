"""The built-in table: which variants serve which calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from omnicupy.jit.archs import ARCHES
from omnicupy.jit.spec import DTYPES, MAX_HEAD_DIM, PACKED_PAIR, PACKED_ROWS, AttnSpec

HOPPER = ("sm_90",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: when it serves, and with which tile.

    head_dims: (least, greatest) kernel head_dim, both included.  value_dim: the kernel's; None for values as wide as
    keys, and for others by the wider of both: what fits that fits the narrower, too.  shape: "any", or "small" for few
    query rows and for problems whose "any" row would leave multiprocessors without work, or "shared" for few query rows
    of groups whose heads fill tiles, or "packed" for few query rows where packing a group's heads into tiles leaves
    fewer of them, or "pair" in place of a "packed" one where a key head has as many rows of heads and tokens as
    `group_rows` says, or "turns" likewise, or "short" for calls whose "any" row has one of the tiles `instead_of` (br,
    bc), at most `most_keys` keys, and masks that allow at most the share `most_density` of all pairs and whose rows see
    at most `most_row_keys` keys each in the mean; not for calls on caches.  competes: neighbours that do compete for
    the same calls, and the mask decides by what the tiles cost (ceilings.tile_cost).  The rest: as in AttnSpec.
    """

    head_dims: tuple[int, int]
    br: int
    bc: int
    stages: int = 1
    warps: int = 4
    share_kv: bool = False
    kernel: str = "sm80"
    shape: str = "any"
    competes: bool = False
    ping_pong: bool = True
    pack: bool = False
    blocks: int = 1
    scheduler: bool = False
    group_rows: tuple[int, int] = (0, 0)
    instead_of: tuple[tuple[int, int], ...] = ()
    most_keys: int | None = None
    most_density: float = 1.0
    most_row_keys: int | None = None
    value_dim: int | None = None
    archs: tuple[str, ...] = ARCHES
    dtypes: tuple[str, ...] = DTYPES

    def spec(self, arch: str, dtype: str, head_dim: int, value_dim: int | None = None) -> AttnSpec:
        """The variant for an architecture, dtype and kernel widths, value_dim None for the row's, or else for values as
        wide as keys. Raises ValueError if it is illegal.
        """
        return _spec(self, arch, dtype, head_dim, value_dim or self.value_dim or head_dim)

    def serves(self, arch: str, dtype: str, head_dim: int, value_dim: int | None = None) -> bool:
        """True when the row is for this architecture, dtype and kernel widths, None for values as wide as keys."""
        least, greatest = self.head_dims
        columns = head_dim if self.value_dim is not None else max(head_dim, value_dim or 0)
        widths = least <= columns <= greatest and self.value_dim in (None, value_dim)
        return widths and arch in self.archs and dtype in self.dtypes

    def widths(self, every: bool) -> Iterator[tuple[int, int]]:
        """Kernel widths of keys and values that it is verified with: its greatest, or every one where it serves values
        as wide as keys; and the PAIRS that it serves.
        """
        least, greatest = self.head_dims
        if self.value_dim is None:
            yield from ((each, each) for each in range(least if every else greatest, greatest + 1, 16))
        yield from (pair for pair in PAIRS if self.serves(self.archs[0], self.dtypes[0], *pair))


@lru_cache(maxsize=1024)
def _spec(row: Row, arch: str, dtype: str, head_dim: int, value_dim: int) -> AttnSpec:
    return AttnSpec(
        arch="sm_90a" if row.kernel == "sm90" else arch,
        kernel=row.kernel,
        dtype=dtype,
        head_dim=head_dim,
        br=row.br,
        bc=row.bc,
        stages=row.stages,
        warps=row.warps,
        share_kv=row.share_kv,
        ping_pong=row.ping_pong,
        pack=row.pack,
        blocks=row.blocks,
        scheduler=row.scheduler,
        value_dim=value_dim,
    )


def _windows(
    head_dims: tuple[int, int], most_row_keys: int, *instead_of: tuple[int, int], stages: int, blocks: int
) -> Row:
    """A row for masks whose rows see few keys: tiles of 64 x 64, which begin where a row's keys do."""
    return Row(
        kernel="sm90",
        head_dims=head_dims,
        shape="short",
        instead_of=instead_of,
        most_row_keys=most_row_keys,
        br=64,
        bc=64,
        stages=stages,
        warps=8,
        blocks=blocks,
        archs=HOPPER,
    )


def _packed(head_dims: tuple[int, int], bc: int, stages: int, pair: tuple[int, int] | None = None) -> Row:
    """A row of packed tiles. pair: of those that two warpgroups share, the rows of a key head they are for."""
    rows = PACKED_PAIR if pair else PACKED_ROWS
    return Row(
        kernel="sm90",
        head_dims=head_dims,
        shape="pair" if pair else "packed",
        group_rows=pair or (0, 0),
        br=rows,
        bc=bc,
        stages=stages,
        warps=4 + rows // 16,
        pack=True,
        archs=HOPPER,
    )


def _turns(head_dims: tuple[int, int], stages: int, rows: tuple[int, int]) -> Row:
    """A row of packed tiles whose keys two warpgroups take in turn. rows: of a key head, which they are for."""
    return Row(
        kernel="sm90",
        head_dims=head_dims,
        shape="turns",
        group_rows=rows,
        br=PACKED_ROWS,
        bc=128,
        stages=stages,
        warps=12,
        pack=True,
        archs=HOPPER,
    )


TABLE = (
    _packed((16, 64), bc=128, stages=4),
    _packed((80, 128), bc=128, stages=2),
    _packed((144, 192), bc=64, stages=3),
    _packed((208, 256), bc=64, stages=2),
    # Of narrow heads, rows that else fill two tiles, which read the same keys. Of wide ones, rows that leave the second
    # warpgroup idle: with 64 and 112 rows these tiles were no faster, with 28 they were (docs/tries.md).
    _packed((16, 64), bc=128, stages=4, pair=(65, 128)),
    _packed((80, 128), bc=128, stages=2, pair=(17, 48)),
    # With more rows of wide heads products and weights take as long as keys do, and run side by side so: 112 rows took
    # 73.4 us for 79.3, 64 took 132.3 for 133.8 (docs/tries.md).
    _turns((80, 128), stages=3, rows=(49, 128)),
    Row(kernel="sm90", head_dims=(16, 128), shape="shared", br=64, bc=128, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(144, 256), shape="shared", br=64, bc=64, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(16, 128), shape="small", br=64, bc=128, stages=2, warps=8, archs=HOPPER),
    Row(kernel="sm90", head_dims=(144, 256), shape="small", br=64, bc=64, stages=2, warps=8, archs=HOPPER),
    Row(kernel="sm90", head_dims=(16, 32), br=192, bc=96, stages=3, warps=16, archs=HOPPER),
    Row(kernel="sm90", head_dims=(48, 64), br=192, bc=128, stages=3, warps=16, archs=HOPPER),
    Row(
        kernel="sm90",
        head_dims=(80, 96),
        br=192,
        bc=96,
        stages=3,
        warps=16,
        competes=True,
        archs=HOPPER,
    ),
    Row(
        kernel="sm90",
        head_dims=(80, 96),
        br=128,
        bc=64,
        stages=3,
        warps=12,
        competes=True,
        archs=HOPPER,
    ),
    Row(
        kernel="sm90",
        head_dims=(112, 128),
        br=192,
        bc=64,
        stages=3,
        warps=16,
        competes=True,
        archs=HOPPER,
    ),
    Row(
        kernel="sm90",
        head_dims=(112, 128),
        br=128,
        bc=128,
        stages=2,
        warps=12,
        competes=True,
        archs=HOPPER,
    ),
    Row(kernel="sm90", head_dims=(192, 192), value_dim=128, br=128, bc=128, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(144, 192), br=128, bc=96, stages=2, warps=12, archs=HOPPER),
    Row(kernel="sm90", head_dims=(208, 256), br=128, bc=64, stages=2, warps=12, archs=HOPPER),
    _windows((48, 64), 64, (192, 128), stages=3, blocks=3),
    _windows((80, 80), 256, (192, 96), (128, 64), stages=2, blocks=3),
    _windows((96, 96), 64, (192, 96), (128, 64), stages=2, blocks=2),
    _windows((112, 128), 64, (192, 64), (128, 128), stages=2, blocks=2),
    Row(
        kernel="sm90",
        head_dims=(48, 64),
        shape="short",
        instead_of=((192, 128),),
        most_keys=512,
        most_density=0.55,
        br=64,
        bc=64,
        stages=3,
        warps=8,
        blocks=3,
        archs=HOPPER,
    ),
    Row(
        kernel="sm90",
        head_dims=(80, 128),
        shape="short",
        instead_of=((192, 64), (192, 96), (128, 64)),
        most_keys=512,
        br=192,
        bc=64,
        stages=3,
        warps=16,
        scheduler=True,
        archs=HOPPER,
    ),
    _windows((80, 80), 512, (192, 96), (128, 64), stages=2, blocks=3),
    Row(head_dims=(16, 128), shape="small", br=64, bc=64),
    Row(head_dims=(16, 64), br=128, bc=96, stages=2, archs=HOPPER),
    Row(head_dims=(16, 64), br=128, bc=64),
    Row(head_dims=(80, 128), br=128, bc=64, archs=HOPPER),
    Row(head_dims=(80, 128), br=128, bc=64, warps=8),  # 32 rows a warp spill on the others
    Row(head_dims=(192, 192), value_dim=128, shape="small", br=64, bc=64),
    Row(head_dims=(192, 192), value_dim=128, br=128, bc=64, warps=8),
    Row(head_dims=(144, 256), br=64, bc=64),
    Row(head_dims=(272, MAX_HEAD_DIM), br=64, bc=64, stages=2, archs=HOPPER),
    Row(head_dims=(272, MAX_HEAD_DIM), br=64, bc=32, stages=2),
)

# Widths of keys and values that rows name, as those of multi-head latent attention.
PAIRS = tuple(dict.fromkeys((row.head_dims[1], row.value_dim) for row in TABLE if row.value_dim is not None))


def rows() -> Iterator[AttnSpec]:
    """The variant of each row, architecture and dtype, at the row's greatest head_dim and at PAIRS: the tests' list."""
    return _specs(every=False)


def every_spec() -> Iterator[AttnSpec]:
    """The full product of the table: each row at each head_dim, architecture and dtype that it serves, and at PAIRS."""
    return _specs(every=True)


def _specs(every: bool) -> Iterator[AttnSpec]:
    seen: set[AttnSpec] = set()
    for row in TABLE:
        for widths in row.widths(every):
            for arch, dtype in product(row.archs, row.dtypes):
                spec = row.spec(arch, dtype, *widths)
                if spec not in seen:
                    seen.add(spec)
                    yield spec
