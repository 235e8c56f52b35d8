"""The search for calls on a CachedKV or a PagedKV: what is tried, and on what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omnicupy.api import attention
from omnicupy.call.problem import Problem
from omnicupy.choose import paged, pick, variants
from omnicupy.jit.build import Compiled, Track, compile_all
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.constructors import causal
from omnicupy.masks.mask import Mask
from omnicupy.reference import checked_rows
from omnicupy.serving.caches import AnyKV, CachedKV
from omnicupy.serving.rule import cached
from omnicupy.tools.bench import measure, pages, timing
from omnicupy.tools.workloads.workload import Workload


@dataclass(frozen=True)
class Cache:
    """Where keys and values are. page: keys of a page, None where they are not in pages."""

    page: int | None = None

    @property
    def kind(self) -> str:
        """As ProblemClass has it."""
        return paged.kind_of(self.page)

    def check(self, workload: Workload, mask: Mask) -> None:
        """Raises ValueError for a workload that no cached() rule is, and for keys that pages do not divide."""
        if mask != causal(*mask.shape):
            raise ValueError(
                f"tune: --cache is for the last rows of sequences, causal, got {workload.name}; take a mask like "
                "decode-d128-s8192-q4"
            )
        if self.page is not None and mask.shape[1] % self.page:
            raise ValueError(f"tune: pages of {self.page} tokens do not divide {mask.shape[1]} keys")

    def builtin(self, arch: str, problem: Problem, mask: Mask, sm_count: int) -> AttnSpec:
        """The table's choice, or what takes its place."""
        found = pick.pick(arch, problem, (mask,), sm_count, cached=True)
        found = found if self.page is None else paged.fitted(found)
        return paged.for_16_bits(found, problem, sm_count)

    def serves(self, spec: AttnSpec) -> bool:
        """Can the variant read it?"""
        return self.page is None or paged.fitted(spec) == spec

    def compile_specs(self, specs: Sequence[AttnSpec], track: Track) -> list[Compiled[AttnSpec]]:
        """compile_all of the kernels that calls run."""
        made = {self._compiled(spec): spec for spec in specs}
        return [replace(one, spec=made[one.spec]) for one in compile_all(list(made), track)]

    def _compiled(self, spec: AttnSpec) -> AttnSpec:
        if isinstance(spec, FewRowsSpec):
            return spec.for_caches(e4m3=False, in_pages=self.page is not None, ragged=False)
        return CachedSpec.of(spec) if self.page is None else PagedSpec.with_pages(spec, self.page)


class CacheTrial:
    """A workload's inputs on the current GPU, its keys in a full cache, as search.Trial. step: told of each variant
    before it runs.
    """

    def __init__(
        self, workload: Workload, mask: Mask, dtype: str, step: Callable[[str], None], cache: Cache
    ) -> None:
        import cupy

        self._q, k, v = measure.make_inputs(workload, mask, dtype)
        self._judge = checked_rows.CheckedRows((self._q, k, v), mask)
        lengths = cupy.full(workload.batch, mask.shape[1], np.int32)
        self._kv: AnyKV = CachedKV(k, v, lengths)
        if cache.page is not None:
            self._kv = pages.in_pages(k, v, lengths, cache.page)
        self._clock = timing.Clock(cupy)
        self._step = step

    def error(self, spec: AttnSpec) -> float:
        """The largest error of checked rows over that of the same-precision reference."""
        return self._judge.error(self._call(spec))

    def sample(self, spec: AttnSpec) -> float:
        """Milliseconds of one call with its planner, from a cold L2 cache."""
        return self._clock.sample(lambda: self._call(spec))

    def _call(self, spec: AttnSpec) -> Any:
        self._step(variants.word(spec))
        return attention(self._q, self._kv, mask=cached(), config=spec)
