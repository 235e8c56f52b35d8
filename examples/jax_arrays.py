"""Attention on JAX arrays, on the CPU: alone, inside jax.jit and under jax.grad, on JAX's own memory without a copy.

Run: python examples/jax_arrays.py [--tokens 200]. Needs jax: pip install jax. On a GPU, put cupy.from_dlpack
in place of np.asarray and jnp.from_dlpack in place of jnp.asarray: both order the streams of the two libraries. Hand
the result to JAX before you drop its inputs. The use of jax.pure_callback below is for the CPU.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import omnicupy as oc

Arrays = tuple[jax.Array, ...]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: oc.Mask) -> jax.Array:
    """omnicupy.attention as a function that jax.jit and jax.grad know; the mask is a constant of what they make."""
    return forward(q, k, v, mask)[0]


def forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: oc.Mask) -> tuple[jax.Array, Arrays]:
    """The output, and what the backward pass reads."""

    def call(*arrays: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        return oc.attention(*map(np.asarray, arrays), mask, return_lse=True)

    of_out = (*q.shape[:3], v.shape[3])
    shapes = (jax.ShapeDtypeStruct(of_out, q.dtype), jax.ShapeDtypeStruct(q.shape[:3], jnp.float32))
    out, lse = jax.pure_callback(call, shapes, q, k, v)
    return out, (q, k, v, out, lse)


def backward(mask: oc.Mask, saved: Arrays, dout: jax.Array) -> Arrays:
    """The gradients of q, k and v."""

    def call(*arrays: jax.Array) -> tuple[np.ndarray, ...]:
        return oc.attention_backward(*map(np.asarray, arrays), mask)

    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in saved[:3])
    return jax.pure_callback(call, shapes, dout, *saved)


attention.defvjp(forward, backward)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=200)
    tokens = parser.parse_args().tokens
    text = tokens // 5
    mask = oc.segments([("text", text), ("image", tokens - 2 * text), ("text", text)])
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, tokens, 64), jnp.bfloat16)

    out = jnp.asarray(oc.attention(np.asarray(q), np.asarray(k), np.asarray(v), mask))
    print(f"alone: {out.dtype} {out.shape}")

    layer = jax.jit(lambda q, k, v: jax.nn.relu(attention(q, k, v, mask)))
    same = bool(jnp.array_equal(layer(q, k, v), jax.nn.relu(out)))
    print(f"inside jax.jit: the same bits: {same}")

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.where(mask.to_dense(), q @ k.swapaxes(2, 3) / 8, -jnp.inf)
        return jax.nn.softmax(scores) @ v

    inputs = [x.astype(jnp.float32) for x in (q, k, v)]
    loss = [lambda *x, f=f: jnp.sum(f(*x) ** 2) for f in (partial(attention, mask=mask), plain)]
    found, wanted = (jax.jit(jax.grad(one, argnums=(0, 1, 2)))(*inputs) for one in loss)
    worst = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(found, wanted, strict=True))
    print(f"under jax.grad: at most {worst:.0e} from the gradients of JAX's own operations")


if __name__ == "__main__":
    main()
