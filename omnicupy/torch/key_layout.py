"""Where the keys of a call lie, each a page of one token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

CAPACITY = (
    256  # keys that a table has room for are a multiple of it, so that few lengths need a plan of their own
)
POOL = 1 << 20  # and so are the pages of a pool, of which a table names those that are there
MOST_PAGES = (1 << 31) - POOL
ELEMENTS = 8  # of 16 bits: what kernels read in one go


@dataclass(frozen=True)
class Layout:
    """Where the keys of a call lie. batch, heads, keys: of k.  steps: from one to the next of each of these, in pages.
    k_page, v_page: elements from page to page.  apart: each head is a sequence.
    """

    batch: int
    heads: int
    keys: int
    steps: tuple[int, int, int]
    k_page: int
    v_page: int
    apart: bool

    @property
    def sequences(self) -> tuple[int, int]:
        """Batch elements, and sequences that each of them is."""
        return self.batch, self.heads if self.apart else 1

    @property
    def capacity(self) -> int:
        """Keys that a table has room for."""
        return -(-self.keys // CAPACITY) * CAPACITY

    @property
    def pages(self) -> int:
        """More than any page that a table names."""
        lengths = (*self.sequences, self.keys)
        last = sum((n - 1) * step for n, step in zip(lengths, self.steps, strict=True))
        return (last // POOL + 1) * POOL

    def places(self, keys: int, device: Any) -> Any:
        """The pages of the first `keys` keys, int32, (batch, sequences of an element, keys)."""
        batch, heads = self.sequences
        dense = (heads * self.keys if batch > 1 else 0), (self.keys if heads > 1 else 0), 1
        if heads == self.heads and self.steps == dense:
            every = torch.arange(batch * heads * self.keys, dtype=torch.int32, device=device)
            return every.view(batch, heads, self.keys)[..., :keys]
        axes = (batch, 1, 1), (heads, 1), (keys,)
        of_batch, of_heads, of_keys = (
            torch.arange(shape[0], dtype=torch.int32, device=device).view(shape) * step
            for shape, step in zip(axes, self.steps, strict=True)
        )
        return of_batch + of_heads + of_keys


def layout_of(k: Any, v: Any, *, apart: bool) -> Layout | None:
    """The layout of k and v (batch, heads, keys, columns); None where no pages of one token name all keys."""
    if k.dim() != 4 or k.shape[:3] != v.shape[:3] or 0 in k.shape or 0 in v.shape:
        return None
    batch, heads, keys = k.shape[:3]
    (of_k, k_page), (of_v, v_page) = _in_pages(k), _in_pages(v)
    if of_k != of_v or k.stride(3) != 1 or v.stride(3) != 1 or k_page % ELEMENTS or v_page % ELEMENTS:
        return None
    found = Layout(batch, heads, keys, of_k, k_page, v_page, apart)
    return found if found.pages <= MOST_PAGES else None


def _in_pages(array: Any) -> tuple[tuple[int, int, int], int]:
    """Steps of the first three axes in pages, and the elements from page to page."""
    strides = [0 if n == 1 else step for n, step in zip(array.shape[:3], array.stride()[:3], strict=True)]
    page = math.gcd(*strides) or array.shape[3]
    a, b, c = (step // page for step in strides)
    return (a, b, c), page
