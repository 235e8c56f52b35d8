"""params.py agrees with kernels/omni/params.cuh: names, order, offsets, size."""

from __future__ import annotations

import re

import numpy as np

from omnicupy.params import ATTN_PARAMS, ATTN_PARAMS_SM90, PARAMS, params_bytes
from omnicupy.source import kernels_dir
from omnicupy.spec import KERNELS

SIZES = {"float": 4, "int": 4, "u32": 4, "i64": 8, "u64": 8}


def _fields(struct: str) -> list[tuple[str, int, int, int]]:
    """(name, offset, element size, count) of each field of a C struct of pointers, scalars and arrays."""
    text = (kernels_dir() / "omni/params.cuh").read_text()
    body = re.search(rf"struct {struct} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None
    declarations = re.sub(r"//[^\n]*", "", body[1]).split(";")
    found, end = [], 0
    for declaration in (d.strip() for d in declarations if d.strip()):
        kind, names = re.fullmatch(
            r"((?:[\w:]+ )?(?:[\w:]+)(?: const)?\*?) (\w.*)", declaration, re.DOTALL
        ).groups()  # type: ignore[union-attr]
        size = 8 if kind.endswith("*") else SIZES[kind]
        for name in names.split(","):
            match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name.strip())
            assert match is not None, declaration
            count = int(match[2] or 1)
            offset = -(-end // size) * size
            found.append((match[1], offset, size, count))
            end = offset + size * count
    return found


def test_attn_params_has_the_fields_of_the_header() -> None:
    mine = []
    for name in ATTN_PARAMS.names or ():
        dtype, offset = ATTN_PARAMS.fields[name][:2]  # type: ignore[index]
        base, shape = dtype.subdtype or (dtype, (1,))
        mine.append((name, offset, base.itemsize, int(np.prod(shape))))
    assert mine == _fields("AttnParams")
    assert mine[-1][1] + mine[-1][2] <= ATTN_PARAMS.itemsize


def test_the_structs_have_c_sizes() -> None:
    assert ATTN_PARAMS.itemsize == 248
    assert ATTN_PARAMS_SM90.itemsize == 640  # 3 * 128 + 248, rounded up to 64


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
