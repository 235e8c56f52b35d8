"""Decoding from pages: sequences that share a prompt share its pages, and get new ones as they grow.

Run: python examples/paged.py [--tokens 40] [--page 16] [--window 0]. NumPy alone runs it on the CPU; with CuPy and a
GPU each token is a replay of one captured graph, which reads lengths and the table of pages on the device.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import numpy as np

import omnicupy as oc

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
WIDTH = HEADS * HEAD_DIM
PROMPT = 37  # tokens that all sequences begin with


class Pool:
    """Pages that are free, and the table of those in use. The table is on the device, which pages are free is not."""

    def __init__(self, xp: Any, pages: int, page_size: int, batch: int, most: int) -> None:
        self.page_size = page_size
        self.free = list(np.random.default_rng(0).permutation(pages))
        self.table = xp.full((batch, most), -1, np.int32)

    def extend(self, sequence: int, length: int) -> None:
        """A page for the key at position `length`, where it begins one."""
        if length % self.page_size == 0:
            self.table[sequence, length // self.page_size] = self.free.pop()

    def share(self, sequence: int, other: int, tokens: int) -> None:
        """The pages that hold nothing but the first `tokens` keys of `other` are those of `sequence`, too."""
        whole = tokens // self.page_size
        self.table[sequence, :whole] = self.table[other, :whole]


def array_module() -> Any:
    """CuPy where it finds a GPU, else NumPy."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception:  # no CuPy, or no GPU for it
        return np
    return cupy


def make_layers(xp: Any, count: int, pool: Pool, lengths: Any, dtype: Any) -> list[Any]:
    """(weights of q, k and v, weights of the output, cache) of each layer; K and V of a page lie side by side."""
    rng, layers = np.random.default_rng(0), []
    for _ in range(count):
        to_qkv, to_out = (
            xp.asarray((rng.standard_normal((WIDTH, columns)) / WIDTH**0.5).astype(dtype))
            for columns in ((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH)
        )
        memory = xp.full(
            (len(pool.free), pool.page_size, KV_HEADS, 2 * HEAD_DIM), xp.nan, dtype
        )  # as vLLM keeps it
        k_pages, v_pages = memory[..., :HEAD_DIM], memory[..., HEAD_DIM:]
        layers.append((to_qkv, to_out, oc.PagedKV(k_pages, v_pages, pool.table, lengths)))
    return layers


def product(x: Any, weights: Any) -> Any:
    """x @ weights, as a sum: CuPy calls no cuBLAS while a stream is captured."""
    return (x[..., :, None].astype(np.float32) * weights).sum(axis=-2).astype(x.dtype)


def _heads(x: Any, heads: int) -> Any:
    """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim), without a copy."""
    batch, tokens, _ = x.shape
    return x.reshape(batch, tokens, heads, HEAD_DIM).transpose(0, 2, 1, 3)


def forward(xp: Any, layers: list[Any], x: Any, rule: Any) -> Any:
    """The layers on the newest tokens of every sequence, (batch, tokens, WIDTH); lengths count these tokens already."""
    step = oc.plan(_heads(x, HEADS), layers[0][2], rule)  # once a token, for all layers
    for to_qkv, to_out, kv in layers:
        q, k, v = xp.split(product(x, to_qkv), [WIDTH, WIDTH + KV_HEADS * HEAD_DIM], axis=2)
        oc.append(kv, _heads(k, KV_HEADS), _heads(v, KV_HEADS))
        out = oc.attention(_heads(q, HEADS), kv, mask=step)
        x = x + product(out.transpose(0, 2, 1, 3).reshape(x.shape), to_out)
        x = x / xp.sqrt((x * x).mean(axis=2, keepdims=True))
    return x


def decode(xp: Any, layers: list[Any], x: Any, rule: Any) -> None:
    """One token of every sequence, in place. Nothing here depends on lengths on the host: captured once, it is right
    for every length.
    """
    layers[0][2].lengths[...] += 1
    x[...] = forward(xp, layers, x, rule)


def run(xp: Any, layers: list[Any], pool: Pool, x: Any, rule: Any, tokens: int) -> None:
    """Decode `tokens` tokens; the host gives out pages ahead of each."""
    held = layers[0][2].lengths.tolist()  # the host counts along
    stream = graph = None
    if xp is not np:
        stream = xp.cuda.Stream(non_blocking=True)
        xp.cuda.Device().synchronize()  # the arrays were made on another stream
    with stream or nullcontext():
        for token in range(tokens):
            for sequence, length in enumerate(held):
                pool.extend(sequence, length + token)
            if graph is not None:
                graph.launch(stream)
                continue
            decode(xp, layers, x, rule)  # on a GPU the first token compiles and loads kernels
            if stream is not None:
                stream.synchronize()
                stream.begin_capture()
                decode(xp, layers, x, rule)
                graph = stream.end_capture()
        if stream is not None:
            stream.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--page", type=int, default=16, help="tokens of a page")
    parser.add_argument("--window", type=int, default=0, help="keys that a token sees; 0 for all")
    options = parser.parse_args()
    xp = array_module()
    dtype = np.float32 if xp is np else np.float16
    batch, most = 3, -(-(PROMPT + options.tokens) // options.page)
    pages = batch * most
    pool = Pool(xp, pages, options.page, batch, most)
    lengths = xp.zeros(batch, np.int32)
    layers = make_layers(xp, options.layers, pool, lengths, dtype)
    rule = oc.cached(window=options.window or None)
    rng = np.random.default_rng(1)

    # The prompt, once for each sequence; whole pages of it are the same memory for all. All write the same there.
    for position in range(PROMPT):
        pool.extend(0, position)
    for sequence in range(1, batch):
        pool.share(sequence, 0, PROMPT)
        for position in range(PROMPT // options.page * options.page, PROMPT):
            pool.extend(sequence, position)
    lengths += PROMPT
    prompt = rng.standard_normal((1, PROMPT, WIDTH)).repeat(batch, axis=0)
    forward(xp, layers, xp.asarray(prompt.astype(dtype)), rule)
    x = xp.asarray(rng.standard_normal((batch, 1, WIDTH)).astype(dtype))  # the sequences part here
    run(xp, layers, pool, x, rule, options.tokens)

    # The last layer's pages, gathered, as a call with an ordinary mask sees them.
    kv, used = layers[-1][2], pages - len(pool.free)
    q = xp.asarray(rng.standard_normal((batch, HEADS, 1, HEAD_DIM)).astype(dtype))
    found, worst = oc.attention(q, kv, mask=rule), 0.0
    for b, keys in enumerate(lengths.tolist()):
        entries = kv.page_table[b, : -(-keys // options.page)]
        k, v = (
            xp.ascontiguousarray(pool[entries].reshape(-1, KV_HEADS, HEAD_DIM)[:keys].transpose(1, 0, 2))[
                None
            ]
            for pool in (kv.k_pages, kv.v_pages)
        )
        wanted = oc.attention(q[b : b + 1], k, v, rule.mask(keys, 1))
        worst = max(worst, float(abs(found[b] - wanted[0]).max()))
    how = "a plain loop on the CPU" if xp is np else "replays of one graph"
    print(
        f"{options.tokens} tokens by {how}; sequences hold {lengths.tolist()} keys in {used} pages of {options.page}"
    )
    print(f"out of the last layer is finite: {bool(xp.isfinite(x).all())}")
    print(f"largest difference to ordinary masks: {worst:.1e}")


if __name__ == "__main__":
    main()
