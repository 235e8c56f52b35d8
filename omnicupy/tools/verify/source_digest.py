"""What decides what a kernel source computes, as one digest.

That is its CUDA files, the variants of the table that are compiled of it, the fields of its parameter struct, and the
Python code that cuts masks, packs and launches it. Comments, white space and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from omnicupy.call.problem import Problem
from omnicupy.choose import backward_table, paged, pick, table
from omnicupy.choose.capped import capped, capped_backward
from omnicupy.jit import archs, few_rows_spec, nvrtc, source
from omnicupy.jit.append_spec import AppendSpec, Fp8AppendSpec
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import LEAST_BOX, PagedSpec
from omnicupy.jit.params import PARAMS
from omnicupy.jit.plan_spec import PlanSpec
from omnicupy.jit.ragged_spec import RaggedSpec
from omnicupy.jit.spec import DTYPES, KERNELS, AttnSpec, KernelSpec
from omnicupy.jit.tile_checks import KEY_TURNS

PACKAGE = Path(__file__).parents[2]
# Imports are followed from a door through these folders alone. What other folders decide is in the digest by value (the
# variants and their options, the struct) or decides the pairs and numbers of a call, not how they reach a kernel.
FOLDERS = ("gpu", "masks", "schedule")
# A mask: which pairs it holds, and its pictures, are tested without a GPU. How it is cut is a door of its own.
NOT_FOLLOWED = ("masks.mask",)
_TOKENS = re.compile(
    rb"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<space>\s+)""", re.S
)


@dataclass(frozen=True)
class Launch:
    """The code behind one pass. doors: modules where its Python code begins.  ahead: kernels launched ahead of it."""

    doors: tuple[str, ...]
    ahead: tuple[KernelSpec, ...] = ()


_APPENDS = tuple(AppendSpec(arch=arch) for arch in archs.ARCHES)
_FP8_APPENDS = tuple(Fp8AppendSpec(arch=arch, dtype=dtype) for arch in archs.ARCHES for dtype in DTYPES)
_PLANNERS, _RAGGED_PLANNERS = (
    tuple(PlanSpec(arch=arch, ragged=ragged) for arch in archs.ARCHES) for ragged in (False, True)
)
FORWARD = Launch(
    doors=("gpu.attention", "gpu.cached", "masks.cut"),
    ahead=(*_PLANNERS, *_RAGGED_PLANNERS),
)
BACKWARD = Launch(doors=("gpu.backward", "masks.cut", "masks.key_cut"))
# Of kernels that no row of the table names: they are what is launched.
FEW_ROWS = "attention_fwd_few_rows.cu"  # a variant takes a row's place on caches
PAGED = "attention_fwd_paged.cu"  # the same on pages, of tiles of three warpgroups
PACKED = "attention_fwd_packed.cu"
PLANNING = Launch(doors=("gpu.cached",), ahead=(*_PLANNERS, *_RAGGED_PLANNERS))
APPENDING = Launch(doors=("gpu.append",), ahead=_APPENDS)
APPENDING_FP8 = Launch(doors=("gpu.append",), ahead=_FP8_APPENDS)


@dataclass(frozen=True)
class Source:
    """A kernel source. kernel: as specs name it.  params: its struct, a key of PARAMS.  launch: what launches it."""

    kernel: str
    params: str
    launch: Launch


def _sources() -> dict[str, Source]:
    """Every kernel source by its file name, those of the forward pass first."""
    found = {"attention_naive.cu": Source("naive", "naive", FORWARD)}
    found |= {
        f"attention_fwd_{kernel}.cu": Source(kernel, kernel, FORWARD)
        for kernel in KERNELS
        if kernel != "naive"
    }
    found[FEW_ROWS] = Source("sm90", "sm90_fp8", FORWARD)
    found[PAGED] = Source("sm90", "sm90_paged", FORWARD)
    found[PACKED] = Source("sm90", "sm90", FORWARD)
    found[KEY_TURNS] = Source("sm90", "sm90", FORWARD)
    for launch in (PLANNING, APPENDING, APPENDING_FP8):
        first = launch.ahead[0]
        found[first.source] = Source(first.kernel, first.params, launch)
    plain = backward_table.naive("sm_90", "bfloat16", 64)
    for spec in (plain, *backward_table.rows()):
        for kernel in spec.kernels().values():
            found.setdefault(kernel.source, Source(kernel.kernel, kernel.params, BACKWARD))
    return found


SOURCES = _sources()


def rows() -> dict[str, list[KernelSpec]]:
    """Kernel source -> the kernels that rows of the tables name, at the rows' greatest head_dim, and those that take
    their places where scores are capped.
    """
    backward = [*backward_table.rows(), *map(capped_backward, backward_table.rows())]
    of_backward = (kernel for spec in backward for kernel in spec.kernels().values())
    forward = [*table.rows(), *map(capped, table.rows())]
    every: list[KernelSpec] = [*forward, *_few_rows(forward), *_on_pages(forward), *of_backward]
    found: dict[str, dict[KernelSpec, None]] = {}
    for spec in every:
        found.setdefault(spec.source, {})[spec] = None
    return {name: list(specs) for name, specs in found.items()}


def _few_rows(forward: list[AttnSpec]) -> list[FewRowsSpec]:
    """What takes a row's place where a call on a cache has few rows of queries."""
    return [
        few
        for spec in forward
        for e4m3, rows in product((True, False), (few_rows_spec.FEWER_ROWS, few_rows_spec.ROWS))
        for few in paged.few_rows(
            spec, Problem(1, 1, 1, rows, 1, spec.head_dim, spec.dtype, value_dim=spec.value_dim), e4m3=e4m3
        )
    ]


def _on_pages(forward: list[AttnSpec]) -> list[PagedSpec]:
    """What takes a row's place on pages, where that is a kernel of its own."""
    on_pages = (
        PagedSpec.with_pages(paged.fitted(spec), size)
        for spec in forward
        for size in (1, LEAST_BOX)
        if spec.serves_caches
    )
    return [spec for spec in on_pages if spec.source == PAGED]


def selected() -> set[str]:
    """Sources of the kernels that calls without `config` may get, and of those that run beside them on caches."""
    rows = [spec for spec in table.rows() if spec.kernel in pick.SERVED]
    forward = {spec.source for spec in (*rows, *_few_rows(rows), *_on_pages(rows))}
    served = (spec for spec in backward_table.rows() if spec.kernel in backward_table.SERVED)
    beside = {spec.source for launch in (PLANNING, APPENDING, APPENDING_FP8) for spec in launch.ahead}
    return forward | beside | {kernel.source for spec in served for kernel in spec.kernels().values()}


def digest(name: str) -> str:
    """The digest of everything that decides what the kernel source `name` computes."""
    loaded, of = source.load(name), SOURCES[name]
    total = hashlib.sha256()
    ahead = {spec.source: source.load(spec.source) for spec in of.launch.ahead}
    for one in (loaded, *ahead.values()):
        for part, text in ((one.name, one.text), *one.headers):
            total.update(f"\0{part}\0".encode() + stripped(text))
    for spec in (*rows().get(name, []), *of.launch.ahead):
        for variant in _variants(spec):
            total.update(f"\0{spec}\0{nvrtc.options(variant)}".encode())
    for params in (of.params, *{spec.params: None for spec in of.launch.ahead}):
        total.update(f"\0{fields_of(PARAMS[params])}".encode())
    for module in launch_modules(of.launch):
        total.update(f"\0{module}\0{tree(modules()[module].read_text())}".encode())
    return total.hexdigest()


def _variants(spec: KernelSpec) -> Iterator[KernelSpec]:
    """What a row's kernel is compiled as: for calls with a mask, on caches where that is another one, on pages, on
    e4m3, and on all of these where sequences have numbers of rows of their own.
    """
    yield spec
    if isinstance(spec, FewRowsSpec):
        for ways in product((True, False), repeat=3):
            yield spec.for_caches(**dict(zip(("e4m3", "in_pages", "ragged"), ways, strict=True)))
        yield spec.for_masks()
    elif isinstance(spec, PagedSpec):
        yield RaggedSpec.of(spec)
    elif isinstance(spec, AttnSpec) and spec.serves_caches:
        if (of_caches := CachedSpec.of(spec)) != spec:
            yield of_caches
        for size in (1, LEAST_BOX):
            in_pages = PagedSpec.with_pages(paged.fitted(spec), size)
            if in_pages.source == spec.source:  # else PAGED serves, which is a source of its own
                yield from (in_pages, RaggedSpec.of(in_pages))
        yield RaggedSpec.of(spec)
        for has_pages in (False, True):
            for ragged in (False, True):
                yield Fp8Spec.of_e4m3(paged.for_e4m3(spec), in_pages=has_pages, ragged=ragged)


def launch_modules(launch: Launch) -> list[str]:
    """The modules of FOLDERS that a pass runs: its doors and all that they import, sorted, such as "masks.cut".

    Raises FileNotFoundError where a door is missing.
    """
    for door in launch.doors:
        if door not in modules():
            raise FileNotFoundError(f"attest: module {door} is missing in {PACKAGE}; mend source_digest.py")
    found: set[str] = set()
    waiting = list(launch.doors)
    while waiting:
        module = waiting.pop()
        if module not in found and is_followed(module):
            found.add(module)
            waiting += imported(module)
    return sorted(found)


def is_followed(module: str) -> bool:
    """True when a module that a pass imports counts for its digest."""
    return module.partition(".")[0] in FOLDERS and module not in NOT_FOLLOWED


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, such as "masks.cut" -> its file."""
    found = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in found.items()}


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports, also inside functions, but not for type checking alone."""
    names = _imported_names(modules()[module].read_text())
    return {loaded for name in names if (loaded := _loaded(name))}


@cache
def _imported_names(text: str) -> frozenset[str]:
    """What a Python module imports of the package: "masks.cut.cut"."""
    return frozenset(
        name.removeprefix("omnicupy.") for name in _imports(ast.parse(text)) if name.startswith("omnicupy.")
    )


def _imports(node: ast.AST) -> Iterator[str]:
    """The full names that a syntax tree imports: "omnicupy.masks.cut.cut"."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for other in node.orelse:
            yield from _imports(other)
    else:
        for inner in ast.iter_child_nodes(node):
            yield from _imports(inner)


def _loaded(name: str) -> str:
    """The module that an imported name stands in: "masks.cut.cut" -> "masks.cut"; "" for one of no module."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name


def stripped(text: bytes) -> bytes:
    """CUDA source without comments and white space, strings kept."""
    return _TOKENS.sub(lambda found: found["text"] or b"", text)


def fields_of(dtype: np.dtype[Any]) -> str:
    """Fields of a parameter struct: name, type and byte offset each, and the size."""
    fields = [(name, str(field[0]), field[1]) for name, field in (dtype.fields or {}).items()]
    return f"{fields} {dtype.itemsize}"


@cache
def tree(text: str) -> str:
    """The syntax tree of a Python module without docstrings, in a form that all Python versions agree on."""
    return repr(_node(ast.parse(text)))


def _node(node: Any) -> Any:
    if isinstance(node, list):
        return [_node(part) for part in node]
    if not isinstance(node, ast.AST):
        return node
    fields: list[tuple[str, Any]] = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(
            node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        ):
            value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
        # Versions differ in which empty fields a node has.
        if value is not None and value != []:
            fields.append((name, _node(value)))
    return (type(node).__name__, fields)
