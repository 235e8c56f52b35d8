"""Stands in for the GPU side of omnicupy.torch.key_tables: plans that compute from addresses, tables and lengths alone.

Tensors stay on the CPU, in any dtype; what a launch is given is read from memory, as a kernel would.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from omnicupy.torch import eager, key_tables, state
from omnicupy.transformers import on_device


def _memory(address: int, count: int, dtype: Any) -> np.ndarray:
    size = np.dtype(dtype).itemsize * count
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)


class Plan:
    """A plan for DeviceArrays q and PagedKV, whose launches are counted in `fake`."""

    def __init__(self, fake: Any, arrays: Any, scores: Any) -> None:
        (q, kv), self.scores, self.fake = arrays, scores, fake
        self.q, self.kv = q, kv
        self.kernel = SimpleNamespace(
            spec=SimpleNamespace(kernel=fake.kernel), fits_addresses=lambda *addresses: True
        )

    def make_lists(self, lengths: int, stream: Any) -> np.ndarray:
        self.fake.lists += 1
        return _memory(lengths, self.q.shape[0], np.int32).copy()

    def launch(
        self, at: Any, lengths: int, stream: Any, made: np.ndarray, *, page_table: int, sink_logits: int
    ) -> None:
        self.fake.launches += 1
        q_at, k_at, v_at, out_at, lse = at
        assert lse == 0
        batch, heads, rows, head_dim = self.q.shape
        assert rows == 1
        dtype, kv_heads = self.q.dtype, self.kv.k_pages.shape[2]
        columns = self.kv.v_pages.shape[3]
        _, capacity = self.kv.page_table.shape
        out = _memory(out_at, batch * heads * columns, dtype).reshape(batch, heads, columns)
        sinks = _memory(sink_logits, heads, np.float32) if sink_logits else np.full(heads, -np.inf)
        for sequence in range(batch):
            count = int(made[sequence])
            assert 0 <= count <= capacity
            table = _memory(page_table + self.kv.page_table.strides[0] * sequence, capacity, np.int32)
            # Kernels may look at entries past the length, and must find no page.
            assert (table[count:] == -1).all()
            assert (table[:count] >= 0).all()
            assert (table[:count] < self.kv.k_pages.shape[0]).all()
            for head in range(heads):
                of_kv = head * kv_heads // heads
                at_q = q_at + self.q.strides[0] * sequence + self.q.strides[1] * head
                q = _memory(at_q, head_dim, dtype).astype(np.float64)
                k, v = (
                    np.array(
                        [
                            _memory(at + pool.strides[0] * int(page) + pool.strides[2] * of_kv, width, dtype)
                            for page in table[:count]
                        ],
                        np.float64,
                    ).reshape(count, width)
                    for at, pool, width in (
                        (k_at, self.kv.k_pages, head_dim),
                        (v_at, self.kv.v_pages, columns),
                    )
                )
                out[sequence, head] = self._row(q, k, v, sinks[head])

    def _row(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, sink: float) -> np.ndarray:
        scale, softcap = self.scores
        s = k @ q * (len(q) ** -0.5 if scale is None else scale)
        s = s if softcap is None else softcap * np.tanh(s / softcap)
        if not len(s):
            return np.zeros(v.shape[1])
        most = max(s.max(), sink)
        weights = np.exp(s - most)
        return weights / (weights.sum() + np.exp(sink - most)) @ v


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve masks of one row by tables on the CPU. Returns what counts launches, lists and plans."""
    fake = SimpleNamespace(launches=0, lists=0, plans={}, kernel="sm90", refused=0)

    def plan_of(arrays: Any, sinks: Any, scores: Any, stream: Any) -> Plan:
        q, kv = arrays
        of = (q, kv.k_pages, kv.v_pages, kv.page_table, kv.lengths)
        key = (*((one.shape, one.strides, one.dtype) for one in of), scores)
        return fake.plans.setdefault(key, Plan(fake, arrays, scores))

    def serves(*given: Any) -> bool:
        return state.are_plain(*given) and not torch.is_grad_enabled()

    gpu = SimpleNamespace(external_stream=lambda *_: None, on_device=lambda _, call, *rest: call(*rest))
    monkeypatch.setattr(key_tables, "_plan_of", plan_of)
    monkeypatch.setattr(key_tables, "_gpu", gpu)
    monkeypatch.setattr(key_tables, "serves", serves)
    monkeypatch.setattr(eager, "raw_stream", lambda _: 7)
    monkeypatch.setattr(key_tables.memory, "new", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(on_device, "serves", lambda _: not torch.is_grad_enabled())
    return fake
