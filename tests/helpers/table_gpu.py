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

    def launch(self, at: Any, lengths: int, stream: Any, made: np.ndarray, *, page_table: int) -> None:
        self.fake.launches += 1
        q_at, k_at, v_at, out_at, lse = at
        assert lse == 0
        batch, group, rows, head_dim = self.q.shape
        assert rows == 1
        item, dtype = self.q.dtype.itemsize, self.q.dtype
        columns = self.kv.v_pages.shape[3]
        _, capacity = self.kv.page_table.shape
        out = _memory(out_at, batch * group * columns, dtype).reshape(batch, group, columns)
        scale, softcap = self.scores
        for sequence in range(batch):
            # One entry past the length, where the table has one: kernels may look at it, and must find no page.
            row = self.kv.page_table.strides[0] * sequence
            count = int(made[sequence])
            assert 0 <= count <= capacity
            table = _memory(page_table + row, capacity, np.int32)
            assert (table[count:] == -1).all()
            assert (table[:count] >= 0).all()
            assert (table[:count] < self.kv.k_pages.shape[0]).all()
            if count == 0:
                out[sequence] = 0
                continue
            of_q, of_head, *_ = self.q.strides
            q = np.stack(
                [_memory(q_at + of_q * sequence + of_head * head, head_dim, dtype) for head in range(group)]
            )
            k, v = (
                np.stack([_memory(first + int(page) * step, width, dtype) for page in table[:count]])
                for first, step, width in (
                    (k_at, self.kv.k_pages.strides[0], head_dim),
                    (v_at, self.kv.v_pages.strides[0], columns),
                )
            )
            assert item == k.dtype.itemsize
            s = q.astype(np.float64) @ k.astype(np.float64).T * (head_dim**-0.5 if scale is None else scale)
            s = s if softcap is None else softcap * np.tanh(s / softcap)
            weights = np.exp(s - s.max(axis=1, keepdims=True))
            out[sequence] = weights / weights.sum(axis=1, keepdims=True) @ v.astype(np.float64)


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve masks of one row by tables on the CPU. Returns what counts launches, lists and plans."""
    fake = SimpleNamespace(launches=0, lists=0, plans={}, kernel="sm90", refused=0)

    def plan_of(arrays: Any, scores: Any, index: int, stream: Any) -> Plan:
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
