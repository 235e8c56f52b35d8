"""The forward kernels' own sources with sink logits and soft caps, run on the CPU over the lists that a GPU gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_on_cpu
import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.choose import variants
from omnicupy.gpu.planning import score_fields
from omnicupy.jit.params import ATTN_PARAMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.reference import budget
from omnicupy.schedule.block_lists import block_lists
from omnicupy.schedule.parts import Workers

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)

BATCH, Q_HEADS, KV_HEADS, Q_LEN, K_LEN = 1, 4, 2, 90, 150
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
LISTS = ("row_offsets", "entries", "parts", "bit_tiles", "spans", "dead")
SINKS = (-np.inf, 0.0, 3.0, 40.0)
# (variant, dtype, head_dim of the tensors)
SPECS = [
    ("naive", "bfloat16", 56),
    ("sm80-64x64-s1-w4", "bfloat16", 56),
    ("sm80-64x32-s2-w4", "float16", 128),
    ("sm80-64x64-s1-w4-shared", "float16", 32),
    ("sm80-64x64-s2-w4", "bfloat16", 264),
]
# softcap, factor of q, sinks: caps far above scores take the polynomial alone, the others both ways.
CHANGES: dict[str, tuple[float | None, float, bool]] = {
    "none": (None, 1.0, False),
    "sinks": (None, 1.0, True),
    "cap": (50.0, 1.0, False),
    "cap-of-large-scores": (20.0, 8.0, False),
    "both": (2.0, 4.0, True),
}

Array = NDArray[Any]


def _mask() -> oc.Mask:
    """Row 70 sees nothing, and nothing sees keys 60 to 63."""
    visible = np.random.default_rng(1).random((Q_LEN, K_LEN)) < 0.4
    visible[:20] = True
    visible[70], visible[:, 60:64] = False, False
    return oc.from_dense(visible)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[AttnSpec], Any]:
    built: dict[AttnSpec, Any] = {}

    def library(spec: AttnSpec) -> Any:
        if spec not in built:
            folder: Path = tmp_path_factory.mktemp(spec.kernel)
            built[spec] = cuda_on_cpu.build(spec, folder)
        return built[spec]

    return library


def _arrays(dtype: str, head_dim: int, factor: float) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    found = {}
    for name, heads, tokens in (("q", Q_HEADS, Q_LEN), ("k", KV_HEADS, K_LEN), ("v", KV_HEADS, K_LEN)):
        found[name] = aligned((BATCH, heads, tokens, head_dim), DTYPES[dtype])
        found[name][...] = (factor if name == "q" else 1) * rng.standard_normal(found[name].shape)
    found["k"][:, :, 60:64] = found["v"][:, :, 60:64] = np.nan
    return found


def _run(
    spec: AttnSpec, arrays: dict[str, Array], mask: oc.Mask, softcap: float | None, library: Any
) -> None:
    """Fills arrays["out"] and arrays["lse"]."""
    lists = block_lists([mask.blocks(spec.br, spec.bc)], Workers(Q_HEADS * BATCH, 132))
    places = dict(arrays)
    for name in LISTS:
        if name in lists.shapes and lists.array(name).size:
            places[name] = aligned(lists.array(name).shape, lists.array(name).dtype)
            places[name][...] = lists.array(name)
    params = np.zeros((), ATTN_PARAMS)
    for name, array in places.items():
        params[name] = array.ctypes.data
        if f"{name}_strides" in (params.dtype.names or ()):
            params[f"{name}_strides"] = [stride // array.itemsize for stride in array.strides[:3]]
    head_dim = arrays["q"].shape[3]
    values: dict[str, Any] = {"q_len": Q_LEN, "k_len": K_LEN, "head_dim": head_dim, "batch": BATCH}
    values |= {"q_heads": Q_HEADS, "group": Q_HEADS // KV_HEADS, "section": 4, "tiers": lists.tiers}
    values |= score_fields(head_dim**-0.5, softcap)
    for name in ("q_blocks", "mask_batch", "diagonal", "n_spans", "k_padded"):
        values[name] = getattr(lists, name)
    for name, value in values.items():
        params[name] = value
    rows = Q_LEN * Q_HEADS * BATCH
    items = rows if spec.kernel == "naive" else lists.n_parts * Q_HEADS * BATCH
    reads = [arrays[name] for name in ("q", "k", "v")]
    reads += [places[name] for name in ("spans",) if name in places]
    cuda_on_cpu.run(library, spec, params, (items, spec.value_pieces), reads, late=False)


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("which", SPECS, ids=lambda which: "-".join(map(str, which)))
def test_both_results(
    which: tuple[str, str, int], changes: str, libraries: Callable[[AttnSpec], Any]
) -> None:
    word, dtype, head_dim = which
    softcap, factor, with_sinks = CHANGES[changes]
    spec = replace(variants.parse(word, "sm_80", dtype, head_dim), softcap=softcap is not None)
    mask, arrays = _mask(), _arrays(dtype, head_dim, factor)
    sinks = np.array(SINKS, np.float32) if with_sinks else None
    inputs = [arrays[name] for name in ("q", "k", "v")]
    arrays["out"] = aligned(arrays["q"].shape, DTYPES[dtype])
    arrays["lse"] = aligned((BATCH, Q_HEADS, Q_LEN), np.float32)
    arrays["out"].fill(np.nan)
    arrays["lse"].fill(np.nan)
    if sinks is not None:
        arrays["sink_logits"] = aligned(sinks.shape, np.float32)
        arrays["sink_logits"][...] = sinks
    _run(spec, arrays, mask, softcap, libraries(spec))
    expected = budget.budget(*inputs, mask, sink_logits=sinks, softcap=softcap)
    found = budget.compare(arrays["out"], arrays["lse"], expected)
    assert found.ok, str(found)
    assert (arrays["out"][:, :, 70] == 0).all()
    assert (arrays["lse"][:, :, 70] == -np.inf).all()
