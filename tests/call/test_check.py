"""Argument errors of attention: each bad call and its exact message."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from check_calls import Tensor, call, gpu, host, ndarray

from omnicupy.call import check, problem
from omnicupy.masks import constructors

TABLE: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        call,
        {"q": [1]},
        TypeError,
        "q must be a CuPy or NumPy array, got list; convert it with cupy.asarray or numpy.asarray",
    ),
    (
        call,
        {"k": Tensor()},
        TypeError,
        "k must be a CuPy or NumPy array, got torch.Tensor; pass tensors to omnicupy.torch, "
        "which has gradients by autograd",
    ),
    (
        call,
        {"v": None},
        TypeError,
        "v must be a CuPy or NumPy array, got NoneType; convert it with cupy.asarray or numpy.asarray",
    ),
    (
        call,
        {"v": constructors.causal(8)},
        TypeError,
        "v must be a CuPy or NumPy array, got omnicupy.Mask; masks stand behind q, k and v, or are passed as mask=",
    ),
    (
        call,
        {"q": ndarray()},
        TypeError,
        "q, k and v must all be CuPy arrays or all NumPy arrays, got q: CuPy, k: NumPy, v: NumPy; move "
        "them with cupy.asarray or cupy.asnumpy",
    ),
    (
        gpu,
        {"v": ndarray((2, 2, 8, 16), device=1)},
        ValueError,
        "v must be on the device of q (device 0), got device 1; copy it there",
    ),
    (
        call,
        {"q": host(dtype=np.int32)},
        TypeError,
        "q must be float16, bfloat16, float32 or float64, got int32; cast q, k and v",
    ),
    (
        gpu,
        {"q": ndarray(dtype=np.float32)},
        TypeError,
        "q must be float16 or bfloat16 on the GPU, got float32; cast q, k and v",
    ),
    (
        call,
        {"k": host((2, 2, 8, 16), np.float32)},
        TypeError,
        "k must have the dtype of q (float16), got float32; cast it",
    ),
    (
        call,
        {"v": host((2, 2, 8, 16), ml_dtypes.bfloat16)},
        TypeError,
        "v must have the dtype of q (float16), got bfloat16; cast it",
    ),
    (
        call,
        {"q": host((4, 8, 16))},
        ValueError,
        "q must have 4 axes (batch, heads, tokens, head_dim), got shape (4, 8, 16); add missing axes "
        "with None",
    ),
    (
        call,
        {"k": host((2, 2, 0, 16))},
        ValueError,
        "k must have no empty axis, got shape (2, 2, 0, 16); skip the call when it is empty",
    ),
    (
        call,
        {"k": host((3, 2, 8, 16))},
        ValueError,
        "k must have the batch size of q (2), got 3; k.shape is (3, 2, 8, 16)",
    ),
    (
        call,
        {"k": host((2, 2, 8, 24))},
        ValueError,
        "k must have the head_dim of q (16), got 24; k.shape is (2, 2, 8, 24); v alone may have another",
    ),
    (
        call,
        {"v": host((2, 2, 9, 16))},
        ValueError,
        "v must have the batch, heads and tokens of k (2, 2, 8), got (2, 2, 9); v.shape is (2, 2, 9, 16)",
    ),
    (
        call,
        {"k": host((2, 3, 8, 16)), "v": host((2, 3, 8, 16))},
        ValueError,
        "q must have a multiple of the heads of k (3), got 4; query head h reads key head h // (q heads "
        "/ k heads)",
    ),
    (
        gpu,
        {name: ndarray((2, 2, 8, 12)) for name in "qkv"},
        ValueError,
        "q must have a head_dim that is a multiple of 8, at most 1024, on the GPU, got 12; pad q, k and "
        "v with zero columns (and pass scale)",
    ),
    (
        gpu,
        {name: ndarray((2, 2, 8, 1032)) for name in "qkv"},
        ValueError,
        "q must have a head_dim that is a multiple of 8, at most 1024, on the GPU, got 1032; pad q, k "
        "and v with zero columns (and pass scale)",
    ),
    (
        call,
        {"mask": constructors.full(8, 9)},
        ValueError,
        "mask must have the shape (q tokens, k tokens) = (8, 8), got (8, 9); build it for these lengths "
        "or cut it with mask.rows or mask[a:b, c:d]",
    ),
    (
        call,
        {"mask": [constructors.full(8), constructors.full(7, 8)]},
        ValueError,
        "mask[1] must have the shape (q tokens, k tokens) = (8, 8), got (7, 8); build it for these "
        "lengths or cut it with mask.rows or mask[a:b, c:d]",
    ),
    (
        call,
        {"mask": np.ones((8, 8), bool)},
        TypeError,
        "mask must be a Mask, a list of one Mask per batch element, or None (full), got numpy.ndarray; a "
        "boolean array becomes one with from_dense",
    ),
    (
        call,
        {"mask": "causal"},
        TypeError,
        "mask must be a Mask, a list of one Mask per batch element, or None (full), got str; make one with a "
        "constructor, such as omnicupy.causal(q_len, k_len)",
    ),
    (
        call,
        {
            "q": ndarray((2, 8, 4, 64)),
            "k": ndarray((2, 8, 2, 64)),
            "v": ndarray((2, 8, 2, 64)),
            "mask": constructors.full(8),
        },
        ValueError,
        "mask must have the shape (q tokens, k tokens) = (4, 2), got (8, 8); transpose q, k and v to (batch, heads, "
        "tokens, head_dim)",
    ),
    (
        call,
        {"scale": math.nan},
        ValueError,
        "scale must be finite and above 0 in float32, got nan; pass None for 1/sqrt(head_dim)",
    ),
    (
        call,
        {"scale": math.inf},
        ValueError,
        "scale must be finite and above 0 in float32, got inf; pass None for 1/sqrt(head_dim)",
    ),
    (
        call,
        {"scale": 10**400},
        ValueError,
        f"scale must be finite and above 0 in float32, got 1{400 * '0'}; pass None for 1/sqrt(head_dim)",
    ),
    (
        call,
        {"scale": 0},
        ValueError,
        "scale must be finite and above 0 in float32, got 0; pass None for 1/sqrt(head_dim)",
    ),
    (
        call,
        {"scale": -0.5},
        ValueError,
        "scale must be finite and above 0 in float32, got -0.5; pass None for 1/sqrt(head_dim)",
    ),
    (
        call,
        {"scale": "1"},
        TypeError,
        "scale must be a number or None (1/sqrt(head_dim)), got str; pass float(scale)",
    ),
    (
        call,
        {"scale": True},
        TypeError,
        "scale must be a number or None (1/sqrt(head_dim)), got bool; pass float(scale)",
    ),
]


@pytest.mark.parametrize(("good", "changed", "kind", "message"), TABLE, ids=range(len(TABLE)))
def test_bad_call(good: Any, changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        good(**changed)
    assert str(caught.value) == message


@pytest.mark.parametrize("good", [call, gpu])
def test_good_call(good: Any) -> None:
    for mask in (
        None,
        constructors.causal(8),
        [constructors.full(8), constructors.causal(8)],
        (constructors.full(8),) * 2,
    ):
        assert good(mask=mask, scale=np.float32(0.5)) == problem.Problem(2, 4, 2, 8, 8, 16, "float16")
    assert good().group == 2


def test_none_is_one_full_mask() -> None:
    arguments = (host(), host((2, 2, 8, 16)), host((2, 2, 8, 16)), None)
    (mask,) = check.call(*arguments).masks
    assert mask == constructors.full(8)
    assert check.call(*arguments).masks[0] is mask


def test_scale() -> None:
    assert problem.scale_of(None, 64) == 0.125
    assert problem.scale_of(np.float16(2), 64) == 2.0
