"""Values that only look right for sink_logits and softcap, as in bad_values.py."""

from __future__ import annotations

import math

import numpy as np
from bad_values import Bad, array


def sink_logits() -> list[Bad]:
    wrong: list[Bad] = [one for one in array("sink_logits") if one[0] is not None]
    wrong += [
        (
            np.zeros(shape, np.float32),
            ValueError,
            f"sink_logits must have the shape (q heads,) = (1,), got {shape}; pass one logit a query head",
        )
        for shape in ((), (0,), (2,), (1, 1))
    ]
    wrong += [
        (
            np.zeros(1, dtype),
            TypeError,
            f"sink_logits must be float32 where q is float32, got {dtype}; cast it",
        )
        for dtype in ("float64", "float16", "int32", "bool")
    ]
    return wrong + [
        (
            np.array([v], np.float32),
            ValueError,
            f"sink_logits must hold numbers below infinity, got {v}; pass -inf for a head without a sink",
        )
        for v in (np.inf, np.nan)
    ]


def softcap() -> list[Bad]:
    limits = (
        "softcap must be finite and above 0 in float32, and scale / softcap too, got {got} with scale "
        f"{1 / math.sqrt(8)}; pass None for scores that are not capped"
    )
    values = (0, 0.0, -1.0, np.float32("inf"), np.float16("nan"), 1e39, 3e38, 1e-40, 1e38, 10**400)
    wrong: list[Bad] = [(v, ValueError, limits.replace("{got}", f"{v}")) for v in values]
    kinds = "softcap must be a number or None (scores are not capped), got {got}; pass float(softcap)"
    types = (
        ("50", "str"),
        (True, "bool"),
        (False, "bool"),
        (1j, "complex"),
        ([50.0], "list"),
        (np.array(50.0), "numpy.ndarray"),
    )
    return wrong + [(v, TypeError, kinds.replace("{got}", name)) for v, name in types]  # fmt: skip
