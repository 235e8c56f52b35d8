"""Argument checks of the widths of heads: v, out and their gradients may have another one than q and k."""

from __future__ import annotations

from typing import Any

import check_backward_calls
import numpy as np
import pytest
from check_calls import call, gpu, host, ndarray

from omnicupy.call import check_widths, problem
from omnicupy.errors import UnsupportedError

KEYS, VALUES = (2, 2, 8, 16), (2, 2, 8, 24)
OUT = (2, 4, 8, 24)


def wide(array: Any, keys: int = 16, values: int = 24) -> dict[str, Any]:
    """q, k and v of these widths."""
    shapes = {"q": (2, 4, 8, keys), "k": (2, 2, 8, keys), "v": (2, 2, 8, values)}
    return {name: array(shape) for name, shape in shapes.items()}


def backward(**changed: Any) -> Any:
    """A good call of the gradients on the CPU, with values of 24 columns, with some arguments changed."""
    arrays: dict[str, Any] = {"v": host(VALUES), "dout": host(OUT), "out": host(OUT)}
    return check_backward_calls.call(**(arrays | changed))


TABLE: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        gpu,
        {"v": ndarray((2, 2, 8, 12))},
        ValueError,
        "v must have a width that is a multiple of 8, at most 1024, on the GPU, got 12; pad v with zero columns, which "
        "out then has as well",
    ),
    (
        gpu,
        {"v": ndarray((2, 2, 8, 1032))},
        ValueError,
        "v must have a width that is a multiple of 8, at most 1024, on the GPU, got 1032; pad v with zero columns, "
        "which out then has as well",
    ),
    *(
        (
            gpu,
            wide(ndarray, keys, values),
            UnsupportedError,
            f"v has {values} columns where q and k have {keys}: kernels of a GPU take another width of v where "
            "both are at most 256 (such as 128 beside 192; not 248 beside 256), and none takes the 512 beside 576 of "
            "absorbed multi-head latent attention; pad the narrower one with zero columns and pass scale",
        )
        for keys, values in ((576, 512), (264, 256), (256, 264), (16, 512), (248, 256))
    ),
    *(
        (
            call,
            wide(host) | {"out": host(shape)},
            ValueError,
            f"out must have the shape of q with the width of v (24), {OUT}, got {shape}",
        )
        for shape in ((2, 4, 8, 16), (2, 4, 7, 24), (2, 2, 8, 24))
    ),
    (
        gpu,
        wide(ndarray) | {"out": ndarray()},
        ValueError,
        f"out must have the shape of q with the width of v (24), {OUT}, got (2, 4, 8, 16)",
    ),
    *(
        (
            backward,
            {name: host()},
            ValueError,
            f"{name} must have the shape of q with the width of v (24), {OUT}, got (2, 4, 8, 16)",
        )
        for name in ("dout", "out")
    ),
    (
        backward,
        {"lse": host((2, 4, 8, 24), np.float32)},
        ValueError,
        "lse must have the shape (batch, q heads, q tokens) = (2, 4, 8), got (2, 4, 8, 24); pass what "
        "attention(..., return_lse=True) gave",
    ),
    (
        backward,
        {"out_grads": (host(OUT), None, None)},
        ValueError,
        f"out_grads[0] must have the shape of q (2, 4, 8, 16), got {OUT}",
    ),
    (
        backward,
        {"out_grads": (None, host(VALUES), None)},
        ValueError,
        f"out_grads[1] must have the shape of k {KEYS}, got {VALUES}",
    ),
    (
        backward,
        {"out_grads": (None, None, host(KEYS))},
        ValueError,
        f"out_grads[2] must have the shape of v {VALUES}, got {KEYS}",
    ),
]


@pytest.mark.parametrize(("good", "changed", "kind", "message"), TABLE, ids=range(len(TABLE)))
def test_bad_call(good: Any, changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        good(**changed)
    assert str(caught.value) == message


@pytest.mark.parametrize(("keys", "values"), [(192, 128), (128, 192), (8, 256), (256, 8), (576, 576)])
def test_widths_that_a_gpu_takes(keys: int, values: int) -> None:
    assert check_widths.fits_gpu(keys, values)
    found = gpu(**wide(ndarray, keys, values))
    assert found == problem.Problem(2, 4, 2, 8, 8, keys, "float16", value_dim=values)
    assert check_widths.out_shape(found) == (2, 4, 8, values)
    assert gpu(**wide(ndarray, keys, values), out=ndarray((2, 4, 8, values), ptr=9 << 20)) == found


@pytest.mark.parametrize(("keys", "values"), [(5, 3), (1, 300), (576, 512), (300, 1), (7, 7)])
def test_any_widths_on_the_cpu(keys: int, values: int) -> None:
    found = call(**wide(host, keys, values), out=host((2, 4, 8, values)))
    assert (found.head_dim, found.value_dim) == (keys, values)


def test_gradients_of_other_widths() -> None:
    grads = (host(), host(KEYS), host(VALUES))
    assert backward(out_grads=grads).problem.value_dim == 24
