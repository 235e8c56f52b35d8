"""jit/params.py agrees with the structs of the kernels' headers, nested ones too: names, order, offsets, size."""

from __future__ import annotations

import re

import numpy as np
import pytest

from omnicupy.jit.params import (
    ATTN_PARAMS,
    ATTN_PARAMS_SM90,
    BACKWARD_PARAMS,
    BACKWARD_PARAMS_SM90,
    PARAMS,
    params_bytes,
)
from omnicupy.jit.source import kernels_dir
from omnicupy.jit.spec import KERNELS

HEADERS = {
    "Strides": "omni/params.cuh",
    "BlockLists": "omni/params.cuh",
    "ForwardParams": "omni/params.cuh",
    "ForwardParamsSm90": "omni/sm90/forward/config.cuh",
    "BackwardParams": "omni/backward_params.cuh",
    "BackwardParamsSm90": "omni/sm90/backward/config.cuh",
    "BackwardParamsWithSums": "omni/dq_sums.cuh",
    "PlanParams": "omni/cached/params.cuh",
    "PageTable": "omni/pages.cuh",
    "AppendParams": "omni/append.cuh",
    "KvScales": "omni/fp8.cuh",
    "TailMaps": "omni/sm90/forward/tail.cuh",
}
# Size and alignment of what a field may be, besides a pointer or a struct of HEADERS.
SIZES = {"float": (4, 4), "int": (4, 4), "u32": (4, 4), "i64": (8, 8), "u64": (8, 8), "TensorMap": (128, 64)}
# Structs whose fields params.py packs as fields of the struct around them; another struct is one field, an array.
FLAT = {"BlockLists", "ForwardParams", "BackwardParams"}
FUNCTION = re.compile(
    r"^(?:  template <.*\n)?  __device__.*\n(?:(?:    .*|  })\n)*", re.MULTILINE
)  # of a struct, by its indentation
FIELD = re.compile(r"((?:[\w:]+ )?(?:[\w:]+)(?: const)?\*?) (\w.*)", re.DOTALL)

Fields = list[tuple[str, int, int]]  # (name, offset, bytes)


def _struct(name: str) -> tuple[Fields, int, int]:
    """The fields, size and alignment of a C struct of pointers, scalars, arrays and structs, by the rules of C."""
    text = (kernels_dir() / HEADERS[name]).read_text()
    body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None
    code = re.sub(r"//[^\n]*", "", body[1])
    declarations = FUNCTION.sub("", code + "\n").split(";")
    found: Fields = []
    end, strictest = 0, 1
    for declaration in (d.strip() for d in declarations if d.strip()):
        kind, names = FIELD.fullmatch(declaration).groups()  # type: ignore[union-attr]
        inner, size, align = _kind(kind)
        strictest = max(strictest, align)
        for field in names.split(","):
            match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", field.strip())
            assert match is not None, declaration
            offset = -(-end // align) * align
            end = offset + size * int(match[2] or 1)
            if kind in FLAT:
                found += [(of, offset + at, held) for of, at, held in inner]
            else:
                found.append((match[1], offset, end - offset))
    return found, -(-end // strictest) * strictest, strictest


def _kind(kind: str) -> tuple[Fields, int, int]:
    """The fields that a type has itself, its size and its alignment."""
    if kind in HEADERS:
        return _struct(kind)
    return ([], 8, 8) if kind.endswith("*") else ([], *SIZES[kind])


def _mine(dtype: np.dtype[np.void]) -> list[tuple[str, int, int]]:
    fields = [(name, *dtype.fields[name][:2]) for name in dtype.names or ()]  # type: ignore[index]
    return [(name, offset, of.itemsize) for name, of, offset in fields]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("ForwardParams", ATTN_PARAMS),
        ("ForwardParamsSm90", ATTN_PARAMS_SM90),
        ("BackwardParams", BACKWARD_PARAMS),
        ("BackwardParamsSm90", BACKWARD_PARAMS_SM90),
        ("BackwardParamsWithSums", PARAMS["bwd_sums"]),
        ("PlanParams", PARAMS["plan"]),
        ("AppendParams", PARAMS["append"]),
    ],
)
def test_a_struct_has_the_fields_and_the_size_of_its_header(name: str, dtype: np.dtype[np.void]) -> None:
    fields, size, _ = _struct(name)
    assert _mine(dtype) == fields
    assert dtype.itemsize == size


@pytest.mark.parametrize("kernel", KERNELS)
def test_pages_stand_behind_a_forward_struct(kernel: str) -> None:
    """C++ puts what a derived struct adds behind its base."""
    base, mine = PARAMS[kernel], PARAMS[f"{kernel}_paged"]
    fields, _, _ = _struct("PageTable")
    assert _mine(mine)[: len(base.names or ())] == _mine(base)
    added = _mine(mine)[len(base.names or ()) :]
    assert [name for name, *_ in added] == ["page_table", "page_next", "pages", "page_size"]
    assert [(offset, held) for _, offset, held in added] == [
        (base.itemsize + offset, held) for _, offset, held in fields
    ]
    align = 64 if kernel == "sm90" else 8
    assert mine.itemsize == -(-(base.itemsize + 20) // align) * align


def test_maps_of_narrow_panels_stand_behind_the_struct() -> None:
    base, mine = PARAMS["sm90"], PARAMS["sm90_narrow"]
    fields, size, _ = _struct("TailMaps")
    assert _mine(mine)[: len(base.names or ())] == _mine(base)
    added = _mine(mine)[len(base.names or ()) :]
    assert [(name.partition("_")[0], offset, held) for name, offset, held in added] == [
        (name, base.itemsize + offset, held) for name, offset, held in fields
    ]
    assert mine.itemsize == base.itemsize + size


@pytest.mark.parametrize("kernel", [*KERNELS, "append"])
def test_scales_stand_behind_the_last_field(kernel: str) -> None:
    """C++ puts what a derived struct adds behind the last field of its base, also in the padding of one with a base."""
    base, mine = PARAMS[kernel if kernel == "append" else f"{kernel}_ragged"], PARAMS[f"{kernel}_fp8"]
    fields, size, _ = _struct("KvScales")
    assert _mine(mine)[: len(base.names or ())] == _mine(base)
    added = _mine(mine)[len(base.names or ()) :]
    assert [name for name, *_ in added] == [
        *("k_scale", "v_scale", "k_scale_strides", "v_scale_strides", "k_factor", "v_factor")
    ]
    *_, (_, last, held) = _mine(base)
    start = -(-(last + held) // 8) * 8
    assert [(offset, held) for _, offset, held in added] == [
        (start + offset, held) for _, offset, held in fields
    ]
    align = 64 if kernel == "sm90" else 8
    assert mine.itemsize == -(-(start + size) // align) * align


def test_strides_are_an_array_of_three() -> None:
    assert _struct("Strides") == ([("batch", 0, 8), ("head", 8, 8), ("token", 16, 8)], 24, 8)


def test_block_lists_stand_together() -> None:
    """They are a struct of their own, in which nothing but them may lie."""
    fields, size, align = _struct("BlockLists")
    assert (size, align) == (8 * len(fields), 8)
    first = ATTN_PARAMS.fields[fields[0][0]][1]  # type: ignore[index]
    assert [(name, first + offset, held) for name, offset, held in fields] == _mine(ATTN_PARAMS)[5:11]


def test_a_tensor_map_is_what_the_header_says() -> None:
    text = (kernels_dir() / "omni/sm90/tma.cuh").read_text()
    size, align = SIZES["TensorMap"]
    assert re.search(rf"struct alignas\({align}\) TensorMap {{\s*u64 \w+\[{size // 8}\];", text)


def test_the_structs_have_c_sizes() -> None:
    assert ATTN_PARAMS.itemsize == 288  # 272 + 8 + 4, rounded up to 8
    assert ATTN_PARAMS_SM90.itemsize == 768  # 3 * 128 + 288 + 4 * 8 + 3 * 4 + 4 + 8 = 728, rounded up to 64
    assert BACKWARD_PARAMS.itemsize == 528  # 288 + 12 * 8 + 4 * 24 + 8 + 2 * 4 + 3 * 8 + 4, rounded up to 8
    # 4 * 128 + 528 + 6 * 8 + 4 * 4 + 8 + 5 * 4 = 1132, rounded up to 64
    assert BACKWARD_PARAMS_SM90.itemsize == 1152
    assert params_bytes("bwd_sums") == 536  # 528 + 8


def test_the_maps_come_before_the_same_fields() -> None:
    names = ATTN_PARAMS_SM90.names or ()
    assert names[:3] == ("q_map", "k_map", "v_map")
    assert [ATTN_PARAMS_SM90.fields[name][1] for name in names[:3]] == [0, 128, 256]  # type: ignore[index]
    for name in ATTN_PARAMS.names or ():
        assert ATTN_PARAMS_SM90.fields[name][1] == 384 + ATTN_PARAMS.fields[name][1]  # type: ignore[index]


def test_the_backward_s_maps_come_before_the_same_fields() -> None:
    names = BACKWARD_PARAMS_SM90.names or ()
    assert names[:4] == ("q_map", "dout_map", "k_map", "v_map")
    assert [BACKWARD_PARAMS_SM90.fields[name][1] for name in names[:4]] == [0, 128, 256, 384]  # type: ignore[index]
    for name in BACKWARD_PARAMS.names or ():
        assert BACKWARD_PARAMS_SM90.fields[name][1] == 512 + BACKWARD_PARAMS.fields[name][1]  # type: ignore[index]


def test_the_forward_s_fields_begin_the_backward_s() -> None:
    """Kernels of both read block lists and q, k, v through ForwardParams."""
    assert _mine(BACKWARD_PARAMS)[: len(ATTN_PARAMS.names or ())] == _mine(ATTN_PARAMS)


def test_the_backward_s_pointers_come_together() -> None:
    """gpu/backward_plan.py writes them with one pack."""
    names = ["dout", "dlse", "lse2", "delta", "dq", "dk", "dv", "q_copy", "dout_copy", "k_copy", "v_copy"]
    for dtype in (BACKWARD_PARAMS, BACKWARD_PARAMS_SM90):
        offsets = [dtype.fields[name][1] for name in names]  # type: ignore[index]
        assert np.array_equal(np.diff(offsets), [8] * 10)
    work = [BACKWARD_PARAMS_SM90.fields[name][1] for name in ["counter", "dq_sums", "partials", "arrivals"]]  # type: ignore[index]
    assert np.array_equal(np.diff(work), [8] * 3)


def test_every_kernel_kind_has_a_struct() -> None:
    assert set(PARAMS) >= set(KERNELS)
    for kernel in KERNELS:
        assert params_bytes(kernel) == PARAMS[kernel].itemsize


def test_the_call_s_pointers_come_together() -> None:
    for dtype in (
        dtype for kind, dtype in PARAMS.items() if not kind.startswith(("plan", "append", "exchange"))
    ):
        offsets = [dtype.fields[name][1] for name in ("q", "k", "v", "out", "lse")]  # type: ignore[index]
        assert np.array_equal(np.diff(offsets), [8] * 4)
