"""omnicupy.torch: `split` reaches the engines, with gradients and without."""

from __future__ import annotations

from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from omnicupy.torch import attention, prepare  # noqa: E402 - needs torch


def test_a_split_is_taken_and_checked() -> None:
    q, k, v = (torch.randn(2, heads, 50, 16) for heads in (4, 2, 2))
    mask = oc.causal(50)
    assert torch.equal(attention(q, k, v, mask, split=64), attention(q, k, v, mask))
    prepare(q, k, v, mask, split=64)
    with pytest.raises(ValueError, match="split must be a multiple of 32 keys"):
        attention(q, k, v, mask, split=40)
    q.requires_grad_()
    assert torch.equal(attention(q, k, v, mask, split=64), attention(q, k, v, mask))
    with pytest.raises(ValueError, match="split must be a multiple of 32 keys"):
        attention(q, k, v, mask, split=40)
