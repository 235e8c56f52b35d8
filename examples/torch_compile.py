"""A compiled attention layer whose mask changes every step: one graph for all masks.

Run: python examples/torch_compile.py [--tokens 2048] [--steps 20]. Needs torch: pip install '.[torch]' in
the checkout. Uses the GPU where torch finds one.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch._dynamo.utils import counters

import omnicupy as oc
import omnicupy.torch


class Attention(torch.nn.Module):
    """Multi-head attention with grouped keys, as the unified vision-language models have it."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.qkv = torch.nn.Linear(width, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.proj = torch.nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, mask: oc.Mask) -> torch.Tensor:
        """x: (batch, tokens, width). The mask is an argument, so a new one compiles nothing."""
        heads = [self.heads, self.kv_heads, self.kv_heads]
        split = self.qkv(x).unflatten(2, (-1, self.head_dim)).split(heads, dim=2)
        q, k, v = (part.transpose(1, 2) for part in split)  # views: no copy is made of them
        return self.proj(oc.torch.attention(q, k, v, mask).transpose(1, 2).flatten(2))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    place = {"device": "cuda", "dtype": torch.bfloat16} if on_gpu else {"device": "cpu"}

    torch.manual_seed(0)
    layer = Attention(width=512, heads=8, kv_heads=2).to(**place)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(1, options.tokens, 512, **place)

    worst = 0.0
    for step in range(options.steps):
        mask = oc.random(options.tokens, step)  # other segments each step
        start = time.perf_counter()
        out = compiled(x, mask)
        if on_gpu:
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        worst = max(worst, (out - layer(x, mask)).abs().max().item())
        print(f"step {step}: {took * 1e3:.1f} ms, {mask.pairs / options.tokens**2:.0%} of the pairs")
    graphs = counters["stats"]["unique_graphs"]
    print(f"graphs compiled for {options.steps} masks: {graphs}; largest difference to eager: {worst:.1e}")


if __name__ == "__main__":
    main()
