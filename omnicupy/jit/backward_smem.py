"""Shared memory of the tiled kernels of the backward pass, in bytes, as their structs have it."""

from __future__ import annotations

from typing import Protocol

from omnicupy.jit.spec import MAX_ONE_PIECE, round_up

SLICE = 64  # columns at a time where kernel "sm80" cuts the head dimension
WIDE_HEAD_DIM = 128  # where either is wider, dK and dV of a key block lie in two warpgroups of kernel "sm90"
_SM80_WORK_BYTES = 16 + 2 * 128  # what a block of kernel "sm80" works on, and where it stands


class Tiled(Protocol):
    """What is asked of a BackwardKernel."""

    @property
    def part(self) -> str: ...
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
    def warpgroups(self) -> int: ...
    @property
    def is_staged(self) -> bool: ...
    @property
    def has_dq_apart(self) -> bool: ...


def hopper_bytes(of: Tiled) -> int:
    """Of kernel "sm90". A struct whose tiles lie on multiples of a KiB is a multiple of it, too."""
    return round_up(_hopper_bytes(of), 1024)


def _hopper_bytes(of: Tiled) -> int:
    # Panels of 64 columns; work slots, tiles and barriers in the last KiB.
    of_keys, of_values = (128 * -(-width // 64) for width in (of.head_dim, of.value_dim))
    if of.part == "dq":
        spans = 2 * 8 * of.bc * ((of.stages + 1) // 2)  # of the tiles whose keys are in flight
        slots = max(of_keys, of_values) * of.stages * of.bc  # of K and V in turn
        return (of_keys + of_values) * of.br + slots + spans + 1024
    tiles = (of_keys + of_values) * (of.bc + of.stages * of.br) + 8 * of.stages * of.br
    if of.part == "dkdv":
        widest = max(of.head_dim, of.value_dim)
        return tiles + 2 * 8 * of.bc + (4 * of.br * of.bc if widest > WIDE_HEAD_DIM else 0) + 1024
    tiles += (1 if of.warps == 12 else 2) * 8 * of.bc  # spans
    tiles += of.is_staged * 4 * of.br * of.head_dim * of.warpgroups  # dQ on its way
    ring = 3 if of.warpgroups == 3 or of.has_dq_apart else 2  # of gradients of scores
    return tiles + ring * 128 * of.br * of.warpgroups + 1024


def sm80_bytes(of: Tiled) -> int:
    """Of kernel "sm80"."""
    statistics = 2 * 4 * of.br  # lse2 and delta
    if of.head_dim > MAX_ONE_PIECE:
        return 2 * 2 * SLICE * (of.br + of.bc) + statistics + _SM80_WORK_BYTES
    columns = of.head_dim + of.value_dim
    queries, keys = 2 * columns * of.br + statistics, 2 * columns * of.bc
    owned, walked = (queries, keys) if of.part == "dq" else (keys, queries)
    score_gradients = 2 * of.br * of.bc if of.part == "fused" else 0  # dS^T
    return owned + of.stages * (walked + score_gradients) + _SM80_WORK_BYTES
