"""Layers of models with random weights, and packed samples of text and images that they are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnicupy.masks.constructors import sliding_window
from omnicupy.masks.mask import Mask
from omnicupy.masks.segment_masks import segments
from omnicupy.tools.workloads.model_masks import Document

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' words for kinds of layers


@dataclass(frozen=True)
class Packs:
    """Rows of packed samples, each `longest` tokens at the most and a quarter of that at the least.

    text, image: tokens of a segment, from and to, both included; the last segment of a sample is cut to fit.
    noise: the share of images that other segments do not see.
    """

    longest: int
    text: tuple[int, int] = (32, 512)
    image: tuple[int, int] = (256, 4096)
    noise: float = 0.2

    @property
    def label(self) -> str:
        """In words, for a workload's name."""
        return f"samples to {self.longest:,}"

    def row(self, tokens: int, seed: int) -> list[Document]:
        """The samples of a row, whose last one is cut to fit."""
        rng = np.random.default_rng([seed, self.longest])
        row, left = [], tokens
        while left:
            size = min(left, int(rng.integers(self.longest // 4, self.longest, endpoint=True)))
            row.append(list(self._sample(size, rng)))
            left -= size
        return row

    def _sample(self, size: int, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
        is_text, left = True, size
        while left:
            tokens = min(left, int(rng.integers(*(self.text if is_text else self.image), endpoint=True)))
            yield "text" if is_text else "noise" if rng.random() < self.noise else "image", tokens
            is_text, left = not is_text, left - tokens


@dataclass(frozen=True)
class Stack:
    """Some layers of a model, and what they are trained on.

    label: of the model.  family: transformers' classes begin so.  sizes: of the configuration, in its words.  tokens:
    of a row.  packs: the kinds of rows.
    """

    label: str
    family: str
    sizes: dict[str, Any]
    tokens: int
    packs: tuple[Packs, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return tuple(self.sizes.get("layer_types") or [FULL] * self.sizes["num_hidden_layers"])

    def workload(self, packs: Packs) -> str:
        """What a row of a record calls it."""
        return f"{self.label}, {len(self.layers)} layers, {self.tokens:,} tokens, {packs.label}"

    def masks(self, packs: Packs, seed: int) -> dict[str, Mask]:
        """The mask of each kind of layer for a new row of samples, one interval per key; equal seeds give equal masks.

        A window holds for text and images alike, as in Gemma 3: a row sees no key further back.
        """
        made = {FULL: segments(packs.row(self.tokens, seed))}
        if SLIDING in self.layers:
            reach = self.sizes["sliding_window"] - 1
            made[SLIDING] = made[FULL] & sliding_window(self.tokens, left=reach, right=self.tokens)
        return made


_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 512,  # nothing is embedded
    "max_position_embeddings": 131072,
}
_GEMMA = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "layer_types": [SLIDING] * 5 + [FULL],
    "vocab_size": 512,
    "max_position_embeddings": 131072,
}


def _tiny(sizes: dict[str, Any], **more: Any) -> dict[str, Any]:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return sizes | small | {"head_dim": 16} | more


_TINY_PACKS = (Packs(128, (2, 20), (10, 60)),)
_GEMMA_IMAGES: dict[str, Any] = {"image": (256, 256), "noise": 0.0}
STACKS = {
    "llama": Stack("Llama 3 8B", "Llama", _LLAMA, 32768, (Packs(8192), Packs(32768))),
    # Rows so short that SDPA with a dense mask ends in time.
    "llama-short": Stack("Llama 3 8B", "Llama", _LLAMA, 16384, (Packs(8192),)),
    "gemma": Stack(
        "Gemma 3 4B",
        "Gemma3Text",
        _GEMMA,
        32768,
        (Packs(8192, **_GEMMA_IMAGES), Packs(32768, **_GEMMA_IMAGES)),
    ),
    # For tests on the CPU.
    "tiny-llama": Stack("tiny Llama", "Llama", _tiny(_LLAMA, num_hidden_layers=2), 256, _TINY_PACKS),
    "tiny-gemma": Stack(
        "tiny Gemma",
        "Gemma3Text",
        _tiny(_GEMMA, sliding_window=24, query_pre_attn_scalar=16),
        256,
        (Packs(128, (2, 20), (16, 16), 0.0),),
    ),
}
