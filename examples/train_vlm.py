"""Training steps of a small unified vision-language model: text is causal, the patches of an image see each other, and
rows hold several samples. Each step has a new layout, so a new mask.

Run: python examples/train_vlm.py [--steps 8] [--compile]. Needs torch: pip install '.[torch]' in the checkout. Uses
the GPU where torch finds one.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.nn import functional

import omnicupy as oc
import omnicupy.torch

WORDS, PATCH, WIDTH, HEADS, KV_HEADS = 64, 16, 64, 4, 2
Sample = list[tuple[str, int]]


class Block(torch.nn.Module):
    """A transformer block; queries share keys in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(WIDTH) for _ in range(2))
        self.qkv = torch.nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * (WIDTH // HEADS), bias=False)
        self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor, mask: oc.Mask) -> torch.Tensor:
        """x: (batch, tokens, width)."""
        split = self.qkv(self.norms[0](x)).unflatten(2, (-1, WIDTH // HEADS))
        q, k, v = (part.transpose(1, 2) for part in split.split([HEADS, KV_HEADS, KV_HEADS], dim=2))
        x = x + self.out(oc.torch.attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Model(torch.nn.Module):
    """Words are predicted from what is before them; patches are restored from their image and what is before it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.patches = torch.nn.Linear(PATCH, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))
        self.next_word = torch.nn.Linear(WIDTH, WORDS)
        self.patch = torch.nn.Linear(WIDTH, PATCH)

    def forward(self, batch: dict[str, torch.Tensor], mask: oc.Mask) -> torch.Tensor:
        """The loss of a packed row."""
        is_word = batch["is_word"][None, :, None]
        x = torch.where(is_word, self.words(batch["words"])[None], self.patches(batch["noised"])[None])
        for block in self.blocks:
            x = block(x, mask)
        of_words = functional.cross_entropy(self.next_word(x)[0], batch["next"], ignore_index=-100)
        restored = (self.patch(x)[0] - batch["patches"]).square()
        return of_words + (restored * ~batch["is_word"][:, None]).mean()


def samples(step: int, tokens: int) -> list[Sample]:
    """The layout of a row: samples of text, an image and text again, until it is full."""
    generator = torch.Generator().manual_seed(step)
    row: list[Sample] = []
    while tokens >= 40:
        before, after = torch.randint(4, 10, (2,), generator=generator).tolist()
        row.append([("text", before), ("image", 16), ("text", after)])
        tokens -= before + 16 + after
    return [*row, [("text", tokens)]]


def pack(row: list[Sample], step: int, device: Any) -> dict[str, torch.Tensor]:
    """Data of a row: words that count up from a random one, images of one colour with noise."""
    generator = torch.Generator().manual_seed(1000 + step)
    parts: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("words", "next", "is_word", "patches", "noised")
    }
    for sample in row:
        start = int(torch.randint(WORDS, (1,), generator=generator))
        for kind, length in sample:
            words = (start + torch.arange(length)) % WORDS
            start += length
            patches = torch.randn(1, PATCH, generator=generator).expand(length, PATCH)
            following = (words + 1) % WORDS
            following[-1] = -100  # nothing of the next part is known
            parts["words"].append(words)
            parts["next"].append(following if kind == "text" else torch.full((length,), -100))
            parts["is_word"].append(torch.full((length,), kind == "text"))
            parts["patches"].append(patches)
            parts["noised"].append(patches + torch.randn(length, PATCH, generator=generator))
    return {name: torch.cat(tensors).to(device) for name, tensors in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    torch.manual_seed(0)
    model = Model().to(device)
    run = torch.compile(model, fullgraph=True) if options.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = last = 0.0
    for step in range(options.steps):
        row = samples(step, options.tokens)
        mask = oc.segments(row)  # packed samples do not see each other
        # Weights stay float32; on a GPU attention runs in bfloat16.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = run(pack(row, step, device), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = loss.item()
        first = first or last
        print(f"step {step}: loss {last:.3f}, {mask.pairs / options.tokens**2:.0%} of the pairs")
    print(f"the loss fell by {1 - last / first:.0%}")


if __name__ == "__main__":
    main()
