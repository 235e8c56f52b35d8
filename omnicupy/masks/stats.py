"""What a cut mask costs: counts of pairs and tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnicupy.masks.block_mask import CAUSAL, DEAD, FULL, PARTIAL, BlockMask


@dataclass(frozen=True, kw_only=True)
class MaskStats:
    """Figures of one mask cut at (br, bc).

    pairs: allowed pairs.  density: pairs over q_len * k_len.  full, causal, partial: listed tiles by kind.
    tiles: listed tiles.  empty: tiles that are never visited.  dead: listed tiles that hold a dead key.
    executed: pairs a kernel computes, tiles * br * bc.  waste: executed over pairs (1.0 is none, and 1.0 for
    an empty mask, which executes nothing).  bit_tiles: stored bit tiles.
    """

    q_len: int
    k_len: int
    br: int
    bc: int
    pairs: int
    full: int
    causal: int
    partial: int
    dead: int
    bit_tiles: int

    @property
    def density(self) -> float:
        """Allowed pairs over all pairs."""
        return self.pairs / (self.q_len * self.k_len)

    @property
    def tiles(self) -> int:
        """Listed tiles."""
        return self.full + self.causal + self.partial

    @property
    def empty(self) -> int:
        """Tiles that are not listed."""
        return -(-self.q_len // self.br) * -(-self.k_len // self.bc) - self.tiles

    @property
    def executed(self) -> int:
        """Pairs in the listed tiles, tails included."""
        return self.tiles * self.br * self.bc

    @property
    def waste(self) -> float:
        """Executed pairs over allowed pairs."""
        return self.executed / self.pairs if self.pairs else 1.0

    def __str__(self) -> str:
        return "\n".join(
            (
                f"mask      {self.q_len} rows x {self.k_len} keys",
                f"pairs     {self.pairs:,} allowed ({self.density:.2%})",
                f"tiles     {self.br} x {self.bc}: {self.tiles:,} visited, {self.empty:,} skipped",
                f"          {self.full:,} full, {self.causal:,} causal, {self.partial:,} partial"
                + (f" ({self.bit_tiles:,} bit tiles)" if self.bit_tiles else "")
                + (f"; {self.dead:,} hold dead keys" if self.dead else ""),
                f"executed  {self.executed:,} pairs, {self.waste:.3f} x the allowed ones",
            )
        )


def stats_of(blocks: BlockMask, pairs: int) -> MaskStats:
    """The figures of a cut mask; `pairs` is its number of allowed pairs."""
    kinds, tiles = blocks.kinds, blocks.tiles
    return MaskStats(
        q_len=blocks.q_len,
        k_len=blocks.k_len,
        br=blocks.br,
        bc=blocks.bc,
        pairs=pairs,
        full=int(tiles[kinds == FULL].sum(dtype=np.int64)),
        causal=int((kinds == CAUSAL).sum()),
        partial=int((kinds == PARTIAL).sum()),
        dead=int(((blocks.entries[:, 0] & DEAD) != 0).sum()),
        bit_tiles=len(blocks.bit_tiles),
    )
