"""Attention on JAX arrays, on the CPU, alone and inside jax.jit: NumPy arrays over JAX's memory, without a copy.

Run: python examples/jax_arrays.py [--tokens 200]. On a GPU, put cupy.from_dlpack in place of np.asarray and
jnp.from_dlpack in place of jnp.asarray: both order the streams of the two libraries. Hand the result to JAX before
you drop its inputs. The use of jax.pure_callback below is for the CPU.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import omnicupy as oc


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=200)
    tokens = parser.parse_args().tokens
    text = tokens // 5
    mask = oc.segments([("text", text), ("image", tokens - 2 * text), ("text", text)])
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, tokens, 64), jnp.bfloat16)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> np.ndarray:
        return oc.attention(np.asarray(q), np.asarray(k), np.asarray(v), mask)

    out = jnp.asarray(attend(q, k, v))
    print(f"alone: {out.dtype} {out.shape}")

    @jax.jit
    def layer(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.relu(jax.pure_callback(attend, jax.ShapeDtypeStruct(q.shape, q.dtype), q, k, v))

    same = bool(jnp.array_equal(layer(q, k, v), jax.nn.relu(out)))
    print(f"inside jax.jit: the same bits: {same}")


if __name__ == "__main__":
    main()
