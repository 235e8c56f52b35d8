"""Steps of an engine with images: new tokens of several requests, their keys in pages, and what attention gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

SPARE = 3  # pages that no request has
PAD = 4  # rows of q behind those that count


@dataclass(frozen=True)
class Request:
    """rows: new tokens, the last of `keys`.  images: first and last positions, both included.  optimistic: by how much
    the host takes it to be longer than it is.
    """

    rows: int
    keys: int
    images: tuple[tuple[int, int], ...] = ()
    optimistic: int = 0


@dataclass
class Step:
    """Tensors of a step of one layer. new_keys, new_values: of the tokens in q.  kv_cache: as vLLM lays it out,
    (blocks, kv_heads, block_size, 2 * head_size), without the new keys; NaN where nothing was written.
    """

    requests: list[Request]
    heads: tuple[int, int] = (4, 2)
    head_size: int = 16
    block_size: int = 16
    dtype: Any = torch.float64
    order: tuple[int, int, int, int] = (0, 2, 1, 3)  # of the cache's axes in memory
    seed: int = 0
    keys: list[Any] = field(default_factory=list)  # all of each request
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        counts = [one.rows for one in self.requests]
        self.starts = [0, *np.cumsum(counts).tolist()]
        self.tokens = self.starts[-1]
        q_heads, kv_heads = self.heads
        self.query = torch.randn(self.tokens + PAD, q_heads, self.head_size).to(self.dtype)
        self.output = torch.full_like(self.query, float("nan"))
        for one in self.requests:
            for held in (self.keys, self.values):
                held.append(torch.randn(one.keys, kv_heads, self.head_size).to(self.dtype))
        self._lay_out()
        self.new_keys, self.new_values = (self._new(held) for held in (self.keys, self.values))
        self.query_start_loc = torch.tensor(self.starts, dtype=torch.int32)
        self.seq_lens = torch.tensor([one.keys for one in self.requests], dtype=torch.int32)
        self.bounds = [one.keys + one.optimistic for one in self.requests]
        self.ranges = {i: list(one.images) for i, one in enumerate(self.requests)}

    def _new(self, held: list[Any]) -> Any:
        new = [all_keys[one.keys - one.rows :] for one, all_keys in zip(self.requests, held, strict=True)]
        return torch.cat([*new, torch.full((PAD, *held[0].shape[1:]), float("nan"), dtype=self.dtype)])

    def _lay_out(self) -> None:
        """Pages in no order; in `kv_cache` those keys that steps before have written, in `slots` where new ones go."""
        size, rng = self.block_size, np.random.default_rng(self.seed)
        needed = [-(-max(one.keys, 1) // size) for one in self.requests]
        shape = (sum(needed) + SPARE, self.heads[1], size, 2 * self.head_size)
        self._inverse = [self.order.index(axis) for axis in range(4)]
        memory = torch.full([shape[axis] for axis in self.order], float("nan"), dtype=self.dtype)
        self.kv_cache = memory.permute(self._inverse)
        pages = rng.permutation(shape[0]).tolist()
        width = max(needed) + 2
        self.block_table = torch.full(
            (len(needed), width), 2**31 - 1, dtype=torch.int32
        )  # which names no page
        slots: list[int] = []
        for i, one in enumerate(self.requests):
            own = [pages.pop() for _ in range(needed[i])]
            self.block_table[i, : needed[i]] = torch.tensor(own, dtype=torch.int32)
            for position in range(one.keys):
                page, at = own[position // size], position % size
                if position >= one.keys - one.rows:
                    slots.append(page * size + at)
                    continue
                self.kv_cache[page, :, at, : self.head_size] = self.keys[i][position]
                self.kv_cache[page, :, at, self.head_size :] = self.values[i][position]
        self.slots = torch.tensor(slots, dtype=torch.int64)

    def to(self, device: str) -> None:
        """Move what a layer of that device is given; the cache keeps its order in memory."""
        self.kv_cache = self.kv_cache.permute(self.order).to(device).permute(self._inverse)
        for name in ("query", "output", "new_keys", "new_values", "slots"):
            setattr(self, name, getattr(self, name).to(device))
        for name in ("query_start_loc", "seq_lens", "block_table"):
            setattr(self, name, getattr(self, name).to(device))

    def wanted(
        self,
        window: int | None = None,
        *,
        clamped: bool = False,
        images: bool = True,
        scale: float = 0.25,
        softcap: float | None = None,
        sinks: Any = None,
    ) -> Any:
        """Attention of the rows that count, in float64, by a mask of all pairs."""
        group, found = self.heads[0] // self.heads[1], []
        for i, one in enumerate(self.requests):
            q = self.query[self.starts[i] : self.starts[i + 1]].cpu().double().transpose(0, 1)
            k, v = (
                held[i].double().transpose(0, 1).repeat_interleave(group, 0)
                for held in (self.keys, self.values)
            )
            scores = scale * q @ k.transpose(1, 2)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores = scores.masked_fill(~seen(one, window, clamped, images), float("-inf"))
            if sinks is not None:
                column = sinks.double()[:, None, None].expand(-1, one.rows, 1)
                scores = torch.cat([scores, column], dim=2)
            weights = torch.softmax(scores, dim=2)[:, :, : one.keys]
            found.append((weights @ v).transpose(0, 1))
        return torch.cat(found)


def seen(one: Request, window: int | None, clamped: bool, images: bool) -> Any:
    """Which keys rows see, as vLLM's kernels say it: causal within the window, or in one image."""
    rows, keys = torch.arange(one.keys - one.rows, one.keys)[:, None], torch.arange(one.keys)[None]
    near = rows - keys < (window or one.keys + 1)
    mask = (keys <= rows) & near
    for first, last in one.images if images else ():
        of_image = (rows >= first) & (rows <= last) & (keys >= first) & (keys <= last)
        mask |= of_image & near if clamped else of_image
    return mask


def drawn(rng: np.random.Generator, most: int = 60) -> Request:
    """A request of any kind: decoding, a prompt or the rest of one, with images that may lie anywhere in it."""
    keys = int(rng.integers(1, most))
    rows = int(rng.choice([1, rng.integers(1, keys + 1), keys]))
    images, at = [], 0
    while rng.random() < 0.7:
        first = at + int(rng.integers(0, 8))
        last = first + int(rng.integers(0, 14))
        images.append((first, last))
        at = last + 1
    return Request(rows, keys, tuple(images))
