"""Which cases a complete verification of a kernel source holds, and their parts."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cache

from omnicupy.choose import pick
from omnicupy.jit.tile_checks import KEY_TURNS
from omnicupy.tools.verify import append_cases, serving_cases, serving_kernels
from omnicupy.tools.verify.backward_cases import BACKWARD_FIXED, BackwardCase, backward_sweep
from omnicupy.tools.verify.backward_special import CASES as BACKWARD_SPECIAL
from omnicupy.tools.verify.cached_cases import CASES as CACHED_CASES
from omnicupy.tools.verify.case_kernels import backward_variants, few_rows, few_rows_of_masks, of_rows, serves
from omnicupy.tools.verify.cases import FIXED, Case
from omnicupy.tools.verify.random_cases import DEFAULT, sweep
from omnicupy.tools.verify.source_digest import BACKWARD, FEW_ROWS, FORWARD, PACKED, PAGED, PLANNING, SOURCES
from omnicupy.tools.verify.special_cases import BIG
from omnicupy.tools.verify.special_cases import CASES as SPECIAL_CASES

ON_CACHES: tuple[Case, ...] = (*serving_cases.CASES, *append_cases.CASES)
BIG_IDS = frozenset(case.id for case in SPECIAL_CASES if case.tag in BIG)


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `count`: cases are dealt out by their ids, so that the parts take about as long.

    Those of caches run on more kernels than others and are few, so they are dealt out in turn.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that "2/4" names. Raises ValueError for any other text."""
        found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f'--part: expected i/n, from "1/n" to "n/n", got {text!r}')
        return cls(int(found[1]), int(found[2]))

    def __contains__(self, case: str) -> bool:
        """True for the id of a case of this part."""
        return _turn(case) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Part(1, 1)


def _turn(case: str) -> int:
    found = _turns().get(case)
    return zlib.crc32(case.encode()) if found is None else found


@cache
def _turns() -> dict[str, int]:
    """The turn of each case of caches, and of those whose masks the kernel for few rows reads: those of a group, with
    e4m3 and without, with few rows and with more, one behind the other in the order of a random number.
    """
    few = planned(FEW_ROWS)
    ordered = sorted(
        (*ON_CACHES, *CACHED_CASES, *(case for case in _by_masks() if case.id in few)),
        key=lambda case: (case.group, "e4m3" in case.tag, case.id in few, zlib.crc32(case.id.encode())),
    )
    return {case.id: turn for turn, case in enumerate(ordered)}


@cache
def every_case(random: int = DEFAULT) -> tuple[Case, ...]:
    """The cases of a run on a GPU, in the order in which it takes them; a complete one has `DEFAULT` random ones of
    each pass. Those of caches are first, as each runs on many kernels: a short run is then worth most.
    """
    forward = (*ON_CACHES, *FIXED, *SPECIAL_CASES, *CACHED_CASES, *sweep(random))
    return (*forward, *BACKWARD_FIXED, *BACKWARD_SPECIAL, *backward_sweep(random))


def planned(source: str) -> set[str]:
    """The ids of the cases that a complete run of a source holds."""
    of = SOURCES[source]
    if of.launch is BACKWARD:
        return set(_backward_plan().get(source, ()))
    if of.launch not in (FORWARD, PLANNING):
        appending = (case for case in append_cases.CASES if source in _sources_of_append(case))
        return {case.id for case in appending}
    if source == FEW_ROWS:
        of_serving = {case.id for case in serving_cases.CASES if serving_kernels.few_rows(case, "sm_90")}
        on_caches = of_serving | {case.id for case in CACHED_CASES if few_rows(case, "sm_90", e4m3=False)}
        return on_caches | {case.id for case in _by_masks() if few_rows_of_masks(case, "sm_90")}
    if source in (KEY_TURNS, PACKED, PAGED):
        return set(_of_rows(source))
    on_caches = {case.id for case in serving_cases.CASES if serving_kernels.counts_for(of.kernel, case)}
    if of.launch is PLANNING:
        return on_caches | {case.id for case in CACHED_CASES}
    others = (case for case in every_case()[len(ON_CACHES) :] if not isinstance(case, BackwardCase))
    return on_caches | {case.id for case in others if serves(of.kernel, case)}


def _by_masks() -> list[Case]:
    """The cases of the forward pass whose masks the host knows."""
    cached = {case.id for case in CACHED_CASES}
    others = (case for case in every_case()[len(ON_CACHES) :] if case.id not in cached)
    return [case for case in others if not isinstance(case, BackwardCase)]


@cache
def _of_rows(source: str) -> tuple[str, ...]:
    """The ids of the cases that run a kernel of a source by which tiles of the table go for some of their calls."""
    on_caches = [case.id for case in serving_cases.CASES if serving_kernels.runs(source, case)]
    others = (case for case in every_case()[len(ON_CACHES) :] if not isinstance(case, BackwardCase))
    cached = {case.id for case in CACHED_CASES}
    found = (
        case.id
        for case in others
        if any(spec.source == source for spec in of_rows(case, "sm_90", cached=case.id in cached))
    )
    return (*on_caches, *found)


def _sources_of_append(case: Case) -> set[str]:
    return {source for variant in append_cases.variants(case, "sm_90") for source in variant.sources}


@cache
@pick.serve_every_kernel()
def _backward_plan() -> dict[str, tuple[str, ...]]:
    """Backward source -> the ids of the cases that run a kernel of it, on a device that has kernels of all sources."""
    found: dict[str, list[str]] = {}
    for case in every_case():
        if isinstance(case, BackwardCase):
            for source in {name for variant in backward_variants(case, "sm_90") for name in variant.sources}:
                found.setdefault(source, []).append(case.id)
    return {source: tuple(ids) for source, ids in found.items()}
