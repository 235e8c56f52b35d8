"""Which cases a complete verification of a kernel source holds, and their parts."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cache

from omnicupy.choose import pick
from omnicupy.tools.verify.backward_cases import BACKWARD_FIXED, BackwardCase, backward_sweep
from omnicupy.tools.verify.backward_special import CASES as BACKWARD_SPECIAL
from omnicupy.tools.verify.cached_cases import CASES as CACHED_CASES
from omnicupy.tools.verify.case_kernels import backward_variants, serves
from omnicupy.tools.verify.cases import FIXED, Case
from omnicupy.tools.verify.random_cases import DEFAULT, sweep
from omnicupy.tools.verify.source_digest import BACKWARD, SOURCES
from omnicupy.tools.verify.special_cases import CASES as SPECIAL_CASES


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `count`: cases are dealt out by their ids, so that the parts take about as long."""

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
        return zlib.crc32(case.encode()) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Part(1, 1)


@cache
def every_case(random: int = DEFAULT) -> tuple[Case, ...]:
    """The cases of a run on a GPU, in the order in which it takes them; a complete one has `DEFAULT` random ones of
    each pass.
    """
    forward = (*FIXED, *SPECIAL_CASES, *CACHED_CASES, *sweep(random))
    return (*forward, *BACKWARD_FIXED, *BACKWARD_SPECIAL, *backward_sweep(random))


def planned(source: str) -> set[str]:
    """The ids of the cases that a complete run of a source holds."""
    of = SOURCES[source]
    if of.launch is BACKWARD:
        return set(_backward_plan().get(source, ()))
    forward = (case for case in every_case() if not isinstance(case, BackwardCase))
    return {case.id for case in forward if serves(of.kernel, case)}


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
