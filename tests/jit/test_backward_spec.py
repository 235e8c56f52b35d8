"""jit/backward_spec.py: tiles that no kernel has raise, saying what was expected, what came and what to do."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from backward_specs import NAIVE, SM80, SM90, WIDE

from omnicupy.jit.archs import SMEM_LIMIT_BYTES
from omnicupy.jit.backward_kernel import PARTS, SINK_PARTS, BackwardKernel, TileShape
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows
from omnicupy.jit.source import kernels_dir


def _sm80_tile(part: str, br: int, bc: int, warps: int) -> str:
    return (
        f"config: {part} of kernel 'sm80' has 4 or 8 warps and owns 16 or 32 tokens for each of them, queries (br) "
        f"for dq, else keys (bc); got br={br}, bc={bc}, warps={warps}"
    )


def _apart_tile(part: str, widest: int, softcap: bool) -> str:
    return (
        f"config: the {part} kernel with 16 warps for 128 keys has head_dim and value_dim up to 64 and no soft cap, "
        f"got {widest} and softcap={softcap}; take 12 warps"
    )


def _sm90_tile(part: str, br: int, bc: int, warps: int) -> str:
    return (
        "config: kernel 'sm90' has 4 producer warps and 4 warps for each 64 tokens that a block owns, keys (bc) for "
        "dkdv, queries (br) for dq; dkdv above 128 columns has 64 keys and 12 warps; "
        f"got br={br}, bc={bc}, warps={warps} for {part}"
    )


def _fused_tile(br: int, head_dim: int) -> str:
    return (
        "config: the fused kernel has tiles of 64 queries, head_dim and value_dim up to 128, "
        f"got br={br} and {head_dim}; leave fused out"
    )


ILLEGAL = [
    (SM80, {"arch": "sm_75"}, f"config: arch must be one of {', '.join(SMEM_LIMIT_BYTES)}, got 'sm_75'"),
    (SM80, {"kernel": "sm75"}, "config: kernel must be one of naive, sm80, sm90, got 'sm75'"),
    (SM80, {"dtype": "float32"}, "config: dtype must be one of float16, bfloat16, got 'float32'"),
    (SM80, {"arch": None}, f"config: arch must be one of {', '.join(SMEM_LIMIT_BYTES)}, got None"),
    (
        SM80,
        {"kernel": np.zeros(0)},
        "config: kernel must be one of naive, sm80, sm90, got array([], dtype=float64)",
    ),
    (
        SM80,
        {"dtype": np.zeros(0)},
        "config: dtype must be one of float16, bfloat16, got array([], dtype=float64)",
    ),
    (SM80, {"head_dim": 72}, "config: head_dim must be a multiple of 16 from 16 to 1024, got 72"),
    (SM80, {"head_dim": 0}, "config: head_dim must be a multiple of 16 from 16 to 1024, got 0"),
    (SM80, {"head_dim": 1040}, "config: head_dim must be a multiple of 16 from 16 to 1024, got 1040"),
    (
        SM80,
        {"dkdv": TileShape(48, 64, 1, 4)},
        "config: br of dkdv must be a multiple of 32 from 32 to 256, got 48",
    ),
    (
        SM80,
        {"dq": TileShape(64, 288, 1, 4)},
        "config: bc of dq must be a multiple of 32 from 32 to 256, got 288",
    ),
    (
        NAIVE,
        {"dq": TileShape(0, 64, 1, 4)},
        "config: br of dq must be a multiple of 32 from 32 to 256, got 0",
    ),
    (SM80, {"dq": TileShape(64, 64, 1, 2)}, _sm80_tile("dq", 64, 64, 2)),
    (SM80, {"dkdv": TileShape(64, 64, 1)}, _sm80_tile("dkdv", 64, 64, 12)),
    (SM80, {"dkdv": TileShape(64, 256, 1, 4)}, _sm80_tile("dkdv", 64, 256, 4)),
    (SM80, {"dq": TileShape(32, 64, 1, 4)}, _sm80_tile("dq", 32, 64, 4)),
    (
        SM80,
        {"head_dim": 272, "dkdv": TileShape(64, 64, 1, 4)},
        "config: head_dim 272 is cut in slices (above 256): dkdv walks 32 tokens at a time, got br=64, bc=64",
    ),
    (SM90, {"fused": TileShape(96, 128, 2, 12)}, _fused_tile(96, 128)),
    (WIDE, {"fused": TileShape(64, 64, 2, 8)}, _fused_tile(64, 256)),
    (SM80, {"fused": TileShape(128, 128, 1, 8)}, _fused_tile(128, 64)),
    (SM80, {"head_dim": 144, "fused": TileShape(64, 64, 1, 4)}, _fused_tile(64, 144)),
    (SM80, {"fused": TileShape(64, 256, 1, 4)}, _sm80_tile("fused", 64, 256, 4)),
    (SM80, {"fused": TileShape(64, 128, 3, 8)}, "config: stages of fused must be 1 or 2, got 3"),
    (
        NAIVE,
        {"fused": TileShape(64, 64, 1, 4)},
        "config: kernel 'naive' has no fused kernel; leave fused out",
    ),
    (SM90, {"fused": TileShape(64, 128, 2, 8)}, _sm90_tile("fused", 64, 128, 8)),
    (SM90, {"fused": TileShape(64, 128, 2, 16)}, _apart_tile("fused", 128, False)),
    (SM90, {"ordered": TileShape(64, 128, 2, 16)}, _apart_tile("ordered", 128, False)),
    (
        SM90 | {"head_dim": 64},
        {"fused": TileShape(64, 128, 4, 16), "softcap": True},
        _apart_tile("fused", 64, True),
    ),
    (SM90, {"fused": TileShape(64, 64, 1, 8)}, "config: stages of fused must be from 2 to 4, got 1"),
    (SM80, {"dkdv": TileShape(64, 64, 3, 4)}, "config: stages of dkdv must be 1 or 2, got 3"),
    (
        SM90,
        {"arch": "sm_90"},
        "config: kernel 'sm90' needs arch='sm_90a' and head_dim up to 256, got 'sm_90' and 128; take kernel='sm80'",
    ),
    (
        WIDE,
        {"head_dim": 272},
        "config: kernel 'sm90' needs arch='sm_90a' and head_dim up to 256, got 'sm_90a' and 272; take kernel='sm80'",
    ),
    (SM90, {"dkdv": TileShape(64, 128, 2, 8)}, _sm90_tile("dkdv", 64, 128, 8)),
    (SM90, {"dkdv": TileShape(64, 96, 2, 12)}, _sm90_tile("dkdv", 64, 96, 12)),
    (SM90, {"dkdv": TileShape(64, 256, 2, 20)}, _sm90_tile("dkdv", 64, 256, 20)),
    (SM90, {"dq": TileShape(96, 64, 2, 12)}, _sm90_tile("dq", 96, 64, 12)),
    (WIDE, {"dkdv": TileShape(64, 128, 2, 12)}, _sm90_tile("dkdv", 64, 128, 12)),
    (WIDE, {"dkdv": TileShape(64, 64, 2, 8)}, _sm90_tile("dkdv", 64, 64, 8)),
    (SM90, {"dkdv": TileShape(64, 128, 5, 12)}, "config: stages of dkdv must be from 2 to 4, got 5"),
    (SM90, {"dq": TileShape(128, 32, 1, 12)}, "config: stages of dq must be from 2 to 8, got 1"),
    (SM90, {"dq": TileShape(128, 32, 9, 12)}, "config: stages of dq must be from 2 to 8, got 9"),
    (
        SM80,
        {"arch": "sm_86", "head_dim": 256},
        "config: the dkdv tile needs 263440 B of shared memory, sm_86 has 101376 B a block; "
        "lower br=64, bc=128 or stages=2",
    ),
    (
        SM80,
        {"arch": "sm_89", "head_dim": 96, "fused": TileShape(64, 128, 2, 8)},
        "config: the fused tile needs 132368 B of shared memory, sm_89 has 101376 B a block; "
        "lower br=64, bc=128 or stages=2",
    ),
    (
        SM90,
        {"dq": TileShape(128, 128, 8, 12)},
        "config: the dq tile needs 336896 B of shared memory, sm_90a has 232448 B a block; "
        "lower br=128, bc=128 or stages=8",
    ),
    *(
        (
            SM80,
            {"arch": value},
            "config: arch must be one of sm_80, sm_86, sm_89, sm_90, sm_90a, sm_100, sm_120, got "
            + repr(value),
        )
        for value in (None, 80, ["sm_80"])
    ),
]


@pytest.mark.parametrize(("given", "changed", "message"), ILLEGAL, ids=range(len(ILLEGAL)))
def test_tiles_that_no_kernel_has(given: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    BackwardSpec(**given)
    with pytest.raises(ValueError, match="config: ") as caught:
        BackwardSpec(**(given | changed))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (SM80, {"dkdv": TileShape(256, 128, 1, 8), "dq": TileShape(256, 256, 1, 8)}),
        (SM90, {"dkdv": TileShape(96, 64, 2, 8), "dq": TileShape(64, 32, 8, 8)}),
        (SM90, {"head_dim": 64, "dkdv": TileShape(64, 192, 2, 16), "dq": TileShape(192, 64, 3, 16)}),
        (WIDE, {"dkdv": TileShape(32, 64, 2, 12)}),
        (NAIVE, {"head_dim": 1024}),
    ],
    ids=range(5),
)
def test_other_tiles_are_legal(given: dict[str, Any], changed: dict[str, Any]) -> None:
    spec = BackwardSpec(**(given | changed))
    assert list(spec.kernels()) == [*PARTS, *SINK_PARTS]


@pytest.mark.parametrize("field", ["head_dim", "br", "bc", "stages", "warps"])
@pytest.mark.parametrize("value", [2.0, 64.0, "64", None, True, np.float32(64), [64]])
def test_numbers_are_integers(field: str, value: Any) -> None:
    name = field if field == "head_dim" else f"dq.{field}"
    changed = {field: value} if field == "head_dim" else {"dq": SM80["dq"]._replace(**{field: value})}
    with pytest.raises(TypeError) as caught:
        BackwardSpec(**SM80 | changed)
    assert str(caught.value) == (
        f"config: {name} must be an integer, got {type(value).__name__} {value!r}; pass a whole number"
    )


@pytest.mark.parametrize("name", ["dkdv", "dq"])
@pytest.mark.parametrize("value", [None, 64, [64, 64], (64,), (64, 64, 2, 4, 1), "64x64"])
def test_shapes_are_tuples(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        BackwardSpec(**SM80 | {name: value})
    assert str(caught.value) == (f"config: {name} must be a TileShape (br, bc, stages, warps), got {value!r}")


@pytest.mark.parametrize("part", ["fused", "ordered"])
def test_a_warpgroup_of_its_own_makes_dq(part: str) -> None:
    """With 16 warps for 128 keys; 12 for as many, or 16 for 192, take turns."""
    given = SM90 | {"head_dim": 64}
    for tile, apart, owning in (((128, 4, 16), True, 2), ((128, 4, 12), False, 2), ((192, 3, 16), False, 3)):
        kernel = BackwardSpec(**given | {part: TileShape(64, *tile)}).part(part)
        assert (kernel.has_dq_apart, kernel.warpgroups, kernel.is_staged) == (apart, owning, True)
    assert not BackwardSpec(**given | {"dkdv": TileShape(64, 192, 4, 16)}).part("dkdv").has_dq_apart


def test_a_plain_tuple_is_a_shape_and_numpy_integers_are_integers() -> None:
    spec = BackwardSpec(**SM80 | {"head_dim": np.int64(64), "dq": (np.int32(64), 64, 1, 4)})
    assert spec.dq == TileShape(64, 64, 1, 4)
    assert all(type(number) is int for number in (*spec.dq, spec.head_dim))
    assert BackwardSpec(**SM90 | {"dkdv": (64, 128)}).dkdv == TileShape(64, 128, 2, 12)
    assert hash(spec) == hash(replace(spec))


def test_every_field_tells_kernels_apart() -> None:
    """Equal values are one cubin."""
    kernel = BackwardSpec(**SM90).part("dkdv")
    changed = {"kernel": "sm80", "part": "dq", "dtype": "float16", "head_dim": 64, "br": 96, "bc": 192}
    others = [replace(kernel, dtype="float16"), replace(kernel, br=96)]
    assert len({kernel, *others, *BackwardSpec(**SM90).kernels().values()}) == 6
    assert {one.name for one in fields(BackwardKernel)} >= set(changed)
    assert len({str(one) for one in (kernel, *others)}) == 3
    assert str(kernel) == (
        "bwd-dkdv sm90 sm_90a dtype=bfloat16 head_dim=128 value_dim=128 br=64 bc=128 stages=2 warps=12 "
        "softcap=False"
    )
    assert str(BackwardSpec(**SM90)) == (
        "bwd sm90 sm_90a bfloat16 head_dim=128 dkdv=64x128x2x12 dq=128x128x4x12"
    )


def test_a_part_that_there_is_not() -> None:
    kernel = BackwardSpec(**SM80).part("dq")
    with pytest.raises(
        ValueError,
        match=r"config: part must be one of prepare, dkdv, dq, fused, ordered, convert, sinks, got 'dv'",
    ):
        replace(kernel, part="dv")


def test_the_step_of_the_walk_is_of_queries_for_dk_and_dv() -> None:
    spec = BackwardSpec(**SM80)
    assert (spec.part("dkdv").step, spec.part("dq").step) == (64, 64)
    spec = BackwardSpec(**SM90 | {"dkdv": TileShape(96, 128, 2, 12), "dq": TileShape(128, 32, 4, 12)})
    assert (spec.part("dkdv").step, spec.part("dq").step) == (96, 32)


def test_the_macros_are_what_sources_read() -> None:
    for given in (SM80, SM90, NAIVE):
        for kernel in BackwardSpec(**given).kernels().values():
            text = (kernels_dir() / kernel.source).read_text()
            read = {word for word in text.replace(",", " ").split() if word.startswith("OMNI_")}
            read = {"".join(c for c in word if c.isalnum() or c == "_") for word in read}
            assert read <= {*kernel.defines(), "OMNI_PARAMS_BYTES"}, kernel.source


@pytest.mark.parametrize("q_len", [1, 63, 64, 65, 256, 1000, 4097])
def test_a_tile_of_any_height_ends_inside_the_padded_rows(q_len: int) -> None:
    padded = padded_rows(q_len)
    assert padded % 64 == 0
    for br in range(32, 257, 32):
        assert (q_len - 1) // br * br + br <= padded
    assert padded < q_len + 255 + 64
