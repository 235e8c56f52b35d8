"""Training steps of a small model on packed sequences that several ranks share (context parallelism).

Run: python examples/context_parallel.py [--ranks 2], which starts gloo processes on the CPU, or on GPUs
torchrun --nproc-per-node 8 examples/context_parallel.py. Needs torch: pip install '.[torch]' in the checkout. Each step
has a new layout, so a new mask and a new plan; a data loader would make both. Rank 0 also computes the first step's
loss alone, to compare.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

import omnicupy as oc
import omnicupy.parallel
import omnicupy.torch

WORDS, WIDTH, HEADS, KV_HEADS = 64, 64, 4, 2
IGNORED = -100  # a label that counts for nothing


class Block(torch.nn.Module):
    """A transformer block. Everything but attention is done token by token, so each rank does it for its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(WIDTH) for _ in range(2))
        self.qkv = torch.nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * (WIDTH // HEADS), bias=False)
        self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor, attend: Any) -> torch.Tensor:
        """x: (batch, tokens of this rank, width).  attend: attention of q, k and v."""
        split = self.qkv(self.norms[0](x)).unflatten(2, (-1, WIDTH // HEADS))
        q, k, v = (part.transpose(1, 2) for part in split.split([HEADS, KV_HEADS, KV_HEADS], dim=2))
        x = x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Model(torch.nn.Module):
    """Predicts the next word of each document."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.places = torch.nn.Embedding(4096, WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))
        self.next_word = torch.nn.Linear(WIDTH, WORDS)

    def forward(
        self, words: torch.Tensor, places: torch.Tensor, labels: torch.Tensor, attend: Any
    ) -> torch.Tensor:
        """The sum of the losses of these tokens."""
        x = self.words(words) + self.places(places)
        for block in self.blocks:
            x = block(x, attend)
        return functional.cross_entropy(
            self.next_word(x)[0], labels[0], ignore_index=IGNORED, reduction="sum"
        )


def pack(step: int, tokens: int) -> tuple[list[int], torch.Tensor]:
    """Lengths of documents that fill a row, and its words, which count up from a random one. The same on every rank."""
    generator = torch.Generator().manual_seed(step)
    lengths, words = [], []
    while tokens:
        length = min(tokens, int(torch.randint(5, 90, (1,), generator=generator)))
        start = int(torch.randint(WORDS, (1,), generator=generator))
        lengths.append(length)
        words.append((start + torch.arange(length)) % WORDS)
        tokens -= length
    return lengths, torch.cat(words)[None]


def train(options: argparse.Namespace, device: torch.device) -> None:
    """What each rank does."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights on every rank
    model = Model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = last = 0.0
    for step in range(options.steps):
        lengths, words = pack(step, options.tokens)
        mask = oc.documents(lengths)
        plan = oc.parallel.plan(mask, ranks, heads=(HEADS, KV_HEADS, WIDTH // HEADS))
        # On whole rows first, where a token's neighbour is at hand; then every rank takes its own.
        labels = plan.shift(words, fill=IGNORED)
        places = torch.cat([torch.arange(length) for length in lengths])[None]
        whole = [one.to(device) for one in (words, places, labels)]
        mine = [plan.shard(one, rank, axis=1) for one in whole]
        loss = model(*mine, lambda q, k, v, plan=plan: oc.parallel.attention(q, k, v, plan))
        loss = loss / int((labels != IGNORED).sum())  # of all ranks together
        loss.backward()
        # Of one sum over all tokens, so they add up. DDP and FSDP average: there multiply the loss by `ranks`.
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        total = loss.detach()
        dist.all_reduce(total)
        if rank == 0 and step == 0:
            with torch.no_grad():
                alone = model(*whole, lambda q, k, v, mask=mask: oc.torch.attention(q, k, v, mask))
            alone = alone / int((labels != IGNORED).sum())
            print(f"one rank alone: loss {alone:.6f}; {ranks} ranks together: {total:.6f}")
        optimizer.step()
        optimizer.zero_grad()
        last = float(total)
        first = first or last
        if rank == 0:
            print(f"step {step}: loss {last:.3f}, balance {plan.stats().balance:.3f}, {plan.name}")
    if rank == 0:
        print(f"the loss fell by {1 - last / first:.0%}")


def of_torchrun(options: argparse.Namespace) -> None:
    """A process that torchrun has started."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):  # GPU kernels take 16-bit numbers
        train(options, device)
    dist.destroy_process_group()


def spawned(rank: int, options: argparse.Namespace, folder: str) -> None:
    """A process that this script has started."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), options.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    train(options, torch.device("cpu"))
    dist.barrier()  # no rank leaves while another one still waits for it
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        of_torchrun(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(spawned, (options, folder), nprocs=options.ranks)


if __name__ == "__main__":
    main()
