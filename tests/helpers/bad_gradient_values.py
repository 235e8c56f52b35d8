"""Values that only look right for arguments of attention_backward alone, as in bad_values.py."""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

import numpy as np
from bad_values import OWN_RULES, Bad, array

ROWS = np.zeros((1, 1, 4), np.float32)
CONVERT = "{name} must be a CuPy or NumPy array, got {got}; convert it with cupy.asarray or numpy.asarray"
OUT: list[Bad] = [*array("out"), (None, TypeError, CONVERT.replace("{got}", "NoneType"))]
LSE: list[Bad] = [
    (
        None,
        TypeError,
        "lse must be the second result of attention(..., return_lse=True), got None; call attention with return_lse=True and pass both results",
    ),
    (ROWS.tolist(), TypeError, CONVERT.replace("{got}", "list")),
    (1.0, TypeError, CONVERT.replace("{got}", "float")),
    (np.ma.masked_array(ROWS, False), TypeError, "{name} " + OWN_RULES),
]
WANTED: list[Bad] = [
    (
        v,
        TypeError,
        f'wanted must be a list or tuple of names among q, k, v, sink_logits, got {kind}; write for example ("q", "k", "v")',
    )
    for v, kind in (
        ("q", "str"),
        ("qkv", "str"),
        (None, "NoneType"),
        (True, "bool"),
        ({"q"}, "set"),
        ({"q": True}, "dict"),
        (np.array(["q"]), "numpy.ndarray"),
    )
]
WANTED += [
    (v, ValueError, f"wanted[0] must be one of q, k, v, sink_logits, got {v[0]!r}; name one of these")
    for v in (["dq"], ["Q"], [b"q"], [None], [0], [["q"]], ["qk"], [""])
]
WANTED += [
    (
        [],
        ValueError,
        "wanted must name at least one of q, k, v, sink_logits, got none; skip the call when it is empty",
    ),
    (
        ["sink_logits"],
        ValueError,
        "wanted must not name sink_logits where sink_logits is None; leave the name out, or pass what attention was called with",
    ),
    (["q", "k", "q"], ValueError, "wanted must name each gradient once, got 'q' twice; drop one"),
]
OUT_GRADS: list[Bad] = [
    (
        v,
        TypeError,
        f"out_grads must be None or a tuple of three, dq, dk and dv (each an array or None), got {kind}; write for example (dq, None, None)",
    )
    for v, kind in (
        (True, "bool"),
        (np.zeros((3, 1, 1, 4, 8), np.float32), "numpy.ndarray"),
        ({}, "dict"),
        ("qkv", "str"),
    )
]
OUT_GRADS += [
    (
        v,
        ValueError,
        f"out_grads must hold three, dq, dk and dv (each an array or None), got {len(v)}; give None where a new array is to be made",
    )
    for v in ((), (None,), [None] * 4)
]
OUT_GRADS += [
    (
        (None, False, None),
        TypeError,
        CONVERT.replace("{name}", "out_grads[1]").replace("{got}", "bool"),
    )
]
BACKWARD_CONFIG: list[Bad] = [
    (
        v,
        TypeError,
        f"config must be a BackwardSpec or None (chosen by the table), got {type(v).__name__}",
    )
    for v in ("sm80", {}, 3, False)
]
