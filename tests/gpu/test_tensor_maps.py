"""gpu/tensor_maps.py: which arrays a tensor map can hold, and what the driver is asked for. No driver is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from omnicupy.errors import UnsupportedError
from omnicupy.gpu import bindings, tensor_maps
from omnicupy.jit import params

WORDS = list(range(1, 17))
SHAPE = (2, 4, 300, 128)
STRIDES = (4 * 300 * 256, 300 * 256, 256, 2)


class Driver:
    """cuda.bindings.driver with an encoder that keeps its arguments and answers `error`."""

    def __init__(self, error: int = 0) -> None:
        real = pytest.importorskip("cuda.bindings.driver")
        self.asked: list[tuple[Any, ...]] = []
        self._answer = real.CUresult(error)
        for name in ("DataType", "Interleave", "Swizzle", "L2promotion", "FloatOOBfill"):
            setattr(self, f"CUtensorMap{name}", getattr(real, f"CUtensorMap{name}"))
        self.cuuint32_t, self.cuuint64_t = real.cuuint32_t, real.cuuint64_t

    def cuTensorMapEncodeTiled(self, *arguments: Any) -> tuple[Any, Any]:  # noqa: N802
        self.asked.append(arguments)
        return self._answer, SimpleNamespace(opaque=WORDS)


@pytest.fixture(autouse=True)
def _no_map_is_kept() -> Iterator[None]:
    tensor_maps.tensor_map.cache_clear()
    yield
    tensor_maps.tensor_map.cache_clear()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return _install(monkeypatch, Driver())


def _install(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Driver:
    monkeypatch.setattr(bindings, "driver", lambda: driver)
    return driver


@pytest.mark.parametrize(
    ("shape", "strides", "mappable"),
    [
        (SHAPE, STRIDES, True),
        (SHAPE, (STRIDES[0], 256, 4 * 256, 2), True),  # (batch, tokens, heads, head_dim), transposed
        (SHAPE, (0, *STRIDES[1:]), False),
        (SHAPE, (STRIDES[0], 0, *STRIDES[2:]), False),
        (SHAPE, (*STRIDES[:2], 0, 2), False),
        (SHAPE, (*STRIDES[:2], -256, 2), False),
        (SHAPE, (-STRIDES[0], *STRIDES[1:]), False),
        ((1, 4, 300, 128), (0, *STRIDES[1:]), True),
        ((1, 1, 1, 128), (0, -256, 0, 2), True),
        (SHAPE, (2**40, *STRIDES[1:]), False),
        (SHAPE, (2**40 - 16, *STRIDES[1:]), True),
    ],
)
def test_can_map(shape: tuple[int, ...], strides: tuple[int, ...], mappable: bool) -> None:
    assert tensor_maps.can_map(shape, strides) is mappable


def _numbers(values: list[Any]) -> list[int]:
    return [int(value) for value in values]


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_what_a_map_is_made_of(driver: Driver, dtype: str, kind: str) -> None:
    made = tensor_maps.tensor_map(4096, SHAPE, STRIDES, dtype, (96, 2))
    assert made == b"".join(word.to_bytes(8, "little") for word in WORDS)
    assert len(made) == params.MAP_BYTES
    (asked,) = driver.asked
    assert asked[0].name == f"CU_TENSOR_MAP_DATA_TYPE_{kind}"
    assert asked[1:3] == (4, 4096)
    assert _numbers(asked[3]) == [128, 300, 4, 2]  # fastest axis first
    assert _numbers(asked[4]) == [256, 300 * 256, 4 * 300 * 256]  # of the axes after it, in bytes
    assert _numbers(asked[5]) == [tensor_maps.PANEL, 96, 2, 1]
    assert _numbers(asked[6]) == [1, 1, 1, 1]
    assert [setting.name.partition("MAP_")[2] for setting in asked[7:]] == [
        "INTERLEAVE_NONE",
        "SWIZZLE_128B",
        "L2_PROMOTION_L2_256B",
        "FLOAT_OOB_FILL_NONE",
    ]


@pytest.mark.parametrize(("width", "span"), [(64, 128), (32, 64), (16, 32)])
def test_rows_of_a_panel_are_swizzled_as_a_whole(driver: Driver, width: int, span: int) -> None:
    tensor_maps.tensor_map(4096, SHAPE, STRIDES, "float16", (64, 1), width)
    (asked,) = driver.asked
    assert _numbers(asked[5]) == [width, 64, 1, 1]
    assert asked[8].name.endswith(f"SWIZZLE_{span}B")


def test_an_axis_of_length_one_gets_a_legal_stride(driver: Driver) -> None:
    tensor_maps.tensor_map(4096, (1, 1, 300, 128), (0, -256, 256, 2), "float16", (64, 1))
    assert _numbers(driver.asked[0][4]) == [256, 16, 16]


def test_a_map_is_made_once(driver: Driver) -> None:
    for pointer in (4096, 8192, 4096, 4096):
        tensor_maps.tensor_map(pointer, SHAPE, STRIDES, "float16", (64, 1))
    tensor_maps.tensor_map(4096, SHAPE, STRIDES, "float16", (128, 1))
    assert [asked[2] for asked in driver.asked] == [4096, 8192, 4096]


def test_the_driver_s_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, Driver(error=1))
    with pytest.raises(UnsupportedError) as error:
        tensor_maps.tensor_map(4096, SHAPE, STRIDES, "bfloat16", (64, 1))
    assert str(error.value) == (
        f"no tensor map for shape {SHAPE}, strides {STRIDES[:3]} (bytes), bfloat16: the driver says "
        "CUDA_ERROR_INVALID_VALUE; pass config=AttnSpec(kernel='sm80', ...)"
    )


def test_without_cuda_bindings_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings.driver.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UnsupportedError) as error:
        tensor_maps.tensor_map(4096, SHAPE, STRIDES, "bfloat16", (64, 1))
    assert str(error.value) == (
        "the GPU path needs cuda-bindings, to ask CUDA for streams, graphs and tensor maps: "
        "in the checkout, pip install '.[cuda12]' or '.[cuda13]'"
    )


def test_a_packed_map_has_the_heads_of_a_group_inside_of_tokens(driver: Driver) -> None:
    tensor_maps.packed_map(4096, (2, 14, 5, 80), (14 * 5 * 160, 160, 14 * 160, 2), "float16", 7, (7, 9))
    ((_, rank, pointer, lengths, strides, box, steps, *_),) = driver.asked
    assert (rank, pointer) == (5, 4096)
    assert [int(x) for x in lengths] == [80, 7, 5, 2, 2]
    assert [int(x) for x in strides] == [160, 14 * 160, 7 * 160, 14 * 5 * 160]
    assert [int(x) for x in box] == [64, 7, 9, 1, 1]
    assert [int(x) for x in steps] == [1] * 5
