"""Calls of the backward kernels on the CPU: arrays, masks, structs, and what gradients are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cuda_on_cpu
import hopper_calls
import ml_dtypes
import numpy as np
from cuda_on_cpu import aligned
from kernel_masks import K_LEN, Q_LEN
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.call.problem import Problem as CallProblem
from omnicupy.choose import backward_table
from omnicupy.gpu.planning import score_fields
from omnicupy.jit.backward_kernel import BackwardKernel
from omnicupy.jit.backward_spec import BackwardSpec, padded_rows
from omnicupy.jit.params import PARAMS
from omnicupy.jit.widths import kernel_widths
from omnicupy.schedule.backward_grid import BackwardGrid, key_lists_of
from omnicupy.schedule.block_lists import BlockLists, block_lists
from omnicupy.schedule.parts import Workers

BATCH, Q_HEADS, KV_HEADS = 2, 4, 2
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Relative error of a gradient, and of its worst row: what rounding P, dS and the result leaves, and half of it more.
ERROR = {"float16": (4.5e-4, 1.2e-3), "bfloat16": (3.5e-3, 9e-3)}
LISTS = ("row_offsets", "entries", "parts", "bit_tiles", "spans", "dead", "dead_rows", "ranks")
MAKE_ALL = ("fused", "ordered")  # parts that make all gradients, that of q as sums

Array = NDArray[Any]


def spec_of(kernel: str, arch: str, dtype: str, head_dim: int, value_dim: int | None = None) -> BackwardSpec:
    if kernel == "naive":
        return backward_table.naive(arch, dtype, head_dim, value_dim=value_dim)
    widths = kernel_widths(head_dim, head_dim if value_dim is None else value_dim)
    row = next(r for r in backward_table.TABLE if r.kernel == kernel and r.serves(arch, max(widths)))
    return row.spec(arch, dtype, *widths)


@dataclass(frozen=True)
class Problem:
    """A call: 16-bit arrays (B, H, S, D), the masks, what changes scores, and what a forward pass leaves.

    value_dim: columns of v, out and their gradients; None for head_dim.
    """

    dtype: str
    head_dim: int
    masks: list[oc.Mask]
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None
    value_dim: int | None = None

    def changes(self, dtype: Any) -> dict[str, Any]:
        return {
            "scale": self.head_dim**-0.5,
            "softcap": self.softcap,
            "sink_logits": None if self.sinks is None else np.array(self.sinks, dtype),
        }

    def width(self, name: str) -> int:
        """Columns of an array, or of the gradient of one."""
        of_values = name in ("v", "dv", "out", "dout") and self.value_dim is not None
        return self.value_dim if of_values else self.head_dim  # type: ignore[return-value]

    def _padded(self, array: Array) -> Array:
        """In float64, with columns of zeros up to the greater width: they change neither scores nor other columns."""
        missing = max(self.head_dim, self.width("v")) - array.shape[-1]
        return np.pad(array.astype(np.float64), [(0, 0)] * (array.ndim - 1) + [(0, missing)])

    @cached_property
    def arrays(self) -> dict[str, Array]:
        rng = np.random.default_rng(7)

        def made(name: str) -> Array:
            heads, tokens = (KV_HEADS, K_LEN) if name in "kv" else (Q_HEADS, Q_LEN)
            array = aligned((BATCH, tokens, heads, self.width(name)), DTYPES[self.dtype])
            array[...] = rng.standard_normal(array.shape)
            return array.transpose(0, 2, 1, 3)  # as a model has them

        arrays = {
            "q": made("q"),
            "k": made("k"),
            "v": made("v"),
            # Steps of no kind that a kernel could copy in 16 bytes.
            "dout": made("dout")[..., ::-1],
            "out": made("out"),
            "dlse": rng.standard_normal((BATCH, Q_HEADS, Q_LEN)).astype(np.float32),
        }
        wide = [self._padded(arrays[name]) for name in "qkv"]
        out, lse = oc.attention(*wide, self.mask, return_lse=True, **self.changes(np.float64))
        arrays["out"][...] = out[..., : self.width("out")]
        arrays["lse"] = lse.astype(np.float32)
        return arrays

    @property
    def mask(self) -> Any:
        return self.masks[0] if len(self.masks) == 1 else self.masks

    @cached_property
    def gradients(self) -> dict[str, Array]:
        """In float64, of the same values."""
        rows = {name: self.arrays[name].astype(np.float64) for name in ("lse", "dlse")}
        inputs = [self._padded(self.arrays[name]) for name in ("dout", "q", "k", "v", "out")]
        wanted = ("q", "k", "v") + (() if self.sinks is None else ("sink_logits",))
        changes = self.changes(np.float64)
        found = oc.attention_backward(
            *inputs, rows["lse"], self.mask, dlse=rows["dlse"], wanted=wanted, **changes
        )
        made = {f"d{name}": one for name, one in zip(wanted, found, strict=True)}
        return made | {name: made[name][..., : self.width(name)] for name in ("dq", "dk", "dv")}

    def grid(self, part: BackwardKernel) -> BackwardGrid:
        """How a kernel for Hopper is laid over so few multiprocessors that some work on two items. One that waits for
        other thread blocks has one alone: they run one after the other here.
        """
        sizes = (BATCH, Q_HEADS, KV_HEADS, Q_LEN, K_LEN, self.head_dim, self.dtype)
        call = CallProblem(*sizes, value_dim=self.width("v"))
        sm_count = 1 if part.part == "ordered" or part.finishes else 10
        return BackwardGrid(part, call, len(self.masks), sm_count=sm_count, l2_bytes=50 << 20)

    def poison(self) -> None:
        """NaN wherever no pair reads."""
        for element in range(BATCH):
            visible = self.masks[element % len(self.masks)].to_dense()
            for name in ("q", "dout", "out", "dlse"):
                self.arrays[name][element][:, ~visible.any(axis=1)] = np.nan
            for name in "kv":
                self.arrays[name][element][:, ~visible.any(axis=0)] = np.nan


def _lists(problem: Problem, part: BackwardKernel) -> BlockLists:
    heads, cut = (Q_HEADS, "blocks") if part.part == "dq" else (KV_HEADS, "key_blocks")
    blocks = [getattr(mask, cut)(part.br, part.bc) for mask in problem.masks]
    make = block_lists if part.part == "dq" else key_lists_of(part)
    if part.params == "bwd_sm90":
        return make(blocks, hopper_calls.workers(problem.grid(part)))
    return make(blocks, Workers(heads * BATCH // len(blocks), 132))


def _params(
    problem: Problem,
    lists: BlockLists,
    arrays: dict[str, Array],
    struct: str = "bwd",
    part: BackwardKernel | None = None,
) -> tuple[NDArray[np.void], Any]:
    """The struct, and what it points to. arrays: those that it names, and strides of theirs that it has."""
    params = np.zeros((), PARAMS[struct])
    fields = params.dtype.names or ()
    places: dict[str, Array] = dict(arrays)
    for name in LISTS:
        if name in lists.shapes and lists.array(name).size:
            places[name] = aligned(lists.array(name).shape, lists.array(name).dtype)
            places[name][...] = lists.array(name)
    for name, array in places.items():
        params[name] = array.ctypes.data
        if f"{name}_strides" in fields:
            params[f"{name}_strides"] = [stride // array.itemsize for stride in array.strides[:3]]
    params["dout_column"] = arrays["dout"].strides[3] // 2
    params["scale"] = problem.head_dim**-0.5
    of_scores = score_fields(problem.head_dim**-0.5, problem.softcap)
    params["scale_log2"], params["tanh_scale"] = of_scores["scale_log2"], of_scores["tanh_scale"]
    sizes = {"q_len": Q_LEN, "k_len": K_LEN, "head_dim": problem.head_dim, "batch": BATCH, "q_heads": Q_HEADS}
    sizes["value_dim"] = problem.width("v")
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
    if "head_sums" in fields and part is not None:
        for name, value in problem.grid(part).sum_fields(lists).items():
            params[name] = value
    if "ranks" in lists.shapes and "ranks" in fields:
        for name in ("head_ranks", "turn_heads", "early_heads"):
            params[name] = lists.struct_fields[name]
    return params, places


def prepared(
    problem: Problem, spec: BackwardSpec, library: Callable[[BackwardKernel], Any]
) -> dict[str, Array]:
    """lse2, delta and compact copies of all four arrays, every byte poisoned before; where a kernel finishes sums of
    dQ, dQ with rows of zeros, too.
    """
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
    if spec.ordered is not None:
        made["dq"] = aligned(problem.arrays["q"].shape, DTYPES[problem.dtype])
        made["dq"].fill(np.nan)
    params, held = _params(problem, lists, {**arrays, **made})
    params["zeroes_dead_rows"] = "dq" in made
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


def run(
    problem: Problem, part: BackwardKernel, made: dict[str, Array], library: Any, late: bool | None = None
) -> dict[str, Array]:
    """The gradients that a kernel makes of the copies; of one that adds to sums of dQ also these, of one that reads
    sums that are among `made` nothing but dQ.
    """
    lists = _lists(problem, part)
    inputs = {name: made[f"{name}_copy"] for name in ("q", "k", "v", "dout")}
    inputs |= {name: made[name] for name in ("lse2", "delta")}
    if part.prepares:
        inputs |= {name: problem.arrays[name] for name in ("out", "lse", "dlse")}
        inputs |= {name: np.full_like(made[name], np.nan) for name in ("lse2", "delta")}
    names = ("dk", "dv") if part.part in ("dkdv", *MAKE_ALL) else ("dq",)
    names = ("dq", "dk", "dv") if part.finishes else names
    gradients = {name: aligned(problem.gradients[name].shape, DTYPES[problem.dtype]) for name in names}
    for array in gradients.values():
        array.fill(np.nan)
    if part.finishes:
        gradients["dq"][...] = made["dq"]
    sums = {}
    if part.part in MAKE_ALL:
        count = problem.grid(part).sum_fields(lists)["places"]
        sums["dq_sums"] = aligned((count * part.sum_bytes // 4,), np.float32)
        sums["dq_sums"].fill(np.nan if part.finishes else 0)
    elif part.part == "convert":
        inputs["dq_sums"] = made["dq_sums"]
    is_hopper = part.params == "bwd_sm90"
    more = hopper_calls.memory(problem.grid(part), lists) if is_hopper else {}
    if part.part == "ordered" or part.finishes:
        more["turns"] = np.zeros(count, np.int32)
    params, held = _params(problem, lists, {**inputs, **gradients, **sums, **more}, part.params, part)
    tokens, heads = (K_LEN, KV_HEADS) if "dk" in names else (Q_LEN, Q_HEADS)
    items = BATCH * heads * tokens
    if part.part == "convert":
        items = BATCH * heads * -(-tokens // part.br)
    elif part.kernel != "naive":
        items = lists.n_parts * heads * BATCH // len(problem.masks)
    late = part.part == "dq" if late is None else late
    grid = (items, part.column_blocks)
    if is_hopper:
        grid = hopper_calls.fill(params, problem.grid(part), lists, inputs)
    cuda_on_cpu.run(library, part, params, grid, [*inputs.values()], late, sums=sums.get("dq_sums"))
    assert held
    if part.part == "ordered" or part.finishes:
        hopper_calls.check_turns(more["turns"], lists, part, Q_HEADS * BATCH, KV_HEADS * BATCH)
    assert not any(more[name].any() for name in more.keys() & {"counter", "arrivals"})  # as they were found
    return gradients | sums


def assert_right(problem: Problem, name: str, found: Array) -> None:
    """A gradient is within what rounding leaves, and a row without pairs is zero."""
    exact = problem.gradients[name]
    off = found.astype(np.float64) - exact
    of_all, of_row = ERROR[problem.dtype]
    assert np.linalg.norm(off) <= of_all * np.linalg.norm(exact), name
    size = np.linalg.norm(exact, axis=-1)
    least = 0.3 * np.sqrt(np.mean(size**2))  # a row of small gradients has the rounding of its neighbours
    assert (np.linalg.norm(off, axis=-1) <= of_row * np.maximum(size, least)).all(), name
    nothing = ~exact.any(axis=-1)
    assert not found.view(np.uint16)[nothing].any(), f"{name}: a row without pairs is zero, to the bit"
