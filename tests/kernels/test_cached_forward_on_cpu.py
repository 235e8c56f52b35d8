"""Forward kernels over the lists of the planner, all their own sources run on the CPU, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cached_cases
import cuda_on_cpu
import ml_dtypes
import numpy as np
import planned
import pytest
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.gpu.planning import score_fields
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference.attention import attention64
from omnicupy.schedule.cached_lists import CachedLists

pytestmark = [
    pytest.mark.in_turn(8, by=("built",)),
    pytest.mark.skipif(
        cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
    ),
]

Q_HEADS, KV_HEADS, HEAD_DIM = 4, 2, 40
BF16 = np.dtype(ml_dtypes.bfloat16)
SPECS = {
    "naive": AttnSpec(arch="sm_80", kernel="naive", dtype="bfloat16", head_dim=48, br=32, bc=64),
    "sm80": AttnSpec(arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=48, br=64, bc=64),
    "sm80-ring": AttnSpec(
        arch="sm_80", kernel="sm80", dtype="bfloat16", head_dim=48, br=32, bc=32, warps=2, stages=2
    ),
}
SPECS |= {f"{name}-capped": replace(SPECS[name], softcap=True) for name in ("naive", "sm80")}
SOFTCAP, SINKS = 3.0, (-np.inf, 0.0, 30.0, -2.0)
Array = NDArray[Any]


@pytest.fixture(scope="module", params=SPECS)
def built(request: pytest.FixtureRequest) -> tuple[AttnSpec, Any, Any]:
    spec = SPECS[request.param]
    library = cuda_on_cpu.build(spec)
    return spec, library, planned.build()


def _array(rng: np.random.Generator, heads: int, batch: int, tokens: int) -> Array:
    array = aligned((batch, tokens, heads, HEAD_DIM), BF16)
    array[...] = rng.standard_normal(array.shape)
    return array.transpose(0, 2, 1, 3)


def _run(spec: AttnSpec, library: Any, planner: Any, lists: CachedLists, arrays: dict[str, Array]) -> None:
    found = planned.run(planner, lists, arrays["lengths"])
    params = np.zeros((), PARAMS[spec.params])
    for name in ("row_offsets", "entries", "parts", "bit_tiles", "dead"):
        params[name] = found.buffer.ctypes.data + lists.offsets[name]
    for name in ("q", "k", "v", "out", "lse"):
        params[name] = arrays[name].ctypes.data
        if name != "lse":
            params[f"{name}_strides"] = [stride // 2 for stride in arrays[name].strides[:3]]
    sizes = {"q_len": lists.q_len, "k_len": lists.capacity, "head_dim": HEAD_DIM, "batch": lists.batch}
    sizes |= {"q_heads": Q_HEADS, "group": Q_HEADS // KV_HEADS, "q_blocks": lists.q_blocks}
    sizes |= {"mask_batch": lists.batch, "k_padded": lists.k_padded, "section": 2, "tiers": lists.rows}
    for name, value in sizes.items():
        params[name] = value
    for name, value in score_fields(HEAD_DIM**-0.5, SOFTCAP if spec.softcap else None).items():
        params[name] = value
    params["sink_logits"] = arrays["sink_logits"].ctypes.data if "sink_logits" in arrays else 0
    items = lists.rows * Q_HEADS if spec.kernel == "sm80" else lists.batch * Q_HEADS * lists.q_len
    reads = [arrays[name] for name in "qkv"]
    cuda_on_cpu.run(library, spec, params, (items, 1), reads, late=True)


CASES: dict[str, tuple[int, list[int], Any]] = {
    "one-row": (1, [0, 1, 64, 65, 200, 201, -1], lambda: oc.cached()),
    "window-and-sink": (1, [200, 130, 3], lambda: oc.cached(window=50, sink=4)),
    "chunk": (70, [200, 69, 70, 0, 133], lambda: oc.cached()),
    "chunk-in-window": (70, [200, 69, 1], lambda: oc.cached(window=33, sink=70)),
    "tree": (9, [200, 9, 5], lambda: oc.cached(window=90, tail=cached_cases.TAILS["random"](9))),
    "unseen": (9, [190, 8], lambda: oc.cached(tail=cached_cases.TAILS["unseen"](9))),
    "images": (70, [200, 70], lambda: oc.cached(window=150, tail=[oc.prefix(70, 40), oc.full(70)])),
}


@pytest.mark.parametrize("case", CASES)
def test_against_float64(case: str, built: tuple[AttnSpec, Any, Any]) -> None:
    spec, library, planner = built
    q_len, some, make = CASES[case]
    rule, batch, capacity = make(), len(some), 200
    lengths = np.array(some, np.int32)
    rng = np.random.default_rng(5)
    arrays: dict[str, Array] = {"q": _array(rng, Q_HEADS, batch, q_len), "lengths": lengths}
    arrays |= {name: _array(rng, KV_HEADS, batch, capacity) for name in "kv"}
    arrays["out"] = _array(rng, Q_HEADS, batch, q_len)
    arrays["out"].fill(np.nan)
    arrays["lse"] = np.full((batch, Q_HEADS, q_len), np.nan, np.float32)
    keys = np.where(lengths > capacity, 0, np.maximum(lengths, 0))
    dense = [cached_cases.dense(rule, int(n), q_len, capacity, b) for b, n in enumerate(keys)]
    masks, changes = [oc.from_dense(one) for one in dense], {}
    if spec.softcap:  # and sinks with it
        arrays["sink_logits"] = aligned(Q_HEADS, np.float32)
        arrays["sink_logits"][...] = SINKS
        changes = {"softcap": SOFTCAP, "sink_logits": arrays["sink_logits"]}
    wanted, lse = attention64(arrays["q"], arrays["k"], arrays["v"], masks, **changes)
    for b, visible in enumerate(dense):
        for name in "kv":
            arrays[name][b][:, ~visible.any(axis=0)] = np.nan
    lists = CachedLists(
        rule, batch, q_len, capacity, spec.br, spec.bc, Q_HEADS, 8, in_order=spec.kernel == "naive"
    )
    _run(spec, library, planner, lists, arrays)
    np.testing.assert_allclose(arrays["out"].astype(np.float64), wanted, atol=0.02, rtol=0.02)
    np.testing.assert_allclose(arrays["lse"], lse, atol=2e-3, rtol=2e-3)
