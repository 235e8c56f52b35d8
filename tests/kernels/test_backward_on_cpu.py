"""The backward kernels' own sources, run on the CPU over the lists that a GPU gets, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cuda_on_cpu
import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import aligned
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.choose import backward_table
from omnicupy.gpu.planning import score_fields
from omnicupy.jit.backward_spec import BackwardKernel, BackwardSpec, padded_rows
from omnicupy.jit.params import BACKWARD_PARAMS
from omnicupy.schedule.block_lists import BlockLists, block_lists
from omnicupy.schedule.key_lists import key_lists
from omnicupy.schedule.parts import Workers

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=f"no kernels on this CPU: {cuda_on_cpu.missing()}"
)

BATCH, Q_HEADS, KV_HEADS, Q_LEN, K_LEN = 2, 4, 2, 150, 203
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Relative error of a gradient, and of its worst row: what rounding P, dS and the result leaves, and half of it more.
ERROR = {"float16": (4.5e-4, 1.2e-3), "bfloat16": (3.5e-3, 9e-3)}
LISTS = ("row_offsets", "entries", "parts", "bit_tiles", "spans", "dead", "dead_rows")

Array = NDArray[Any]


def _spec(kernel: str, arch: str, dtype: str, head_dim: int) -> BackwardSpec:
    if kernel == "naive":
        return backward_table.naive(arch, dtype, head_dim)
    padded = -(-head_dim // 16) * 16
    row = next(r for r in backward_table.TABLE if r.kernel == kernel and r.serves(arch, padded))
    return row.spec(arch, dtype, padded)


# (kernel, arch, dtype, head_dim of the tensors)
SPECS = [
    ("naive", "sm_80", "bfloat16", 56),
    ("sm80", "sm_80", "bfloat16", 56),
    ("sm80", "sm_80", "float16", 128),
    ("sm80", "sm_89", "float16", 40),
    ("sm80", "sm_89", "bfloat16", 120),
    ("sm80", "sm_80", "bfloat16", 136),
    ("sm80", "sm_80", "float16", 264),
]


def _scattered(seed: int) -> oc.Mask:
    """Bits; rows 40 to 99 see nothing, and nothing sees keys 70 to 139."""
    visible = np.random.default_rng(seed).random((Q_LEN, K_LEN)) < 0.3
    visible[40:100] = False
    visible[:, 70:140] = False
    return oc.from_dense(visible)


def _documents() -> oc.Mask:
    """Runs of rows, and keys from 180 on that nothing sees."""
    visible = np.zeros((Q_LEN, K_LEN), bool)
    visible[:64, :100] = True
    visible[70:, 90:180] = True
    return oc.from_dense(visible)


MASKS: dict[str, Callable[[], list[oc.Mask]]] = {
    "causal": lambda: [oc.causal(Q_LEN, K_LEN)],
    "one-a-batch-element": lambda: [_scattered(1), _documents()],
    "full": lambda: [oc.full(Q_LEN, K_LEN)],
}


@dataclass(frozen=True)
class Problem:
    """A call: 16-bit arrays (B, H, S, D), the masks, what changes scores, and what a forward pass leaves."""

    dtype: str
    head_dim: int
    masks: list[oc.Mask]
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None

    def changes(self, dtype: Any) -> dict[str, Any]:
        return {
            "softcap": self.softcap,
            "sink_logits": None if self.sinks is None else np.array(self.sinks, dtype),
        }

    @cached_property
    def arrays(self) -> dict[str, Array]:
        rng = np.random.default_rng(7)

        def made(heads: int, tokens: int) -> Array:
            array = aligned((BATCH, tokens, heads, self.head_dim), DTYPES[self.dtype])
            array[...] = rng.standard_normal(array.shape)
            return array.transpose(0, 2, 1, 3)  # as a model has them

        arrays = {
            "q": made(Q_HEADS, Q_LEN),
            "k": made(KV_HEADS, K_LEN),
            "v": made(KV_HEADS, K_LEN),
            # Steps of no kind that a kernel could copy in 16 bytes.
            "dout": made(Q_HEADS, Q_LEN)[..., ::-1],
            "out": made(Q_HEADS, Q_LEN),
            "dlse": rng.standard_normal((BATCH, Q_HEADS, Q_LEN)).astype(np.float32),
        }
        wide = {name: arrays[name].astype(np.float64) for name in "qkv"}
        out, lse = oc.attention(*wide.values(), self.mask, return_lse=True, **self.changes(np.float64))
        arrays["out"][...] = out
        arrays["lse"] = lse.astype(np.float32)
        return arrays

    @property
    def mask(self) -> Any:
        return self.masks[0] if len(self.masks) == 1 else self.masks

    @cached_property
    def gradients(self) -> dict[str, Array]:
        """In float64, of the same values."""
        wide = {name: array.astype(np.float64) for name, array in self.arrays.items()}
        inputs = (wide[name] for name in ("dout", "q", "k", "v", "out", "lse"))
        wanted = ("q", "k", "v") + (() if self.sinks is None else ("sink_logits",))
        changes = self.changes(np.float64)
        found = oc.attention_backward(*inputs, self.mask, dlse=wide["dlse"], wanted=wanted, **changes)
        return {f"d{name}": one for name, one in zip(wanted, found, strict=True)}

    def poison(self) -> None:
        """NaN wherever no pair reads."""
        for element in range(BATCH):
            visible = self.masks[element % len(self.masks)].to_dense()
            for name in ("q", "dout", "out", "dlse"):
                self.arrays[name][element][:, ~visible.any(axis=1)] = np.nan
            for name in "kv":
                self.arrays[name][element][:, ~visible.any(axis=0)] = np.nan


def _lists(problem: Problem, part: BackwardKernel) -> BlockLists:
    heads = Q_HEADS if part.part == "dq" else KV_HEADS
    blocks = [mask.blocks(part.br, part.bc) for mask in problem.masks]
    make = block_lists if part.part == "dq" else key_lists
    return make(blocks, Workers(heads * BATCH // len(blocks), 132))


def _params(problem: Problem, lists: BlockLists, arrays: dict[str, Array]) -> tuple[NDArray[np.void], Any]:
    """The struct, and what it points to. arrays: those that it names, and strides of theirs that it has."""
    params = np.zeros((), BACKWARD_PARAMS)
    names = params.dtype.names or ()
    places: dict[str, Array] = dict(arrays)
    for name in LISTS:
        if name in lists.shapes and lists.array(name).size:
            places[name] = aligned(lists.array(name).shape, lists.array(name).dtype)
            places[name][...] = lists.array(name)
    for name, array in places.items():
        params[name] = array.ctypes.data
        if f"{name}_strides" in names:
            params[f"{name}_strides"] = [stride // array.itemsize for stride in array.strides[:3]]
    params["dout_column"] = arrays["dout"].strides[3] // 2
    params["scale"] = problem.head_dim**-0.5
    fields = score_fields(problem.head_dim**-0.5, problem.softcap)
    params["scale_log2"], params["tanh_scale"] = fields["scale_log2"], fields["tanh_scale"]
    sizes = {"q_len": Q_LEN, "k_len": K_LEN, "head_dim": problem.head_dim, "batch": BATCH, "q_heads": Q_HEADS}
    sizes |= {
        "kv_heads": KV_HEADS,
        "group": Q_HEADS // KV_HEADS,
        "q_padded": padded_rows(Q_LEN),
        "section": 3,
    }
    sizes |= {
        name: getattr(lists, name) for name in ("q_blocks", "mask_batch", "diagonal", "n_spans", "k_padded")
    }
    for name, value in sizes.items():
        params[name] = value
    params["tiers"] = lists.tiers
    return params, places


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[BackwardKernel], Any]:
    built: dict[BackwardKernel, Any] = {}

    def library(kernel: BackwardKernel) -> Any:
        if kernel not in built:
            folder: Path = tmp_path_factory.mktemp(kernel.part)
            built[kernel] = cuda_on_cpu.build(kernel, folder)
        return built[kernel]

    return library


def _prepare(
    problem: Problem, spec: BackwardSpec, library: Callable[[BackwardKernel], Any]
) -> dict[str, Array]:
    """lse2, delta and compact copies of all four arrays, every byte poisoned before."""
    part = spec.part("prepare")
    lists = _lists(problem, spec.part("dkdv"))
    made = {name: aligned((BATCH, Q_HEADS, padded_rows(Q_LEN)), np.float32) for name in ("lse2", "delta")}
    for name in ("q", "dout", "k", "v"):
        made[f"{name}_copy"] = aligned(problem.arrays[name].shape, DTYPES[problem.dtype])
    rows = part.prepared_rows
    of_queries = BATCH * Q_HEADS * -(-padded_rows(Q_LEN) // rows)
    arrays = dict(problem.arrays)
    if problem.sinks is not None:
        arrays["sink_logits"] = np.array(problem.sinks, np.float32)
        made["sink_sums"] = aligned((of_queries,), np.float32)
    for array in made.values():
        array.fill(np.nan)
    params, held = _params(problem, lists, {**arrays, **made})
    blocks = of_queries + BATCH * KV_HEADS * -(-K_LEN // rows)
    cuda_on_cpu.run(library(part), part, params, (blocks, 1), (), late=False)
    assert held
    if problem.sinks is not None:
        made |= _add_sinks(problem, spec, lists, {**arrays, **made}, library)
    return made


def _add_sinks(
    problem: Problem, spec: BackwardSpec, lists: BlockLists, arrays: dict[str, Array], library: Any
) -> dict[str, Array]:
    """The gradient of sink_logits, by the kernel that adds up what the other one left."""
    part, found = spec.part("sinks"), aligned((Q_HEADS,), np.float32)
    found.fill(np.nan)
    params, held = _params(problem, lists, {**arrays, "dsink_logits": found})
    cuda_on_cpu.run(library(part), part, params, (Q_HEADS, 1), (), late=False)
    assert held
    return {"dsink_logits": found}


def _run(problem: Problem, part: BackwardKernel, made: dict[str, Array], library: Any) -> dict[str, Array]:
    """The gradients that a kernel makes of the copies."""
    lists = _lists(problem, part)
    inputs = {name: made[f"{name}_copy"] for name in ("q", "k", "v", "dout")}
    inputs |= {name: made[name] for name in ("lse2", "delta")}
    names = ("dq",) if part.part == "dq" else ("dk", "dv")
    gradients = {name: aligned(problem.gradients[name].shape, DTYPES[problem.dtype]) for name in names}
    for array in gradients.values():
        array.fill(np.nan)
    params, held = _params(problem, lists, {**inputs, **gradients})
    tokens, heads = (Q_LEN, Q_HEADS) if part.part == "dq" else (K_LEN, KV_HEADS)
    items = BATCH * heads * tokens
    if part.kernel != "naive":
        items = lists.n_parts * heads * BATCH // len(problem.masks)
    cuda_on_cpu.run(
        library, part, params, (items, part.column_blocks), [*inputs.values()], late=part.part == "dq"
    )
    assert held
    return gradients


# Caps far above scores, which take the polynomial alone, and in their midst; a head without a sink, and sinks small and
# large.
CHANGES: dict[str, dict[str, Any]] = {
    "cap": {"softcap": 30.0},
    "low-cap": {"softcap": 0.8},
    "sinks": {"sinks": (-np.inf, 0.0, 2.0, 4.0)},
    "both": {"softcap": 1.5, "sinks": (-np.inf, 0.0, 2.0, 4.0)},
}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize(
    "which", [SPECS[0], SPECS[1], SPECS[2], SPECS[6]], ids=lambda which: "-".join(map(str, which))
)
def test_gradients_of_changed_scores(
    which: tuple[str, str, str, int], changes: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    spec = replace(_spec(*which), softcap="softcap" in CHANGES[changes])
    _compare(
        spec, Problem(spec.dtype, which[3], MASKS["one-a-batch-element"](), **CHANGES[changes]), libraries
    )


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("which", SPECS, ids=lambda which: "-".join(map(str, which)))
def test_gradients(
    which: tuple[str, str, str, int], masks: str, libraries: Callable[[BackwardKernel], Any]
) -> None:
    spec = _spec(*which)
    _compare(spec, Problem(spec.dtype, which[3], MASKS[masks]()), libraries)


def _compare(spec: BackwardSpec, problem: Problem, libraries: Callable[[BackwardKernel], Any]) -> None:
    wanted = problem.gradients
    problem.poison()
    made = _prepare(problem, spec, libraries)
    assert np.isposinf(made["lse2"][..., Q_LEN:]).all()
    assert not made["delta"][..., Q_LEN:].any()
    if problem.sinks is not None:
        np.testing.assert_allclose(made["dsink_logits"], wanted["dsink_logits"], rtol=1e-5, atol=1e-5)
        assert made["dsink_logits"][0] == 0
    for part in ("dkdv", "dq"):
        kernel = spec.part(part)
        for name, found in _run(problem, kernel, made, libraries(kernel)).items():
            exact = wanted[name]
            off = found.astype(np.float64) - exact
            of_all, of_row = ERROR[spec.dtype]
            assert np.linalg.norm(off) <= of_all * np.linalg.norm(exact), name
            size = np.linalg.norm(exact, axis=-1)
            least = 0.3 * np.sqrt(
                np.mean(size**2)
            )  # a row of small gradients has the rounding of its neighbours
            assert (np.linalg.norm(off, axis=-1) <= of_row * np.maximum(size, least)).all(), name
            nothing = ~exact.any(axis=-1)
            assert not found.view(np.uint16)[nothing].any(), (
                f"{name}: a row without pairs is zero, to the bit"
            )


def test_what_is_prepared(libraries: Callable[[BackwardKernel], Any]) -> None:
    """delta, lse2 and the copies themselves, of rows and keys that some pair reads, and of the others."""
    problem = Problem("bfloat16", 56, MASKS["one-a-batch-element"]())
    arrays = {name: array.astype(np.float64) for name, array in problem.arrays.items()}
    problem.poison()
    made = _prepare(problem, _spec("naive", "sm_80", "bfloat16", 56), libraries)
    for element, mask in enumerate(problem.masks):
        visible = mask.to_dense()
        rows, keys = visible.any(axis=1), visible.any(axis=0)
        here = {name: array[element] for name, array in arrays.items()}
        delta = (here["dout"] * here["out"]).sum(axis=-1) - here["dlse"]
        for name, exact, nothing in (("delta", delta, 0.0), ("lse2", here["lse"] * np.log2(np.e), np.inf)):
            found = made[name][element][:, :Q_LEN]
            np.testing.assert_allclose(found[:, rows], exact[:, rows], rtol=1e-5, atol=1e-5)
            assert (found[:, ~rows] == nothing).all(), name
        for name, seen in (("q", rows), ("dout", rows), ("k", keys), ("v", keys)):
            np.testing.assert_array_equal(
                made[f"{name}_copy"][element].astype(np.float64), np.where(seen[:, None], here[name], 0), name
            )
