"""from_tiles: the mask of lists of tiles, as block-sparse attention chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from omnicupy.masks.arguments import at_least_one, host_array, length, plain_array
from omnicupy.masks.mask import Mask
from omnicupy.masks.tiles import Tiles, even_bounds

PADDING = -1  # in arrays of lists: no block


@overload
def from_tiles(lists: Sequence[Sequence[int]], q_len: int, k_len: int, br: int, bc: int) -> Mask: ...
@overload
def from_tiles(
    lists: Sequence[Sequence[Sequence[int]]], q_len: int, k_len: int, br: int, bc: int
) -> list[Mask]: ...
@overload
def from_tiles(lists: Any, q_len: int, k_len: int, br: int, bc: int) -> Mask | list[Mask]: ...
def from_tiles(lists: Any, q_len: int, k_len: int, br: int, bc: int) -> Mask | list[Mask]:
    """The mask in which rows of block i see all keys of the blocks lists[i] (STA, VSA, NABLA, MiniMax).

        k // bc in lists[q // br]

    lists: for each block of br rows a list of key blocks, or an integer array (row blocks, n), as top-k gives it,
    with -1 for none, or a boolean array (row blocks, key blocks). Blocks come in any order; one that comes twice
    counts once. One more axis in front, or a list of such arrays or lists, is one mask for each batch element and
    gives a list of masks. q_len, k_len: rows and keys. br, bc: rows and keys of a block, at least 1, independent of the
    tiles of a kernel; the last blocks may be short.

    The lists are kept as they are, since scattered tiles have no short intervals: `&` with any mask (causal, for
    one) and parts (`rows`, slices) keep them, too. `|` and `~` keep whole tiles of one size; with other masks
    they give intervals or bits, whichever is smaller.

    Raises TypeError for other types, ValueError for other numbers of lists and blocks that do not exist, and for
    an axis for heads: a mask is shared by all heads of a call.
    """
    shape = length("from_tiles", "q_len", q_len), length("from_tiles", "k_len", k_len)
    br, bc = at_least_one("from_tiles", "br", br), at_least_one("from_tiles", "bc", bc)
    size = min(br, shape[0]), min(bc, shape[1])  # one block of all, however large its size
    grid = -(-shape[0] // size[0]), -(-shape[1] // size[1])
    given = _plain("lists", lists)
    depth = _depth(given)
    if depth > 3:
        raise ValueError(
            f"from_tiles: lists must have two axes (row blocks, key blocks), or three with batch elements first, got "
            f"{depth}; a mask is shared by all heads: make one for each kind of head and call attention for each"
        )
    if depth == 3:
        return [_one(f"lists[{b}]", one, shape, size, grid) for b, one in enumerate(given)]
    return _one("lists", given, shape, size, grid)


def _plain(name: str, lists: Any) -> Any:
    """A list, or an array of booleans or integers; those of other libraries on the CPU become NumPy's."""
    if hasattr(lists, "__dlpack_device__") and not isinstance(lists, np.ndarray):
        lists = host_array("from_tiles", name, lists)
    if isinstance(lists, np.ndarray):
        plain_array(f"from_tiles: {name}", lists)
        if lists.dtype.kind not in "iub" or not lists.ndim:
            raise TypeError(
                f"from_tiles: {name} must hold block numbers or booleans, got an array of {lists.dtype} with shape "
                f"{lists.shape}; convert it"
            )
    elif not isinstance(lists, Sequence) or isinstance(lists, str | bytes):
        raise TypeError(
            f"from_tiles: {name} must be a list of lists or an array, got {type(lists).__name__} {lists!r}; give "
            "the key blocks of each row block"
        )
    return lists


def _depth(lists: Any) -> int:
    """How many axes lists have, empty ones aside."""
    if isinstance(lists, np.ndarray):
        return lists.ndim
    inner = [
        _depth(one) for one in lists if isinstance(one, Sequence | np.ndarray) and not isinstance(one, str)
    ]
    return 1 + max(inner, default=0)


def _one(name: str, lists: Any, shape: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> Mask:
    given = _plain(name, lists)
    if len(given) != grid[0]:
        raise ValueError(
            f"from_tiles: {name} must have a list for each of the {grid[0]} blocks of {size[0]} rows, got "
            f"{len(given)}; give an empty one to rows that see nothing"
        )
    row, key = _of_array(name, given, grid) if isinstance(given, np.ndarray) else _of_lists(name, given)
    if len(key) and not 0 <= key.min() <= key.max() < grid[1]:
        i = int(np.argmax((key < 0) | (key >= grid[1])))
        raise ValueError(
            f"from_tiles: {name}[{row[i]}] must name key blocks from 0 to {grid[1] - 1}, got {key[i]}; k_len / bc "
            "gives their number"
        )
    codes = np.unique(row * grid[1] + key)
    offsets = np.searchsorted(codes, np.arange(grid[0] + 1) * grid[1])
    bounds = even_bounds(shape[0], size[0]), even_bounds(shape[1], size[1])
    return Mask(shape, tiles=Tiles(shape, bounds, offsets, (codes % grid[1]).astype(np.int32)))


def _of_array(name: str, lists: NDArray[Any], grid: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Row block and key block of each tile of an array."""
    if lists.ndim != 2:
        raise ValueError(f"from_tiles: {name} must have two axes, got shape {lists.shape}; reshape it")
    if lists.dtype.kind == "b":
        if lists.shape[1] != grid[1]:
            raise ValueError(
                f"from_tiles: {name} must have shape {grid} (row blocks, key blocks) where it is boolean, got "
                f"{lists.shape}; give every key block"
            )
        row, key = np.nonzero(lists)
        return row, key
    row, place = np.nonzero(lists != PADDING)
    return row, lists[row, place].astype(np.int64)


def _of_lists(name: str, lists: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, keys = [], []
    for i, one in enumerate(lists):
        found = np.asarray(_plain(f"{name}[{i}]", one))
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise TypeError(
                f"from_tiles: {name}[{i}] must be a list of block numbers, got {one!r}; give integers"
            )
        keys.append(found.astype(np.int64))
        rows.append(np.full(len(found), i))
    return np.concatenate(rows), np.concatenate(keys)
