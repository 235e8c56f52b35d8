"""Which compiled kernels a case of serving_cases.py runs through, and which kernel sources it counts for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from omnicupy.choose import paged, pick
from omnicupy.choose.capped import capped
from omnicupy.gpu import pages
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.spec import AttnSpec, KernelSpec
from omnicupy.serving.caches import AnyKV, CachedKV, PagedKV
from omnicupy.tools.random_arrays import DTYPES
from omnicupy.tools.verify import case_kernels
from omnicupy.tools.verify.case_kernels import DEFAULT, Variant, ladder, problem_of, tile_name
from omnicupy.tools.verify.cases import Case
from omnicupy.tools.verify.serving_cases import KINDS
from omnicupy.tools.verify.serving_kinds import Kind


def variants(case: Case, arch: str, sm_count: int) -> list[Variant]:
    """Every kernel for the case: naive, every row of the table that serves it, as it reads such caches, and the
    default.
    """
    problem, kind = problem_of(case), KINDS[case.tag]
    naive = next(spec for name, spec in ladder(case, arch) if name == "naive")
    specs = {_fitted(capped(naive) if problem.softcap else naive, kind): "naive"}
    for spec in _of_rows(case, arch):
        specs.setdefault(spec, tile_name(spec))
    specs |= {few: case_kernels.few_rows_name(few) for few in few_rows(case, arch)}
    found = [Variant(name, spec, compiled=_compiled(spec, case, arch)) for spec, name in specs.items()]
    split = case.split or None
    chosen = pick.pick(arch, problem, case.masks(), sm_count, split=split, cached=True)
    if kind.scales:
        chosen = paged.for_e4m3(chosen, problem, sm_count, split)
    else:
        chosen = paged.for_16_bits(_fitted(chosen, kind), problem, sm_count, split)
    found.append(Variant(DEFAULT, chosen, explicit=False, compiled=_compiled(chosen, case, arch)))
    ordered = sorted(found, key=lambda one: (one.name != "naive", not one.explicit, one.name))
    return [one for one in ordered if isinstance(one.spec, AttnSpec) and _serves(one.spec, case)]


def _of_rows(case: Case, arch: str) -> Iterator[AttnSpec]:
    """The tiles of the table that serve the case, as such caches have them."""
    return (_fitted(spec, KINDS[case.tag]) for spec in case_kernels.of_rows(case, arch, cached=True))


def runs(source: str, case: Case) -> bool:
    """Does a tile of the table that serves the case run a kernel of this source?"""
    tiles = (spec for spec in _of_rows(case, "sm_90") if _serves(spec, case))
    return any(source == one.source for spec in tiles for one in _compiled(spec, case, "sm_90"))


def few_rows(case: Case, arch: str) -> tuple[FewRowsSpec, ...]:
    """The variants of the kernel for few rows that serve the case."""
    return case_kernels.few_rows(case, arch, e4m3=bool(KINDS[case.tag].scales))


def counts_for(source_kernel: str, case: Case) -> bool:
    """Does a case run a kernel of the source that has this `kernel`, on a device that has kernels of all sources?"""
    return source_kernel in ("sm90", "plan") or not _only_packed(case)


def _serves(spec: AttnSpec, case: Case) -> bool:
    return spec.pack or not _only_packed(case)


def _only_packed(case: Case) -> bool:
    """Rows of their own are split where heads are packed, which others refuse."""
    return KINDS[case.tag].rows and case.split > 0


def _fitted(spec: AttnSpec, kind: Kind) -> AttnSpec:
    """The variant that takes a row's place on such caches."""
    if kind.scales:
        return paged.for_e4m3(spec)
    return paged.fitted(spec) if kind.page_size else spec


def _compiled(spec: AttnSpec, case: Case, arch: str) -> tuple[KernelSpec, ...]:
    """What a call on such caches runs, and one on the same keys as plain caches."""
    kind = KINDS[case.tag]
    on_plain, on_these = (
        pages.spec_of(spec, _stand_in(*of), ragged=kind.rows)
        for of in ((0, False, case.dtype), (kind.page_size, bool(kind.scales), case.dtype))
    )
    return tuple(dict.fromkeys((PlanSpec(arch=arch, ragged=kind.rows), on_these, on_plain)))


@cache
def _stand_in(page_size: int, e4m3: bool, dtype: str) -> AnyKV:
    """Caches of one key that is never read: what kernels depend on."""
    k = np.empty((1, page_size or 1, 1, 16), np.uint8 if e4m3 else DTYPES[dtype])
    scales = {"k_scale": 1.0, "v_scale": 1.0} if e4m3 else {}
    lengths = np.zeros(1, np.int32)
    return PagedKV(k, k, lengths[None], lengths, **scales) if page_size else CachedKV(k, k, lengths, **scales)
