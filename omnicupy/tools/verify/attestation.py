"""The attestation: which kernel sources a GPU run has verified, as digests that a machine without one can
check.

A kernel's entry is stale as soon as anything that decides what it computes has changed: its sources, the
variants that the table selects, the fields of its parameter struct, or the code that cuts masks, packs and launches.
Comments, white space and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnicupy.choose import pick, table
from omnicupy.jit import nvrtc, source, trust
from omnicupy.jit.files import replace_file
from omnicupy.jit.params import PARAMS
from omnicupy.jit.spec import KERNELS, AttnSpec
from omnicupy.tools.verify.case_kernels import serves
from omnicupy.tools.verify.cases import FIXED
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.random_cases import DEFAULT, sweep
from omnicupy.tools.verify.special_cases import CASES as SPECIAL_CASES

SCHEMA = 1
# What cuts a mask, packs it and launches a kernel: folders and files of the package.
LAUNCH_CODE = (
    *("gpu", "schedule", "jit/params.py"),
    *("masks/bits.py", "masks/block_mask.py", "masks/cut.py", "masks/cut_bits.py", "masks/intervals.py"),
)
_TOKENS = re.compile(
    rb"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<space>\s+)""", re.S
)

Content = dict[str, Any]


def planned_ids(kernel: str) -> set[str]:
    """The ids of the cases that a complete run of a kernel holds."""
    every = (*FIXED, *sweep(DEFAULT), *SPECIAL_CASES)
    return {case.id for case in every if serves(kernel, case)}


def sources() -> dict[str, str]:
    """Kernel source -> its kernel's name, for every kernel there is."""
    return {"attention_naive.cu": "naive"} | {
        f"attention_fwd_{kernel}.cu": kernel for kernel in KERNELS if kernel != "naive"
    }


def rows() -> dict[str, list[AttnSpec]]:
    """Kernel source -> the variants that rows of the table name, at the rows' greatest head_dim."""
    found: dict[str, list[AttnSpec]] = {}
    for spec in table.rows():
        found.setdefault(spec.source, []).append(spec)
    return found


def selected() -> set[str]:
    """Sources of the kernels that `choose.pick` serves to calls without `config`."""
    return {spec.source for specs in rows().values() for spec in specs if spec.kernel in pick.SERVED}


def digest(name: str) -> str:
    """The digest of everything that decides what the kernel source `name` computes."""
    loaded = source.load(name)
    total = hashlib.sha256()
    for part, text in ((name, loaded.text), *loaded.headers):
        total.update(f"\0{part}\0".encode() + stripped(text))
    for spec in rows().get(name, []):
        total.update(f"\0{spec}\0{nvrtc.options(spec)}".encode())
    total.update(f"\0{fields_of(PARAMS[sources()[name]])}".encode())
    for path in launch_files():
        total.update(f"\0{path.name}\0{tree(path.read_text())}".encode())
    return total.hexdigest()


def launch_files(package: Path = Path(__file__).parents[2]) -> list[Path]:
    """The files of LAUNCH_CODE in a package, sorted. Raises FileNotFoundError where an entry is missing."""
    found: list[Path] = []
    for entry in LAUNCH_CODE:
        path = package / entry
        if not path.exists():
            raise FileNotFoundError(
                f"attest: {entry} of the launch code is missing in {package}; mend LAUNCH_CODE"
            )
        found += sorted(path.glob("*.py")) if path.is_dir() else [path]
    return found


def stripped(text: bytes) -> bytes:
    """CUDA source without comments and white space, strings kept."""
    return _TOKENS.sub(lambda found: found["text"] or b"", text)


def fields_of(dtype: np.dtype[Any]) -> str:
    """Fields of a parameter struct: name, type and byte offset each, and the size."""
    fields = [(name, str(field[0]), field[1]) for name, field in (dtype.fields or {}).items()]
    return f"{fields} {dtype.itemsize}"


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


def entries(outcomes: Iterable[Outcome]) -> dict[str, Content]:
    """One entry per kernel source: its digest, the kernels that ran, and each case's worst error over budget.

    Raises ValueError when a case failed or was skipped.
    """
    found: dict[str, Content] = {}
    for outcome in outcomes:
        if not outcome.passed:
            raise ValueError(f"attest: every case must have passed, but {outcome}; repair it and run again")
        if outcome.source:
            if outcome.source not in found:  # a digest takes tens of milliseconds: once a source
                found[outcome.source] = {"digest": digest(outcome.source), "kernels": [], "cases": {}}
            entry = found[outcome.source]
            if outcome.kernel not in entry["kernels"]:
                entry["kernels"].append(outcome.kernel)
            before = entry["cases"].get(outcome.case.id, 0.0)
            entry["cases"][outcome.case.id] = max(before, float(f"{outcome.ratio:.3g}"))
    return found


def write(path: str | Path, header: Content, outcomes: Sequence[Outcome], nvrtc_version: str) -> None:
    """Write an attestation, or add this run to one of the same sources (the runs of another NVRTC).

    header: device, driver, commit.  Raises ValueError when a case failed or was skipped.
    """
    target = Path(path)
    made = entries(outcomes)
    content: Content = {"schema": SCHEMA, **header, "nvrtc": {}, "kernels": made}
    counts = {name: len(entry["cases"]) for name, entry in made.items()}
    before = _read(target)
    if before and _same_sources(before, made):
        content["nvrtc"] = before["nvrtc"]
        for name, entry in made.items():
            _merge(entry, before["kernels"][name])
    content["nvrtc"] = {**content["nvrtc"], nvrtc_version: counts}
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, (json.dumps(content, indent=1) + "\n").encode())


def _merge(entry: Content, before: Content) -> None:
    entry["kernels"] += [kernel for kernel in before["kernels"] if kernel not in entry["kernels"]]
    for case, ratio in before["cases"].items():
        entry["cases"][case] = max(ratio, entry["cases"].get(case, 0.0))


def _same_sources(before: Content, made: dict[str, Content]) -> bool:
    old = before["kernels"]
    return set(old) == set(made) and all(old[name]["digest"] == made[name]["digest"] for name in made)


def _read(path: Path) -> Content | None:
    try:
        content: Content = trust.parsed_json(path.read_bytes())
        return content if content.get("schema") == SCHEMA else None
    except (OSError, ValueError, AttributeError):
        return None


def stale(path: str | Path) -> dict[str, str]:
    """Kernel source -> why no row of the table may select it, for every source that an attestation does not
    cover.
    """
    content = _read(Path(path))
    found = {}
    for name, kernel in sources().items():
        wanted = planned_ids(kernel)
        entry = content["kernels"].get(name) if content else None
        if content is None:
            found[name] = f"{path} is missing or unreadable"
        elif entry is None:
            found[name] = "no entry"
        elif entry["digest"] != digest(name):
            found[name] = (
                "the digest is another one: its sources, variants, struct or launch code have changed"
            )
        elif set(entry["cases"]) != wanted:
            missing, extra = len(wanted - set(entry["cases"])), len(set(entry["cases"]) - wanted)
            found[name] = f"the cases are other ones: {missing} are missing, {extra} are unknown"
        elif max(entry["cases"].values()) > 1:
            found[name] = "a case is over its budget"
    return found
