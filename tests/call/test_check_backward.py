"""Argument errors of attention_backward about its arrays: each bad call and its exact message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check_backward_calls import KV, ROWS, backward_spec, call, gpu
from check_calls import Tensor, host, ndarray

from omnicupy.call.arrays import DeviceArray
from omnicupy.masks import constructors
from omnicupy.serving.caches import CachedKV

COPY = "copy it with cupy.ascontiguousarray"
FORWARD = "pass what attention(..., return_lse=True) gave"
TABLE: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    # What check.call refuses, it refuses here.
    (
        call,
        {"v": host((2, 2, 9, 16))},
        ValueError,
        "v must have the batch, heads and tokens of k (2, 2, 8), got (2, 2, 9); v.shape is (2, 2, 9, 16)",
    ),
    (
        call,
        {"scale": "1"},
        TypeError,
        "scale must be a number or None (1/sqrt(head_dim)), got str; pass float(scale)",
    ),
    (
        call,
        {"mask": constructors.causal(9)},
        ValueError,
        "mask must have the shape (q tokens, k tokens) = (8, 8), got (9, 9); build it for these lengths or cut it with "
        "mask.rows or mask[a:b, c:d]",
    ),
    (
        call,
        {"k": CachedKV(None, None, None)},
        TypeError,
        "k must be a CuPy or NumPy array, got omnicupy.CachedKV; caches have no gradients, and stand in the place of k "
        "alone: pass keys and values as arrays",
    ),
    # dout and out
    (
        call,
        {"dout": None},
        TypeError,
        "dout must be a CuPy or NumPy array, got NoneType; convert it with cupy.asarray or numpy.asarray",
    ),
    (
        call,
        {"out": Tensor()},
        TypeError,
        "out must be a CuPy or NumPy array, got torch.Tensor; pass tensors to omnicupy.torch, "
        "which has gradients by autograd",
    ),
    (call, {"dout": ndarray()}, TypeError, "dout must be a NumPy array like q, got a CuPy array"),
    (gpu, {"out": host()}, TypeError, "out must be a CuPy array like q, got a NumPy array"),
    (gpu, {"lse": host(ROWS, np.float32)}, TypeError, "lse must be a CuPy array like q, got a NumPy array"),
    (
        gpu,
        {"dout": ndarray(device=1)},
        ValueError,
        "dout must be on the device of q (device 0), got device 1; copy it there",
    ),
    (
        call,
        {"dout": host(dtype=np.float32)},
        TypeError,
        "dout must have the dtype of q (float16), got float32; cast it",
    ),
    (
        call,
        {"out": host(dtype=np.float64)},
        TypeError,
        "out must have the dtype of q (float16), got float64; cast it",
    ),
    (
        call,
        {"dout": host((2, 4, 8, 1))},
        ValueError,
        "dout must have the shape of q (2, 4, 8, 16), got (2, 4, 8, 1)",
    ),
    (call, {"out": host(KV)}, ValueError, "out must have the shape of q (2, 4, 8, 16), got (2, 2, 8, 16)"),
    (
        gpu,
        {"out": ndarray(strides=(1024, 256, 2, 16))},
        ValueError,
        f"out must have a contiguous last axis (a stride of 2 bytes), got 16; {COPY}",
    ),
    (
        gpu,
        {"out": ndarray(ptr=(1 << 20) + 2)},
        ValueError,
        f"out must start on a multiple of 16 bytes, got address 0x100002; {COPY}",
    ),
    (
        gpu,
        {"k": ndarray(KV, strides=(1024, 256, 2, 16))},
        ValueError,
        f"k must have a contiguous last axis (a stride of 2 bytes), got 16; {COPY}",
    ),
    (
        gpu,
        {"dout": ndarray(strides=(1024, 256, 33, 2))},
        ValueError,
        "dout must have an address and strides that are multiples of its element's 2 bytes, got address 0x100000 and "
        f"strides (1024, 256, 33, 2); {COPY}",
    ),
    # lse and dlse
    (
        call,
        {"lse": None},
        TypeError,
        "lse must be the second result of attention(..., return_lse=True), got None; call attention with "
        "return_lse=True and pass both results",
    ),
    (
        call,
        {"lse": host(ROWS, np.float64)},
        TypeError,
        f"lse must be float32 where q is float16, got float64; {FORWARD}",
    ),
    (
        call,
        {name: host(dtype=np.float64) for name in ("q", "dout", "out")}
        | {"k": host(KV, np.float64), "v": host(KV, np.float64)},
        TypeError,
        f"lse must be float64 where q is float64, got float32; {FORWARD}",
    ),
    (
        call,
        {"lse": host((2, 4, 8, 1), np.float32)},
        ValueError,
        f"lse must have the shape (batch, q heads, q tokens) = (2, 4, 8), got (2, 4, 8, 1); {FORWARD}",
    ),
    (
        gpu,
        {"lse": ndarray(ROWS, np.float32, ptr=(1 << 20) + 2)},
        ValueError,
        "lse must have an address and strides that are multiples of its element's 4 bytes, got address 0x100002 and "
        f"strides (128, 32, 4); {COPY}",
    ),
    (
        call,
        {"dlse": host(ROWS)},
        TypeError,
        "dlse must be float32 where q is float16, got float16; pass the gradient of lse, or None where it has none",
    ),
    (
        call,
        {"dlse": host((2, 8, 4), np.float32)},
        ValueError,
        "dlse must have the shape (batch, q heads, q tokens) = (2, 4, 8), got (2, 8, 4); pass the gradient of lse, or "
        "None where it has none",
    ),
]


@pytest.mark.parametrize(("good", "changed", "kind", "message"), TABLE, ids=range(len(TABLE)))
def test_bad_call(good: Any, changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        good(**changed)
    assert str(caught.value) == message


@pytest.mark.parametrize("good", [call, gpu])
def test_good_calls(good: Any) -> None:
    found = good(scale=0.5, mask=constructors.causal(8))
    assert (found.problem.group, found.scale, found.wanted) == (2, 0.5, (True, True, True))
    assert found.masks == (constructors.causal(8),)
    assert good(wanted=["v", "q"], deterministic=np.False_).wanted == (True, False, True)
    assert good(out_grads=[None, None, None]).wanted == (True, True, True)


@pytest.mark.parametrize("strides", [(0, 0, 0, 0), (2, 4, 8, 64), (1024, 256, -32, -2), (6, 2, 0, 10)])
def test_dout_lse_and_dlse_have_any_strides_on_a_gpu(strides: tuple[int, ...]) -> None:
    row_strides = tuple(2 * stride for stride in strides[:3])
    gpu(
        dout=ndarray(strides=strides, ptr=(9 << 20) + 2),
        lse=ndarray(ROWS, np.float32, strides=row_strides, ptr=(9 << 20) + 4),
        dlse=ndarray(ROWS, np.float32, strides=row_strides),
    )


def test_arrays_of_another_library() -> None:
    def of(shape: tuple[int, ...], dtype: Any, ptr: int) -> DeviceArray:
        like = ndarray(shape, dtype)
        return DeviceArray(like.dtype, ptr, 0, shape, like.strides)

    names = ("dout", "q", "out", "k", "v")
    arrays = {name: of(KV, np.float16, (i + 1) << 20) for i, name in enumerate(names)}
    found = gpu(**arrays, lse=of((2, 2, 8), np.float32, 9 << 20), config=backward_spec())
    assert found.problem.group == 1
    with pytest.raises(ValueError, match=r"copy it with \.clone\(memory_format=torch\.contiguous_format\)$"):
        gpu(**arrays, lse=of((2, 2, 8), np.float32, (9 << 20) + 2))
