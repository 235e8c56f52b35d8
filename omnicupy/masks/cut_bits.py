"""Tile kinds of a mask held as bits: read 32 keys at a time, one block of query rows after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.block_mask import CAUSAL, FULL, PARTIAL
from omnicupy.masks.intervals import IntArray
from omnicupy.masks.pairs import PairSet

Listed = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], IntArray, NDArray[np.uint32]]


def classify_bits(mask: PairSet, br: int, bc: int) -> Listed:
    """Query block, key block, kind, payload of each listed tile in list order; bit tiles (t, br, bc / 32).

    Only PARTIAL tiles have a bit tile (payload >= 0); equal ones are stored once.
    """
    q_len = mask.shape[0]
    rows: list[NDArray[np.int64]] = []
    blocks: list[NDArray[np.int64]] = []
    kinds: list[NDArray[np.int64]] = []
    payloads: list[NDArray[np.int32]] = []
    known: dict[bytes, int] = {}
    for row, q0 in enumerate(range(0, q_len, br)):
        words = _words(mask, q0, min(q0 + br, q_len), br, bc)
        block, kind = _kinds(mask, words, q0, bc)
        payload = np.full(len(block), -1, np.int32)
        for i in np.flatnonzero(kind == PARTIAL):
            payload[i] = known.setdefault(words[block[i]].tobytes(), len(known))
        rows.append(np.full(len(block), row))
        blocks.append(block)
        kinds.append(kind)
        payloads.append(payload)
    tiles = np.frombuffer(b"".join(known), np.uint32).reshape(len(known), br, bc // 32)
    return (
        np.concatenate(rows),
        np.concatenate(blocks),
        np.concatenate(kinds),
        np.concatenate(payloads),
        tiles,
    )


def _words(mask: PairSet, q0: int, q1: int, br: int, bc: int) -> NDArray[np.uint32]:
    """Rows [q0, q1) as tiles, (k_blocks, br, bc / 32); rows and keys that do not exist are 0."""
    assert mask.bits is not None
    k_blocks = -(-mask.shape[1] // bc)
    padded = np.zeros((br, k_blocks * bc // 8), np.uint8)
    padded[: q1 - q0, : mask.bits.shape[1]] = mask.bits[q0:q1]
    words = padded.view("<u4").reshape(br, k_blocks, bc // 32)
    return np.ascontiguousarray(words.transpose(1, 0, 2))


def _kinds(
    mask: PairSet, words: NDArray[np.uint32], q0: int, bc: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Key block and kind of the listed tiles of one block of query rows, in list order."""
    q_len, k_len = mask.shape
    exist = words[:, : min(words.shape[1], q_len - q0)]
    listed = np.flatnonzero(exist.any(axis=(1, 2)))
    kind = np.where((exist[listed] == 0xFFFFFFFF).all(axis=(1, 2)), FULL, PARTIAL)
    rows = np.arange(q0, q0 + exist.shape[1])[:, None]
    for i in np.flatnonzero(kind == PARTIAL):
        k0 = int(listed[i]) * bc
        if k0 + bc > k_len or k0 >= q0 + exist.shape[1] + mask.diagonal or k0 + bc <= q0 + mask.diagonal:
            continue
        diagonal = np.packbits(np.arange(k0, k0 + bc) <= rows + mask.diagonal, axis=1, bitorder="little")
        if np.array_equal(diagonal.view("<u4"), exist[listed[i]]):
            kind[i] = CAUSAL
    order = np.argsort(kind == FULL, kind="stable")
    return listed[order], kind[order]
