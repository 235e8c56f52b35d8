"""Every row of the table compiles for every architecture it names: no spill, no warning, registers that fit.

They take turns here: `cli.py verify` compiles every row in both dtypes, and --every-case all that are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from cubin_code import WARPSYNC, compiled_without_a_spill, opcodes
from turns import every_turn, in_turn, of_turn

from omnicupy.choose import paged, table
from omnicupy.jit import archs, cache
from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.exchange_spec import ExchangeAddSpec, ExchangeSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PACKED, PagedSpec
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.ragged_spec import RaggedSpec
from omnicupy.jit.spec import DTYPES, AttnSpec, KernelSpec

NAIVE = [
    AttnSpec(arch=arch, kernel="naive", dtype=dtype, head_dim=128, br=64, bc=64)
    for arch in (archs.ARCHES[0], archs.ARCHES[-1])
    for dtype in ("float16", "bfloat16")
]


def _name(spec: AttnSpec) -> str:
    dtype = {"float16": "f16", "bfloat16": "bf16"}[spec.dtype]
    tile = f"{spec.br}x{spec.bc}-s{spec.stages}-w{spec.warps}{'-packed' * spec.pack}"
    tile += f"-b{spec.blocks}" * (spec.blocks > 1) + "-scheduler" * spec.scheduler
    tile += "-cached" * isinstance(spec, CachedSpec)
    tile += f"-page{spec.page}" if isinstance(spec, PagedSpec) else ""
    tile += "-e4m3" * isinstance(spec, Fp8Spec)
    tile += "-ragged" * (isinstance(spec, RaggedSpec) or getattr(spec, "ragged", False))
    return f"{spec.kernel}-{spec.arch}-{dtype}-d{spec.head_dim}-{tile}"


def _each_tile_once(specs: Iterable[AttnSpec]) -> list[AttnSpec]:
    """Hopper's tiles, with the dtypes in turn: what caches add does not depend on them."""
    tiles: dict[str, list[AttnSpec]] = {}
    for spec in specs:
        if spec.kernel == "sm90":
            tiles.setdefault(str(replace(spec, dtype=DTYPES[0])), []).append(spec)
    return [of_tile[i % len(of_tile)] for i, of_tile in enumerate(tiles.values())]


# Those that serve calls on caches.
HOPPER = _each_tile_once(spec for spec in table.rows() if spec.serves_caches)


def _archs_in_turn(specs: list[AttnSpec]) -> list[AttnSpec]:
    """Of kernel "sm80" each tile for every architecture it is for, with the dtypes in turn where these are several:
    dtypes differ in how numbers are rounded alone.
    """

    def tile(spec: AttnSpec) -> tuple[object, ...]:
        return tuple({**asdict(spec), "arch": None, "dtype": None}.values())

    archs_of: dict[tuple[object, ...], list[str]] = {}
    for spec in specs:
        archs_of.setdefault(tile(spec), []).append(spec.arch)

    def has_its_turn(spec: AttnSpec) -> bool:
        of_tile = list(dict.fromkeys(archs_of[tile(spec)]))
        return len(of_tile) == 1 or of_tile.index(spec.arch) % 2 == DTYPES.index(spec.dtype)

    return [spec for spec in specs if spec.kernel != "sm80" or has_its_turn(spec)]


ROWS = [
    *_archs_in_turn([spec for spec in table.rows() if spec.kernel != "sm90"]),
    *_each_tile_once(table.rows()),
]
PORTABLE = [spec for spec in ROWS if spec.kernel != "sm90"]


def _numbers(spec: AttnSpec) -> tuple[str, str]:
    return spec.kernel, spec.dtype


TURNS = 10


def _in_turn(specs: Iterable[AttnSpec], of: int = TURNS) -> list[Any]:
    """A run has one kernel in `of`; sorted, so that it has each dtype and each way of caches."""
    ways = sorted(
        specs, key=lambda spec: (*_numbers(spec), getattr(spec, "page", 0), getattr(spec, "ragged", False))
    )
    return in_turn(ways, of, lambda spec: _numbers(spec) if spec.kernel == "naive" else spec.kernel)


TILES = _in_turn([*ROWS, *NAIVE])


# Of keys in pages: kernels key by key and with the most boxes, in turn, and Hopper's both.
def _paged(size: int, turn: int) -> list[AttnSpec]:
    specs = [*PORTABLE[turn::2], *HOPPER, *NAIVE[turn::2]]
    return [PagedSpec.with_pages(paged.fitted(spec), size) for spec in specs]


CACHED = _in_turn(map(CachedSpec.of, HOPPER))
PAGED = _in_turn([*_paged(1, 0), *_paged(8, 1)])

# Of sequences with numbers of rows of their own: each tile once, with and without pages in turn.
_ONE_OF = {
    (one.kernel, one.head_dim, one.value_dim, one.br, one.bc, one.warps, one.pack): one
    for one in table.rows()
    if one.serves_caches
}
RAGGED = _in_turn(
    RaggedSpec.of(spec if i % 2 else PagedSpec.with_pages(paged.fitted(spec), 16))
    for i, spec in enumerate((*_ONE_OF.values(), NAIVE[0]))
)


# Of e4m3 each tile once, in pages or not, or with rows of their own, in turn; Hopper's in two of the three ways.
# Converting takes the same instructions on all architectures.
def _e4m3() -> Iterator[Fp8Spec]:
    ways = [{"in_pages": False}, {"in_pages": True}, {"in_pages": True, "ragged": True}]
    for i, spec in enumerate((*_ONE_OF.values(), NAIVE[0])):
        for way in [ways[i % 3], ways[(i + 1) % 3]][: 2 if spec.kernel == "sm90" else 1]:
            yield Fp8Spec.of_e4m3(paged.for_e4m3(spec), **way)


FP8 = _in_turn(_e4m3(), 8)


@pytest.mark.parametrize("spec", [*TILES, *CACHED, *PAGED, *RAGGED, *FP8], ids=_name)
def test_compiles_without_a_spill(spec: KernelSpec) -> None:
    assert compiled_without_a_spill(spec)


@pytest.mark.parametrize("way", [TILES, CACHED, PAGED, RAGGED, FP8], ids=len)
def test_each_run_compiles_some_of_each_way(way: list[Any]) -> None:
    """Each way with the kernels and dtypes that it has."""
    for turn in every_turn(way):
        assert set(map(_numbers, of_turn(way, turn))) == {_numbers(one.values[0]) for one in way}


def test_each_run_compiles_e4m3_in_all_three_ways() -> None:
    for turn in every_turn(FP8):
        ways = {(spec.page, spec.ragged) for spec in of_turn(FP8, turn)}
        assert ways >= {(0, False), (1, False), (1, True)}


@pytest.mark.parametrize("arch", in_turn(archs.ARCHES, len(archs.ARCHES)))
def test_the_kernels_of_caches_compile_without_a_spill(arch: str) -> None:
    assert compiled_without_a_spill(PlanSpec(arch=arch))
    assert compiled_without_a_spill(PlanSpec(arch=arch, ragged=True))
    assert compiled_without_a_spill(AppendSpec(arch=arch))
    assert compiled_without_a_spill(ExchangeSpec(arch=arch))
    for dtype in ("float16", "bfloat16"):
        assert compiled_without_a_spill(Fp8AppendSpec(arch=arch, dtype=dtype))
        assert compiled_without_a_spill(ExchangeAddSpec(arch=arch, dtype=dtype))


# Pages beside three warpgroups of consumers, which leave no registers to spare.
IN_BOXES = _in_turn(
    [
        RaggedSpec.of(in_pages) if size in (8, 64) else in_pages
        for spec, size in zip((one for one in HOPPER if one.warps == 16), (8, 16, 64, 128), strict=True)
        for in_pages in [PagedSpec.with_pages(spec, size)]
    ],
    2,
)


@pytest.mark.parametrize("spec", IN_BOXES, ids=_name)
def test_pages_beside_three_warpgroups_compile_without_a_spill(spec: AttnSpec) -> None:
    assert spec.source == "attention_fwd_paged.cu"
    assert compiled_without_a_spill(spec)


@pytest.mark.parametrize(
    "spec", [*(one for one in TILES if one.values[0].kernel == "sm90"), *CACHED, *IN_BOXES], ids=_name
)
def test_hopper_code_is_known_to_be_uniform(spec: AttnSpec) -> None:
    """ptxas sees that a consumer's warps do not diverge. Where it does not, it makes them meet again before each
    shuffle and wgmma, and keeps one value a warp in registers of every thread: the kernel is right, and 7% slower.
    """
    found = set(opcodes(cache.cubin(spec).read_bytes(), spec.entry))
    assert 0x947 in found, "no branch: these are no opcodes"
    if spec.source == PACKED:  # since warps take turns at weighing, faster all the same (docs/tries.md)
        assert found & WARPSYNC, "mended: take this exception away, and say so in docs/tries.md"
    else:
        assert not found & WARPSYNC
