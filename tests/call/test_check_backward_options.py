"""Argument errors of attention_backward about wanted, out_grads and what follows: each bad call and its message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check_backward_calls import KV, backward_spec, call, gpu
from check_calls import host, ndarray, spec

COPY = "copy it with cupy.ascontiguousarray"
READ_ONLY = np.zeros(KV, np.float16)
READ_ONLY.flags.writeable = False
SHARED = host()

TABLE: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    # wanted
    (
        call,
        {"wanted": "qk"},
        TypeError,
        "wanted must be a list or tuple of names among q, k, v, sink_logits, got str; write for example "
        '("q", "k", "v")',
    ),
    (
        call,
        {"wanted": ("q", "dk")},
        ValueError,
        "wanted[1] must be one of q, k, v, sink_logits, got 'dk'; name one of these",
    ),
    (
        call,
        {"wanted": ["q", True]},
        ValueError,
        "wanted[1] must be one of q, k, v, sink_logits, got True; name one of these",
    ),
    (
        call,
        {"wanted": ("k", "v", "k")},
        ValueError,
        "wanted must name each gradient once, got 'k' twice; drop one",
    ),
    (
        call,
        {"wanted": ()},
        ValueError,
        "wanted must name at least one of q, k, v, sink_logits, got none; skip the call when it is empty",
    ),
    # out_grads
    (
        call,
        {"out_grads": host()},
        TypeError,
        "out_grads must be None or a tuple of three, dq, dk and dv (each an array or None), got numpy.ndarray; write "
        "for example (dq, None, None)",
    ),
    (
        call,
        {"out_grads": (host(), None)},
        ValueError,
        "out_grads must hold three, dq, dk and dv (each an array or None), got 2; give None where a new array is to "
        "be made",
    ),
    (
        call,
        {"out_grads": (1, None, None)},
        TypeError,
        "out_grads[0] must be a CuPy or NumPy array, got int; convert it with cupy.asarray or numpy.asarray",
    ),
    (
        call,
        {"out_grads": (None, host(), None)},
        ValueError,
        "out_grads[1] must have the shape of k (2, 2, 8, 16), got (2, 4, 8, 16)",
    ),
    (
        call,
        {"out_grads": (None, None, host(KV, np.float32))},
        TypeError,
        "out_grads[2] must have the dtype of v (float16), got float32",
    ),
    (
        call,
        {"out_grads": (None, READ_ONLY, None)},
        ValueError,
        "out_grads[1] must be writeable, got a read-only array; pass a copy",
    ),
    (
        call,
        {"out_grads": (host(), None, None), "wanted": ("k", "v")},
        ValueError,
        "out_grads[0] must be None, got numpy.ndarray: wanted leaves q out, so it would not be written; name it in "
        "wanted or pass None",
    ),
    (
        call,
        {"dout": SHARED, "out_grads": (SHARED[::-1], None, None)},
        ValueError,
        "out_grads[0] must not overlap dout: inputs are read while gradients are written; pass another array",
    ),
    (
        call,
        {"out_grads": (None, SHARED[:, :2], SHARED[:, 1:3])},
        ValueError,
        "out_grads[2] must not overlap out_grads[1]: inputs are read while gradients are written; pass another array",
    ),
    (
        call,
        {"out_grads": (None, np.lib.stride_tricks.as_strided(host(), KV, (0, 0, 32, 2)), None)},
        ValueError,
        "out_grads[1] must not repeat elements, got strides (0, 0, 32, 2) for shape (2, 2, 8, 16); pass a full array",
    ),
    (
        gpu,
        {"out_grads": (ndarray(strides=(1024, 256, 2, 16), ptr=1 << 30), None, None)},
        ValueError,
        f"out_grads[0] must have a contiguous last axis (a stride of 2 bytes), got 16; {COPY}",
    ),
    (
        gpu,
        {"out_grads": (host(), None, None)},
        TypeError,
        "out_grads[0] must be a CuPy array like q, got a NumPy array",
    ),
    # The rest
    (
        call,
        {"deterministic": None},
        TypeError,
        "attention_backward: deterministic must be True or False, got NoneType None; pass a bool",
    ),
    (
        call,
        {"sink_logits": host((4,))},
        TypeError,
        "sink_logits must be float32 where q is float16, got float16; cast it",
    ),
    (
        call,
        {"softcap": 0.0},
        ValueError,
        "softcap must be finite and above 0 in float32, and scale / softcap too, got 0.0 with scale 0.25; pass None "
        "for scores that are not capped",
    ),
    (
        gpu,
        {"config": backward_spec(softcap=True)},
        ValueError,
        "config must have softcap=False for a call without a softcap, got True; replace it with "
        "dataclasses.replace(config, softcap=False)",
    ),
    (
        gpu,
        {"config": backward_spec(), "softcap": 30.0},
        ValueError,
        "config must have softcap=True for a call with a softcap, got False; replace it with "
        "dataclasses.replace(config, softcap=True)",
    ),
    (
        gpu,
        {"config": spec()},
        TypeError,
        "config must be a BackwardSpec or None (chosen by the table), got omnicupy.AttnSpec",
    ),
    (
        call,
        {"config": backward_spec()},
        ValueError,
        "config must be None for NumPy arrays: it chooses a GPU kernel; pass CuPy arrays",
    ),
    (
        gpu,
        {"config": backward_spec(dtype="bfloat16")},
        ValueError,
        "config must have the dtype of q (float16), got bfloat16",
    ),
    (
        gpu,
        {"config": backward_spec(head_dim=32)},
        ValueError,
        "config must have head_dim 16 (that of q, 16, rounded up to 16), got 32",
    ),
]


@pytest.mark.parametrize(("good", "changed", "kind", "message"), TABLE, ids=range(len(TABLE)))
def test_bad_call(good: Any, changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        good(**changed)
    assert str(caught.value) == message
