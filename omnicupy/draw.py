"""A mask as text."""

from __future__ import annotations

from omnicupy.blockmask import BlockMask
from omnicupy.pairset import PairSet


def text(mask: PairSet) -> str:
    return ""


def plot(mask: PairSet, blocks: BlockMask, path: str) -> None:
    raise NotImplementedError
