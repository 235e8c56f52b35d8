"""jit/params.py agrees with the structs of the kernels' headers: names, order, offsets, size."""

from __future__ import annotations

import re

import numpy as np

from omnicupy.jit.params import ATTN_PARAMS, ATTN_PARAMS_SM90, PARAMS, params_bytes
from omnicupy.jit.source import kernels_dir
from omnicupy.jit.spec import KERNELS

HEADERS = {"AttnParams": "omni/params.cuh", "AttnParamsSm90": "omni/sm90/config.cuh"}
# Size and alignment of what a field may be.
SIZES = {"float": (4, 4), "int": (4, 4), "u32": (4, 4), "i64": (8, 8), "u64": (8, 8)}
SIZES |= {"TensorMap": (128, 64), "AttnParams": (256, 8)}
FIELD = re.compile(r"((?:[\w:]+ )?(?:[\w:]+)(?: const)?\*?) (\w.*)", re.DOTALL)


def _fields(struct: str) -> list[tuple[str, int, int]]:
    """(name, offset, bytes) of each field of a C struct of pointers, scalars, arrays and structs of SIZES."""
    text = (kernels_dir() / HEADERS[struct]).read_text()
    body = re.search(rf"struct {struct} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None
    declarations = re.sub(r"//[^\n]*", "", body[1]).split(";")
    found, end = [], 0
    for declaration in (d.strip() for d in declarations if d.strip()):
        kind, names = FIELD.fullmatch(declaration).groups()  # type: ignore[union-attr]
        size, align = (8, 8) if kind.endswith("*") else SIZES[kind]
        for name in names.split(","):
            match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name.strip())
            assert match is not None, declaration
            offset = -(-end // align) * align
            end = offset + size * int(match[2] or 1)
            found.append((match[1], offset, end - offset))
    return found


def _mine(dtype: np.dtype[np.void]) -> list[tuple[str, int, int]]:
    fields = [(name, *dtype.fields[name][:2]) for name in dtype.names or ()]  # type: ignore[index]
    return [(name, offset, of.itemsize) for name, of, offset in fields]


def test_attn_params_has_the_fields_of_the_header() -> None:
    mine = _mine(ATTN_PARAMS)
    assert mine == _fields("AttnParams")
    assert mine[-1][1] + mine[-1][2] <= ATTN_PARAMS.itemsize


def test_attn_params_sm90_has_the_fields_of_its_header() -> None:
    nested: list[tuple[str, int, int]] = []
    for name, offset, size in _fields("AttnParamsSm90"):
        if name == "p":
            assert size == ATTN_PARAMS.itemsize
            nested += [(inner, offset + at, of) for inner, at, of in _fields("AttnParams")]
        else:
            nested.append((name, offset, size))
    assert _mine(ATTN_PARAMS_SM90) == nested


def test_a_tensor_map_is_what_the_header_says() -> None:
    text = (kernels_dir() / "omni/sm90/ptx.cuh").read_text()
    size, align = SIZES["TensorMap"]
    assert re.search(rf"struct alignas\({align}\) TensorMap {{\s*u64 \w+\[{size // 8}\];", text)


def test_the_structs_have_c_sizes() -> None:
    assert ATTN_PARAMS.itemsize == 256
    assert ATTN_PARAMS_SM90.itemsize == 704  # 3 * 128 + 256 + 4 * 8 + 3 * 4 = 684, rounded up to 64


def test_the_maps_come_before_the_same_fields() -> None:
    names = ATTN_PARAMS_SM90.names or ()
    assert names[:3] == ("q_map", "k_map", "v_map")
    assert [ATTN_PARAMS_SM90.fields[name][1] for name in names[:3]] == [0, 128, 256]  # type: ignore[index]
    for name in ATTN_PARAMS.names or ():
        assert ATTN_PARAMS_SM90.fields[name][1] == 384 + ATTN_PARAMS.fields[name][1]  # type: ignore[index]


def test_every_kernel_kind_has_a_struct() -> None:
    assert set(PARAMS) >= set(KERNELS)
    for kernel in KERNELS:
        assert params_bytes(kernel) == PARAMS[kernel].itemsize


def test_the_call_s_pointers_come_together() -> None:
    for dtype in PARAMS.values():
        offsets = [dtype.fields[name][1] for name in ("q", "k", "v", "out", "lse")]  # type: ignore[index]
        assert np.array_equal(np.diff(offsets), [8] * 4)
