"""A stand-in GPU for tile searches: times of variants that are known, but noisy and drifting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnicupy.choose import variants
from omnicupy.jit.build import Compiled
from omnicupy.jit.spec import AttnSpec

SPECS = list(variants.every("sm_90", "bfloat16", 128, "sm90"))[:12]
BUILTIN = SPECS[5]


class Noisy:
    """Known times with noise and drift: spec -> milliseconds; everything else takes 2 ms."""

    def __init__(self, times: dict[AttnSpec, float], noise: float = 0.02, seed: int = 0) -> None:
        self.times, self.noise = times, noise
        self.draw = np.random.default_rng(seed)
        self.sampled: list[AttnSpec] = []
        self.wrong: dict[AttnSpec, float] = {}
        self.failing: set[AttnSpec] = set()

    def error(self, spec: AttnSpec) -> float:
        if spec in self.failing:
            raise ValueError("no such tile\nand more")
        return self.wrong.get(spec, 1.0)

    def sample(self, spec: AttnSpec) -> float:
        self.sampled.append(spec)
        drift = 1 + 0.1 * len(self.sampled) / 1000  # it gets hotter
        return self.times.get(spec, 2.0) * drift * (1 + self.noise * abs(self.draw.standard_normal()))


def clean(specs: Sequence[AttnSpec], _: Any) -> list[Compiled]:
    return [Compiled(spec, 100, "") for spec in specs]
