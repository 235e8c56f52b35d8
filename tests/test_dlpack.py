"""Arrays of other libraries: taken without a copy, and the same numbers as from NumPy arrays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc
from omnicupy import api

MASK = oc.segments([("text", 9), ("image", 20), ("text", 11)])


class Foreign:
    """An array that only DLPack knows."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


Foreign.__module__ = "producer"


def _inputs(dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, heads, 40, 16)).astype(dtype) for heads in (4, 2, 2)]


def test_any_producer() -> None:
    arrays = _inputs()
    wanted = oc.attention(*arrays, MASK)
    taken = [np.from_dlpack(Foreign(array)) for array in arrays]
    assert [x.ctypes.data for x in taken] == [x.ctypes.data for x in arrays]
    np.testing.assert_array_equal(oc.attention(*taken, MASK), wanted)
    with pytest.raises(TypeError) as raised:
        oc.attention(Foreign(arrays[0]), *arrays[1:], MASK)
    assert str(raised.value) == (
        "q must be a CuPy or NumPy array, got producer.Foreign; convert it with numpy.asarray on the CPU, with "
        "cupy.from_dlpack on a GPU"
    )


def test_a_boolean_array_of_any_producer_is_a_mask() -> None:
    assert oc.from_dense(Foreign(MASK.to_dense())) == MASK
    with pytest.raises(
        TypeError,
        match=r"^from_dense: dense must be boolean, got float64; pass dense == 0 of a mask that is added",
    ):
        oc.from_dense(Foreign(np.ones((2, 2))))
    on_device = Foreign(MASK.to_dense())
    on_device.__dlpack_device__ = lambda: (2, 0)  # type: ignore[method-assign]
    with pytest.raises(
        TypeError, match=r"^from_dense: dense must be in the memory of the CPU, got Foreign on another"
    ):
        oc.from_dense(on_device)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_jax(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    arrays = _inputs(dtype)
    theirs = [jax.numpy.asarray(array) for array in arrays]
    seen: list[int] = []
    engine = api.cpu_attention.attention

    def spy(*given: Any, **options: Any) -> Any:
        seen.extend(array.ctypes.data for array in given[1:4])
        return engine(*given, **options)

    monkeypatch.setattr(api.cpu_attention, "attention", spy)
    found = jax.numpy.asarray(oc.attention(*map(np.asarray, theirs), MASK))
    assert seen == [array.unsafe_buffer_pointer() for array in theirs]  # no copy
    assert found.dtype == dtype
    wanted = oc.attention(*arrays, MASK)
    assert np.asarray(found).tobytes() == wanted.tobytes()

    def attend(*given: Any) -> Any:
        return oc.attention(*map(np.asarray, given), MASK)

    @jax.jit
    def layer(q: Any, k: Any, v: Any) -> Any:
        return 2 * jax.pure_callback(attend, jax.ShapeDtypeStruct(q.shape, q.dtype), q, k, v)

    assert np.asarray(layer(*theirs)).tobytes() == (2 * wanted).astype(dtype).tobytes()
