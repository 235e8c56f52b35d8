"""Decoding from caches that grow in place: one captured graph serves every token, on a GPU; a plain loop elsewhere.

Run: python examples/decode.py [--tokens 40] [--layers 4] [--window 16]. NumPy alone runs it on the CPU; with CuPy and a
GPU each token is a replay of one graph, which reads the sequences' lengths on the device.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

import omnicupy as oc

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
WIDTH = HEADS * HEAD_DIM


@dataclass
class Layer:
    """Projections with random weights, and the layer's cache."""

    to_qkv: Any
    to_out: Any
    kv: oc.CachedKV


def array_module() -> Any:
    """CuPy where it finds a GPU, else NumPy."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception:  # no CuPy, or no GPU for it
        return np
    return cupy


def make_layers(xp: Any, count: int, lengths: Any, capacity: int, dtype: Any) -> list[Layer]:
    rng = np.random.default_rng(0)

    def weights(rows: int, columns: int) -> Any:
        return xp.asarray((rng.standard_normal((rows, columns)) / rows**0.5).astype(dtype))

    shape = (len(lengths), KV_HEADS, capacity, HEAD_DIM)
    return [
        Layer(
            weights(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
            weights(WIDTH, WIDTH),
            oc.CachedKV(xp.full(shape, xp.nan, dtype), xp.full(shape, xp.nan, dtype), lengths),
        )
        for _ in range(count)
    ]


def decode(xp: Any, layers: list[Layer], x: Any, rule: Any) -> Any:
    """One token of every sequence, (batch, WIDTH): its keys and values go to the caches, which then hold one more.

    Nothing here depends on lengths on the host: captured once, it is right for every length.
    """
    layers[0].kv.lengths[...] += 1
    step = oc.plan(_heads(x[:, None, :], HEADS), layers[0].kv, rule)  # once a token, for all layers
    for layer in layers:
        qkv = product(x, layer.to_qkv)
        q, k, v = xp.split(qkv, [WIDTH, WIDTH + KV_HEADS * HEAD_DIM], axis=1)
        oc.append(layer.kv, _heads(k[:, None, :], KV_HEADS), _heads(v[:, None, :], KV_HEADS))
        out = oc.attention(_heads(q[:, None, :], HEADS), layer.kv, mask=step)
        x = x + product(out.transpose(0, 2, 1, 3).reshape(len(x), WIDTH), layer.to_out)
        x = x / xp.sqrt((x * x).mean(axis=1, keepdims=True))
    return x


def product(x: Any, weights: Any) -> Any:
    """x @ weights, as a sum: CuPy calls no cuBLAS while a stream is captured."""
    return (x[:, :, None].astype(np.float32) * weights).sum(axis=1).astype(x.dtype)


def _heads(x: Any, heads: int) -> Any:
    """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim), without a copy."""
    batch, tokens, _ = x.shape
    return x.reshape(batch, tokens, heads, HEAD_DIM).transpose(0, 2, 1, 3)


def run(xp: Any, layers: list[Layer], x: Any, rule: Any, tokens: int) -> None:
    """Decode `tokens` tokens, each from what came out for the one before it; x holds the last one at the end."""
    if xp is np:
        for _ in range(tokens):
            x[...] = decode(xp, layers, x, rule)
        return
    stream = xp.cuda.Stream(non_blocking=True)
    xp.cuda.Device().synchronize()  # the arrays were made on another stream
    with stream:
        x[...] = decode(
            xp, layers, x, rule
        )  # compiles and loads kernels; memory for the graph is in the pool then
        stream.synchronize()
        stream.begin_capture()
        x[...] = decode(xp, layers, x, rule)
        graph = stream.end_capture()
        for _ in range(tokens - 1):
            graph.launch(stream)
        stream.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--window", type=int, default=16, help="keys that a token sees; 0 for all")
    options = parser.parse_args()
    xp = array_module()
    dtype = np.float32 if xp is np else np.float16
    capacity = options.tokens + 24
    lengths = xp.asarray(
        np.array([0, 7, 20], np.int32)
    )  # three sequences; the caches hold so many keys already
    layers = make_layers(xp, options.layers, lengths, capacity, dtype)
    rng = np.random.default_rng(1)
    for b, length in enumerate(lengths.tolist()):
        for layer in layers:
            for cache in (layer.kv.k, layer.kv.v):
                cache[b, :, :length] = xp.asarray(
                    rng.standard_normal((KV_HEADS, length, HEAD_DIM)).astype(dtype)
                )
    x = xp.asarray(rng.standard_normal((len(lengths), WIDTH)).astype(dtype))
    rule = oc.cached(window=options.window or None)
    run(xp, layers, x, rule, options.tokens)

    # The last layer's cache, as a call with an ordinary mask for each length sees it.
    kv, after = layers[-1].kv, lengths.tolist()
    q = xp.asarray(rng.standard_normal((len(after), HEADS, 1, HEAD_DIM)).astype(dtype))
    found, worst = oc.attention(q, kv, mask=rule), 0.0
    for b, length in enumerate(after):
        k, v = (cache[b : b + 1, :, :length] for cache in (kv.k, kv.v))
        wanted = oc.attention(q[b : b + 1], k, v, rule.mask(length, 1))
        worst = max(worst, float(abs(found[b] - wanted[0]).max()))
    how = "a plain loop on the CPU" if xp is np else "replays of one graph"
    print(f"{options.tokens} tokens by {how}; sequences hold {after} keys")
    print(f"out of the last layer is finite: {bool(xp.isfinite(x).all())}")
    print(f"largest difference to ordinary masks: {worst:.1e}")


if __name__ == "__main__":
    main()
