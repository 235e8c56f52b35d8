"""What tiles the forward kernels have: checks of a spec's fields, each of which raises ValueError."""

from __future__ import annotations

from typing import Protocol

REGISTERS = 65536  # of a multiprocessor
# Registers that an instruction of wgmma needs beside those of the columns that it adds to: ptxas refuses a kernel whose
# threads begin with fewer (C7602).
_BESIDE = 30
BLOCKS = (1, 2, 3)
KEY_TURNS = "attention_fwd_key_turns.cu"  # what tiles run that `takes_key_turns` knows


class Tile(Protocol):
    """The fields of a spec that are looked at."""

    @property
    def arch(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...
    @property
    def br(self) -> int: ...
    @property
    def bc(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def warps(self) -> int: ...
    @property
    def share_kv(self) -> bool: ...
    @property
    def swizzle(self) -> bool: ...
    @property
    def tiled(self) -> bool: ...
    @property
    def pack(self) -> bool: ...
    @property
    def blocks(self) -> int: ...
    @property
    def scheduler(self) -> bool: ...
    @property
    def ping_pong(self) -> bool: ...


def check_sm80(spec: Tile, most_columns: int) -> None:
    """Raises ValueError for a tile that kernel "sm80" has not. most_columns: above them head_dim is tiled."""
    if spec.warps not in (1, 2, 4, 8):
        raise ValueError(f"config: warps must be 1, 2, 4 or 8, got {spec.warps}")
    if spec.br not in (16 * spec.warps, 32 * spec.warps):
        raise ValueError(
            f"config: br must be 16 or 32 rows a warp ({16 * spec.warps} or {32 * spec.warps} with "
            f"{spec.warps} warps), got {spec.br}"
        )
    if spec.share_kv and spec.stages != 1:
        raise ValueError(
            f"config: share_kv needs stages=1 (one buffer for K and V), got stages={spec.stages}"
        )
    if spec.stages == 4:
        raise ValueError("config: kernel 'sm80' has 1, 2 or 3 stages, got 4; take stages=3 or kernel='sm90'")
    if spec.tiled and (spec.share_kv or spec.br != 16 * spec.warps):
        raise ValueError(
            f"config: head_dim {spec.head_dim} is tiled (above {most_columns}): it needs share_kv=False and "
            f"br={16 * spec.warps} with {spec.warps} warps, got share_kv={spec.share_kv}, br={spec.br}"
        )


def check_sm90(spec: Tile, most_columns: int) -> None:
    """Raises ValueError for a tile that kernel "sm90" has not. most_columns: of head_dim."""
    if spec.arch != "sm_90a":
        raise ValueError(f"config: kernel 'sm90' needs arch='sm_90a' (wgmma), got {spec.arch!r}")
    if spec.warps not in (8, 12, 16) or spec.br not in (64, 16 * (spec.warps - 4)):
        raise ValueError(
            "config: kernel 'sm90' has 4 producer warps and 4 warps for each 64 query rows: br=64, 128 or 192 "
            "with warps=8, 12 or 16, or br=64 for 2 or 3 heads with warps=12 or 16, got "
            f"br={spec.br}, warps={spec.warps}"
        )
    if spec.head_dim > most_columns or spec.share_kv or not spec.swizzle:
        raise ValueError(
            f"config: kernel 'sm90' serves head_dim up to {most_columns}, share_kv=False and swizzle=True, got "
            f"head_dim={spec.head_dim}, share_kv={spec.share_kv}, swizzle={spec.swizzle}; take kernel='sm80'"
        )


def takes_key_turns(spec: Tile) -> bool:
    """Do two warpgroups have all rows of a packed tile, and take the tiles of keys in turn?"""
    return spec.pack and (spec.br, spec.warps) == (64, 12)


def check_pack(spec: Tile) -> None:
    """Raises ValueError for packed heads in a tile that no kernel packs them into."""
    tiles = ((64, 8), (64, 12), (128, 12))
    if spec.pack and (spec.kernel != "sm90" or (spec.br, spec.warps) not in tiles):
        words = ", or ".join(f"br={rows} and warps={warps}" for rows, warps in tiles)
        raise ValueError(
            f"config: pack=True needs kernel='sm90' with {words}, got kernel={spec.kernel!r}, br={spec.br}, "
            f"warps={spec.warps}"
        )
    if takes_key_turns(spec) and (spec.bc < 128 or spec.stages < 2 or not spec.ping_pong):
        raise ValueError(
            "config: pack=True with br=64 and warps=12 needs bc=128 or more, stages=2 or more and ping_pong=True, got "
            f"bc={spec.bc}, stages={spec.stages} and ping_pong={spec.ping_pong}; take warps=8"
        )


def check_blocks(spec: Tile) -> None:
    """Raises ValueError where a multiprocessor does not hold so many thread blocks, or the kernel has no such variant:
    their threads begin with an even share of the registers, which has to hold one instruction. And for a scheduler
    where there is no choice.
    """
    if spec.scheduler and (spec.kernel, spec.warps) != ("sm90", 16):
        raise ValueError(
            f"config: scheduler=True needs kernel='sm90' with warps=16, got kernel={spec.kernel!r}, "
            f"warps={spec.warps}; with fewer warps there is one anyway"
        )
    if spec.blocks not in BLOCKS:
        raise ValueError(f"config: blocks must be 1, 2 or 3, got {spec.blocks}")
    if spec.blocks == 1:
        return
    if spec.kernel != "sm90" or spec.pack or spec.warps not in (8, 12):
        raise ValueError(
            f"config: blocks={spec.blocks} needs kernel='sm90' with warps=8 or 12 and pack=False, got "
            f"kernel={spec.kernel!r}, warps={spec.warps}, pack={spec.pack}"
        )
    share = REGISTERS // (32 * spec.warps * spec.blocks) // 8 * 8
    most = 2 * (share - _BESIDE)
    if max(spec.bc, spec.value_dim) > most:
        raise ValueError(
            f"config: blocks={spec.blocks} with warps={spec.warps} leaves registers for bc and value_dim up to {most}, "
            f"got bc={spec.bc} and value_dim={spec.value_dim}; lower blocks"
        )
