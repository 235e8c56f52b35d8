"""Every row of the table compiles for every architecture it names: no spill, no warning, registers that fit.

Where a tile compiles in several ways they take turns here: `cli.py verify` compiles every row in both dtypes, and
--every-kernel those that are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import pytest
from cubin_code import WARPSYNC, compiled_without_a_spill, opcodes
from kernel_turns import in_turn, with_turn

from omnicupy.choose import paged, table
from omnicupy.jit import archs, cache
from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.exchange_spec import ExchangeSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PagedSpec
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


# Of keys in pages: kernels key by key and with the most boxes, in turn, and Hopper's both. One in two or three has its
# turn, and of Hopper's those that have none without pages.
def _paged(size: int, turn: int) -> list[Any]:
    def of(specs: list[AttnSpec], period: int) -> list[Any]:
        pages = (PagedSpec.with_pages(paged.fitted(spec, size), size) for spec in specs)
        return in_turn(pages, lambda i, _: i % period == (turn + period // 3) % period)

    return [*of(PORTABLE[turn::2], 2), *of(HOPPER, 3), *of(NAIVE[turn::2], 1)]


CACHED = in_turn(map(CachedSpec.of, HOPPER), lambda i, _: i % 3 == 0)
PAGED = [*_paged(1, 0), *_paged(8, 1)]

# Of sequences with numbers of rows of their own: each tile once, with and without pages in turn; of Hopper's every
# second has its turn.
_ONE_OF = {
    (one.kernel, one.head_dim, one.value_dim, one.br, one.bc, one.warps, one.pack): one
    for one in table.rows()
    if one.serves_caches
}
RAGGED = in_turn(
    (
        RaggedSpec.of(spec if i % 2 else PagedSpec.with_pages(paged.fitted(spec, 16), 16))
        for i, spec in enumerate((*_ONE_OF.values(), NAIVE[0]))
    ),
    lambda i, spec: spec.kernel != "sm90" or i % 4 in (0, 3),
)


# Of e4m3 each tile once, in pages or not, or with rows of their own, in turn; Hopper's in two of the three ways, of
# which one has its turn. Converting takes the same instructions on all architectures.
def _e4m3() -> list[Any]:
    ways = [{"in_pages": False}, {"in_pages": True}, {"in_pages": True, "ragged": True}]
    one_of: dict[AttnSpec, Fp8Spec] = {}
    specs = []
    for i, spec in enumerate((*_ONE_OF.values(), NAIVE[0])):
        tile = paged.for_e4m3(spec)
        for way in [ways[i % 3], ways[(i + 1) % 3]][: 2 if spec.kernel == "sm90" else 1]:
            specs.append(Fp8Spec.of_e4m3(tile, **way))
            one_of.setdefault(tile, specs[-1])
    first = set(one_of.values())
    return in_turn(specs, lambda _, spec: spec in first)


FP8 = _e4m3()


@pytest.mark.parametrize("spec", [*ROWS, *NAIVE, *CACHED, *PAGED, *RAGGED, *FP8], ids=_name)
def test_compiles_without_a_spill(spec: KernelSpec) -> None:
    assert compiled_without_a_spill(spec)


def test_each_run_compiles_some_of_each_way() -> None:
    """Each of Hopper's tiles in one of three ways of caches; each way with the kernels and dtypes that it has."""
    for way in (CACHED, PAGED, RAGGED, FP8):
        every = {(one.values[0].kernel, one.values[0].dtype) for one in way}
        assert {(spec.kernel, spec.dtype) for spec in with_turn(way)} == every
    of_caches = [spec for spec in with_turn([*CACHED, *PAGED]) if spec.kernel == "sm90"]
    assert len(of_caches) == len(HOPPER)
    assert {(spec.page, spec.ragged) for spec in with_turn(FP8)} >= {(0, False), (1, False), (1, True)}


@pytest.mark.parametrize("arch", archs.ARCHES)
def test_the_kernels_of_caches_compile_without_a_spill(arch: str) -> None:
    assert compiled_without_a_spill(PlanSpec(arch=arch))
    assert compiled_without_a_spill(PlanSpec(arch=arch, ragged=True))
    assert compiled_without_a_spill(AppendSpec(arch=arch))
    assert compiled_without_a_spill(ExchangeSpec(arch=arch))
    for dtype in ("float16", "bfloat16"):
        assert compiled_without_a_spill(Fp8AppendSpec(arch=arch, dtype=dtype))


# Pages beside three warpgroups of consumers, which leave no registers to spare.
IN_BOXES = [
    RaggedSpec.of(in_pages) if size in (8, 64) else in_pages
    for spec, size in zip((one for one in HOPPER if one.warps == 16), (8, 16, 64, 128), strict=True)
    for in_pages in [PagedSpec.with_pages(spec, size)]
]


@pytest.mark.parametrize("spec", IN_BOXES, ids=_name)
def test_pages_beside_three_warpgroups_compile_without_a_spill(spec: AttnSpec) -> None:
    assert spec.source == "attention_fwd_paged.cu"
    assert compiled_without_a_spill(spec)


@pytest.mark.parametrize(
    "spec", [*(spec for spec in ROWS if spec.kernel == "sm90"), *CACHED, *IN_BOXES], ids=_name
)
def test_hopper_code_is_known_to_be_uniform(spec: AttnSpec) -> None:
    """ptxas sees that a consumer's warps do not diverge. Where it does not, it makes them meet again before each
    shuffle and wgmma, and keeps one value a warp in registers of every thread: the kernel is right, and 7% slower.
    """
    found = set(opcodes(cache.cubin(spec).read_bytes(), spec.entry))
    assert 0x947 in found, "no branch: these are no opcodes"
    assert not found & WARPSYNC
