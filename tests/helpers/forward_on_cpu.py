"""The forward kernels, their own sources run on the CPU (cuda_on_cpu.py) as a plan would launch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cuda_on_cpu
import ml_dtypes
import numpy as np
from cuda_on_cpu import aligned
from host_maps import encoded_for_the_host
from numpy.typing import NDArray

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.gpu import tensor_maps
from omnicupy.gpu.planning import lists_of, score_fields
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import box_keys
from omnicupy.jit.panels import tail_columns
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import AttnSpec
from omnicupy.jit.widths import kernel_widths
from omnicupy.reference import budget
from omnicupy.schedule.block_lists import SPAN_BYTES, BlockLists
from omnicupy.schedule.grid import Grid

Array = NDArray[Any]
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
LISTS = ("row_offsets", "entries", "parts", "splits", "bit_tiles", "spans", "dead")


def packed_spec(
    head_dim: int,
    bc: int,
    stages: int,
    dtype: str = "bfloat16",
    *,
    softcap: bool = False,
    value_dim: int | None = None,
    rows: int = 64,
) -> AttnSpec:
    columns, of_values = kernel_widths(head_dim, value_dim or head_dim)
    return AttnSpec(
        arch="sm_90a",
        kernel="sm90",
        dtype=dtype,
        head_dim=columns,
        value_dim=of_values,
        br=rows,
        bc=bc,
        stages=stages,
        warps=4 + rows // 16,
        pack=True,
        softcap=softcap,
    )


@dataclass
class Forward:
    """A call: q (batch, q_heads, q_len, D), k (batch, kv_heads, k_len, D), v (batch, kv_heads, k_len, Dv), one mask or
    one a batch element.

    tokens_first: memory (batch, tokens, heads, D).  sm_count: multiprocessors that the work is cut for.  softcap: as
    in attention.  sinks: sink_logits.  factor: of q, and so of scores.
    """

    problem: Problem
    masks: Sequence[oc.Mask]
    split: int | None = None
    tokens_first: bool = False
    sm_count: int = 8
    seed: int = 0
    softcap: float | None = None
    sinks: Sequence[float] | None = None
    factor: float = 1.0
    arrays: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        for name in ("q", "k", "v", "out"):
            self.arrays[name] = self._made(name)
            factor = self.factor if name == "q" else 1.0
            self.arrays[name][...] = factor * rng.standard_normal(self.arrays[name].shape)
        self.problem = replace(self.problem, softcap=self.softcap is not None)

    @property
    def changes(self) -> dict[str, Any]:
        """sink_logits and softcap, as attention takes them."""
        sinks = None if self.sinks is None else np.array(self.sinks, np.float32)
        return {"sink_logits": sinks, "softcap": self.softcap}

    def _made(self, name: str) -> Array:
        p = self.problem
        heads, tokens = (p.q_heads, p.q_len) if name in ("q", "out") else (p.kv_heads, p.k_len)
        dtype, columns = DTYPES[p.dtype], p.head_dim if name in ("q", "k") else p.value_dim
        if not self.tokens_first:
            return aligned((p.batch, heads, tokens, columns), dtype)
        return aligned((p.batch, tokens, heads, columns), dtype).transpose(0, 2, 1, 3)

    @property
    def mask(self) -> Any:
        return self.masks[0] if len(self.masks) == 1 else list(self.masks)

    def poison(self) -> None:
        """NaN in keys that no row sees."""
        for element in range(self.problem.batch):
            seen = self.masks[element % len(self.masks)].to_dense().any(axis=0)
            for name in "kv":
                self.arrays[name][element][:, ~seen] = np.nan

    def run(self, spec: AttnSpec, library: Callable[[AttnSpec], Any]) -> tuple[Array, Array, Grid]:
        """out and lse of the kernel, NaN where it wrote nothing, and how the work was laid out."""
        p = self.problem
        grid = Grid.of(spec, p, len(self.masks), sm_count=self.sm_count, l2_bytes=50 << 20, split=self.split)
        blocks = [mask.blocks(grid.tokens, spec.bc) for mask in self.masks]
        lists = lists_of(spec)(blocks, grid.workers)
        params, held = _params(self, spec, grid, lists)
        reads = [held[name] for name in ("q", "k", "v", "spans")]
        if spec.kernel == "sm90" and not isinstance(spec, FewRowsSpec):
            reads = []  # by tensor maps
        cuda_on_cpu.run(library(spec), spec, params, grid.thread_blocks(lists.n_parts)[:2], reads, late=False)
        # Zero for the next launch, but for the count of blocks that ended.
        assert not held["counter"][:2].any()
        assert not held["arrivals"].any()
        return self.arrays["out"], held["lse"], grid


def _params(
    call: Forward, spec: AttnSpec, grid: Grid, lists: BlockLists
) -> tuple[NDArray[np.void], dict[str, Array]]:
    """The struct, and what it points to."""
    params, p = np.zeros((), PARAMS[spec.params]), call.problem
    call.arrays["out"].fill(np.nan)
    held: dict[str, Array] = {**call.arrays, "lse": aligned((p.batch, p.q_heads, p.q_len), np.float32)}
    partial_bytes, arrivals = grid.partials(lists.n_slots, lists.n_split_rows)
    held["partials"] = aligned(max(4, partial_bytes // 4), np.float32)
    for name in ("lse", "partials"):
        held[name].fill(np.nan)
    held["counter"], held["arrivals"] = aligned(4, np.int32), aligned(max(1, arrivals), np.uint32)
    for name in ("counter", "arrivals"):
        held[name].fill(0)
    for name in LISTS:
        held[name] = aligned(max((1,), lists.array(name).shape), lists.array(name).dtype)
        held[name].reshape(-1)[: lists.array(name).size] = lists.array(name).reshape(-1)
    if call.sinks is not None:
        held["sink_logits"] = aligned(len(call.sinks), np.float32)
        held["sink_logits"][...] = call.sinks
    values: dict[str, Any] = {name: array.ctypes.data for name, array in held.items()}
    for name, array in call.arrays.items():
        values[f"{name}_strides"] = [stride // array.itemsize for stride in array.strides[:3]]
    values["spans"] -= SPAN_BYTES * lists.k_first
    values["dead"] -= lists.k_first // 8
    sizes = ("q_len", "k_len", "head_dim", "value_dim", "batch", "q_heads", "group")
    values |= {name: getattr(p, name) for name in sizes}
    values |= lists.struct_fields
    values |= {**grid.packed, **score_fields(p.head_dim**-0.5, call.softcap)}
    values |= {"work_items": grid.work_items(lists.n_parts), "section": grid.section(lists.n_parts)}
    for name, value in values.items():
        if name in (params.dtype.names or ()):  # a kernel's struct has what it reads
            params[name] = value
    if spec.kernel == "sm90":
        fill_maps(params, call, spec)
    return params, held


def fill_maps(params: NDArray[np.void], call: Forward, spec: AttnSpec) -> None:
    """The tensor maps of a call, as the CPU reads them."""
    with encoded_for_the_host():
        for name in "q" if isinstance(spec, Fp8Spec) else "qkv":
            of, group = call.arrays[name], call.problem.group
            at: tuple[Any, ...] = (of.ctypes.data, of.shape, of.strides, spec.dtype)
            if name == "q" and spec.pack:
                box = (spec.pack_heads(group), spec.tokens(group))
                made = tensor_maps.packed_map.__wrapped__(*at, group, box)
            else:
                rows = (spec.br, spec.heads) if name == "q" else (box_keys(spec), 1)
                made = tensor_maps.tensor_map.__wrapped__(*at, rows)
            params[f"{name}_map"] = np.frombuffer(made, np.uint64)
            width = tail_columns(spec.value_dim if name == "v" else spec.head_dim) if spec.narrow else 0
            if width:
                made = tensor_maps.tensor_map.__wrapped__(*at, rows, width)
                params[f"{name}_tail_map"] = np.frombuffer(made, np.uint64)


def scattered(q_len: int, k_len: int) -> oc.Mask:
    """Row 70 sees nothing, and nothing sees keys 60 to 63."""
    visible = np.random.default_rng(1).random((q_len, k_len)) < 0.4
    visible[:20] = True
    visible[70 % q_len], visible[:, 60:64] = False, False
    return oc.from_dense(visible)


def assert_within_budget(
    call: Forward, spec: AttnSpec, library: Callable[[AttnSpec], Any]
) -> tuple[Array, Array]:
    """Runs a call whose dead keys and outputs hold NaN; both results, which are held to the budget of float64."""
    call.poison()
    expected = budget.budget(*(call.arrays[name] for name in "qkv"), call.mask, **call.changes)
    out, lse, _ = call.run(spec, library)
    found = budget.compare(out, lse, expected)
    assert found.ok, str(found)
    return out, lse
