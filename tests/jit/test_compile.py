"""Every row of the table compiles for every architecture it names: no spill, no warning, registers that fit."""

from __future__ import annotations

import pytest
from cubin_code import WARPSYNC, opcodes

from omnicupy.choose import paged, table
from omnicupy.jit import archs, cache
from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.spec import AttnSpec, KernelSpec

REGISTERS_A_MULTIPROCESSOR = 65536
NAIVE = [
    AttnSpec(arch=arch, kernel="naive", dtype=dtype, head_dim=128, br=64, bc=64)
    for arch in (archs.ARCHES[0], archs.ARCHES[-1])
    for dtype in ("float16", "bfloat16")
]


def _name(spec: AttnSpec) -> str:
    dtype = {"float16": "f16", "bfloat16": "bf16"}[spec.dtype]
    tile = f"{spec.br}x{spec.bc}-s{spec.stages}-w{spec.warps}{'-packed' * spec.pack}"
    tile += "-cached" * isinstance(spec, CachedSpec)
    tile += f"-page{spec.page}" if isinstance(spec, PagedSpec) else ""
    tile += "-e4m3" * isinstance(spec, Fp8Spec)
    return f"{spec.kernel}-{spec.arch}-{dtype}-d{spec.head_dim}-{tile}"


# Of calls on caches: the Hopper kernels once more.
CACHED = [CachedSpec.of(spec) for spec in table.rows() if spec.kernel == "sm90"]

# Of keys in pages: every kernel as it serves them, Hopper's with the most boxes.
PAGED = [PagedSpec.with_pages(paged.fitted(spec), 16) for spec in [*table.rows(), *NAIVE]]


# Of e4m3, in pages and not.
FP8 = [
    Fp8Spec.of_e4m3(paged.fitted(paged.for_e4m3(spec)), in_pages=in_pages)
    for spec in [*table.rows(), *NAIVE]
    for in_pages in (False, True)
]


@pytest.mark.parametrize(
    "spec", [*table.rows(), *NAIVE, *CACHED, *dict.fromkeys(PAGED), *dict.fromkeys(FP8)], ids=_name
)
def test_compiles_without_a_spill(spec: KernelSpec) -> None:
    _check(spec)


@pytest.mark.parametrize("arch", archs.ARCHES)
def test_the_kernels_of_caches_compile_without_a_spill(arch: str) -> None:
    _check(PlanSpec(arch=arch))
    _check(AppendSpec(arch=arch))
    for dtype in ("float16", "bfloat16"):
        _check(Fp8AppendSpec(arch=arch, dtype=dtype))


def _check(spec: KernelSpec) -> None:
    found = cache.entry(spec)
    assert found.registers > 0, found.log
    assert found.spill_bytes == 0, found.log
    assert found.warnings == (), found.log
    assert found.registers * spec.threads <= REGISTERS_A_MULTIPROCESSOR, found.log
    assert f"'{spec.entry}'" in found.log


@pytest.mark.parametrize(
    "spec", [*(spec for spec in table.rows() if spec.kernel == "sm90"), *CACHED], ids=_name
)
def test_hopper_code_is_known_to_be_uniform(spec: AttnSpec) -> None:
    """ptxas sees that a consumer's warps do not diverge. Where it does not, it makes them meet again before each
    shuffle and wgmma, and keeps one value a warp in registers of every thread: the kernel is right, and 7% slower.
    """
    found = set(opcodes(cache.cubin(spec).read_bytes(), spec.entry))
    assert 0x947 in found, "no branch: these are no opcodes"
    assert not found & WARPSYNC
