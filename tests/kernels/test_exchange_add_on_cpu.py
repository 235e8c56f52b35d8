"""The kernel that adds gradients which came back from other ranks, its own source run on the CPU."""

from __future__ import annotations

from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from omnicupy.jit.exchange_spec import ADD_THREADS, ExchangeAddSpec
from omnicupy.jit.params import EXCHANGE_ADD_PARAMS

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)

BATCH, HEADS, KEYS, WIDTHS = 2, 3, 60, (8, 24)
DTYPES = {"float16": np.float16, "bfloat16": bfloat16}


def _random(rng: Any, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    found = cuda_on_cpu.aligned(shape, DTYPES[dtype])
    found[...] = rng.standard_normal(shape)
    return found


def _added(
    grads: list[NDArray[Any]], returned: NDArray[Any], sent: list[NDArray[np.int64]], dtype: str
) -> None:
    """In place, as omnicupy.parallel.peer_trip asks for it. grads: (batch, heads, keys, columns)."""
    every = np.concatenate(sent)
    rows = np.argsort(every, kind="stable").astype(np.int32)
    keys, begins = np.unique(every[rows], return_index=True)
    keys, begins = keys.astype(np.int32), np.append(begins, len(every)).astype(np.int32)
    record = np.zeros(1, EXCHANGE_ADD_PARAMS)[0]
    for at, (name, one) in enumerate(zip(("first_strides", "second_strides"), grads, strict=False)):
        record["grads"][at], record[name] = one.ctypes.data, [step // 16 for step in one.strides[:3]]
        record["chunks"][at] = one.shape[3] // 8
    record["returned"], record["keys"] = returned.ctypes.data, keys.ctypes.data
    record["begins"], record["rows"] = begins.ctypes.data, rows.ctypes.data
    record["batch"], record["heads"], record["count"] = BATCH, HEADS, len(keys)
    chunks = len(keys) * BATCH * HEADS * int(record["chunks"].sum())
    spec = ExchangeAddSpec(arch="sm_80", dtype=dtype)
    cuda_on_cpu.run(cuda_on_cpu.build(spec), spec, record, (-(-chunks // ADD_THREADS), 1), (), late=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_added_in_one_order(dtype: str) -> None:
    """In float32, the owner's first, then by rank, and rounded once; keys that nobody was sent stay, and so does what
    lies between them.
    """
    rng = np.random.default_rng(5)
    sent = [np.sort(rng.choice(KEYS, count, replace=False)) for count in (0, 40, 7, 55)]
    whole = _random(rng, (BATCH, KEYS, HEADS, sum(WIDTHS) + 8), dtype)  # 8 columns belong to nobody
    before = whole.copy()
    views = [whole[..., :8], whole[..., 8:32]]
    returned = _random(rng, (sum(map(len, sent)), BATCH, HEADS, sum(WIDTHS)), dtype)
    parts = np.split(returned, np.cumsum([len(one) for one in sent])[:-1])
    shared = set(sent[1]) & set(sent[2]) & set(sent[3])
    assert shared
    for rank, huge in ((2, 6e4), (3, -6e4)):  # their sums depend on the order
        parts[rank][np.isin(sent[rank], list(shared))] = huge
    expected = before[..., :32].astype(np.float32)
    for places, part in zip(sent, parts, strict=True):
        expected[:, places] += part.astype(np.float32).transpose(1, 0, 2, 3)
    _added([one.swapaxes(1, 2) for one in views], returned, sent, dtype)
    assert (whole[..., :32] == expected.astype(DTYPES[dtype])).all()
    assert (whole[..., 32:] == before[..., 32:]).all()
    untouched = np.setdiff1d(np.arange(KEYS), np.concatenate(sent))
    assert len(untouched)
    assert (whole[:, untouched] == before[:, untouched]).all()


def test_one_gradient_alone() -> None:
    """As where that of v is not wanted: what came back is as wide as it."""
    rng = np.random.default_rng(6)
    grad = _random(rng, (BATCH, HEADS, KEYS, WIDTHS[0]), "bfloat16")
    before, sent = grad.astype(np.float32), [np.arange(3, 9)]
    returned = _random(rng, (6, BATCH, HEADS, WIDTHS[0]), "bfloat16")
    _added([grad], returned, sent, "bfloat16")
    before[:, :, 3:9] += returned.astype(np.float32).transpose(1, 2, 0, 3)
    assert (grad == before.astype(bfloat16)).all()
