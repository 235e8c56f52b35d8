"""Argument errors about memory layout, out and config: each bad call and its exact message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from check_calls import call, gpu, host, ndarray, spec

from omnicupy.call import check
from omnicupy.call.arrays import DeviceArray
from omnicupy.masks import constructors

COPY = "copy it with cupy.ascontiguousarray"
TABLE: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        gpu,
        {"k": ndarray((2, 2, 8, 16), strides=(512, 256, 2, 16))},
        ValueError,
        f"k must have a contiguous last axis (a stride of 2 bytes), got 16; {COPY}",
    ),
    (
        gpu,
        {"q": ndarray(strides=(1024, 256, 40, 2))},
        ValueError,
        f"q must have strides that are multiples of 16 bytes, got 40 on the tokens axis; {COPY}",
    ),
    (
        gpu,
        {"v": ndarray((2, 2, 8, 16), ptr=(1 << 20) + 8)},
        ValueError,
        f"v must start on a multiple of 16 bytes, got address 0x100008; {COPY}",
    ),
    (
        call,
        {"mask": [constructors.full(8)] * 3},
        ValueError,
        "mask: a list must hold one Mask per batch element (2), got 3; pass a single Mask to share it",
    ),
    (
        call,
        {"mask": [constructors.full(8), None]},
        TypeError,
        "mask[1] must be a Mask, got NoneType; use full(...) where all is visible",
    ),
    (
        call,
        {"out": []},
        TypeError,
        "out must be a CuPy or NumPy array, got list; convert it with cupy.asarray or numpy.asarray",
    ),
    (call, {"out": ndarray()}, TypeError, "out must be a NumPy array like q, got a CuPy array"),
    (gpu, {"out": host()}, TypeError, "out must be a CuPy array like q, got a NumPy array"),
    (
        gpu,
        {"out": ndarray(device=2)},
        ValueError,
        "out must be on the device of q (device 0), got device 2; copy it there",
    ),
    (call, {"out": host(dtype=np.float32)}, TypeError, "out must have the dtype of q (float16), got float32"),
    (
        call,
        {"out": host((2, 4, 8, 8))},
        ValueError,
        "out must have the shape of q (2, 4, 8, 16), got (2, 4, 8, 8)",
    ),
    (
        gpu,
        {"out": ndarray(strides=(1024, 256, 24, 2))},
        ValueError,
        f"out must have strides that are multiples of 16 bytes, got 24 on the tokens axis; {COPY}",
    ),
    (
        gpu,
        {"out": ndarray(strides=(1024, 0, 32, 2), ptr=9 << 20)},
        ValueError,
        "out must not repeat elements, got strides (1024, 0, 32, 2) for shape (2, 4, 8, 16); pass a full array",
    ),
    (
        gpu,
        {"out": ndarray(strides=(1024, 128, 32, 2), ptr=9 << 20)},
        ValueError,
        "out must not repeat elements, got strides (1024, 128, 32, 2) for shape (2, 4, 8, 16); pass a full array",
    ),
    (
        call,
        {"out": np.broadcast_to(np.float16(0), (2, 4, 8, 16))},
        ValueError,
        "out must be writeable, got a read-only array; pass a copy",
    ),
    (
        gpu,
        {"out": ndarray(ptr=(1 << 20) + 1024)},
        ValueError,
        "out must not overlap q: inputs are read while out is written; pass another array",
    ),
    (
        call,
        {"config": "fast"},
        TypeError,
        "config must be an AttnSpec or None (chosen by the table), got str",
    ),
    (
        call,
        {"config": spec()},
        ValueError,
        "config must be None for NumPy arrays: it chooses a GPU kernel; pass CuPy arrays",
    ),
    (
        gpu,
        {"config": spec(dtype="bfloat16")},
        ValueError,
        "config must have the dtype of q (float16), got bfloat16",
    ),
    (
        gpu,
        {"config": spec(head_dim=32)},
        ValueError,
        "config must have head_dim 16 (that of q, 16, rounded up to 16), got 32",
    ),
]


@pytest.mark.parametrize(("good", "changed", "kind", "message"), TABLE, ids=range(len(TABLE)))
def test_bad_call(good: Any, changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        good(**changed)
    assert str(caught.value) == message


def test_gpu_layouts_that_are_fine() -> None:
    """Transposed, broadcast and reversed views, and axes of length 1 with any stride."""
    for strides in ((1024, 32, 128, 2), (0, 0, 32, 2), (1024, 256, -32, 2)):
        gpu(q=ndarray(strides=strides))
    gpu(**{name: ndarray((1, 1, 8, 16), strides=(6, 10, 32, 2)) for name in "qkv"})
    gpu(config=spec(), out=ndarray(ptr=5 << 20))


def test_out_may_lie_between_inputs() -> None:
    """q, k, v and out as parts of one fused buffer share no element."""
    fused = np.zeros((2, 8, 4, 4, 16), np.float16)
    q, k, v, out = (fused[:, :, i].swapaxes(1, 2) for i in range(4))
    call(q=q, k=k, v=v, out=out)
    with pytest.raises(ValueError, match="out must not overlap k"):
        call(q=q, k=k, v=v, out=k)
    strides, base = (8 * 4 * 128, 32, 4 * 128, 2), 7 << 20
    parts = [ndarray(strides=strides, ptr=base + 128 * i) for i in range(4)]
    gpu(q=parts[0], k=parts[1], v=parts[2], out=parts[3])
    with pytest.raises(ValueError, match="out must not overlap v"):
        gpu(q=parts[0], k=parts[1], v=parts[2], out=parts[2])


def _foreign(address: int, shape: tuple[int, ...]) -> DeviceArray:
    """An array of another library."""
    return DeviceArray(np.dtype(np.float16), address, 0, shape, np.empty(shape, np.float16).strides)


def test_device_arrays_of_other_libraries_are_on_the_gpu() -> None:
    arrays = [_foreign((1 + i) << 20, (2, heads, 8, 16)) for i, heads in enumerate((4, 2, 2))]
    found = check.call(*arrays, None, out=_foreign(4 << 20, (2, 4, 8, 16))).problem
    assert (found.q_heads, found.kv_heads, found.dtype) == (4, 2, "float16")
    arrays[1] = replace(arrays[1], ptr=arrays[1].ptr + 2)
    with pytest.raises(ValueError) as raised:
        check.call(*arrays, None)
    assert str(raised.value) == (
        "k must start on a multiple of 16 bytes, got address 0x200002; "
        "copy it with .clone(memory_format=torch.contiguous_format)"
    )
