"""The user's tuned choices: variants that `tune` found best on a GPU, kept in one file beside the kernel cache.

The file is read at most once a process, at the first plan that could use it. A choice is found by everything that
it may depend on: the machine (device, driver, NVRTC), the digest of the kernels' sources, and the class of the
problem, to which the pass belongs. A file that cannot be read, or a choice made with something else, costs one warning
and is not used. Files of schema 1 hold choices of the forward pass; they are read, and written anew in schema 2.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache as cache_forever
from pathlib import Path
from typing import Any

from omnicupy.call.problem import Problem
from omnicupy.choose.classes import BACKWARD, FORWARD, NONE, ProblemClass, class_of
from omnicupy.jit import cache as kernel_cache
from omnicupy.jit import files, nvrtc, source, trust
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.jit.files import held
from omnicupy.jit.spec import AttnSpec, round_up
from omnicupy.masks.mask import Mask

FILE = "tuned.json"
SCHEMA, OLD_SCHEMA = 2, 1
LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Machine:
    """What a choice was made on. driver: the CUDA version that the driver serves.  nvrtc: "major.minor"."""

    device: str
    driver: str
    nvrtc: str


@dataclass(frozen=True)
class _Choice:
    spec: AttnSpec | BackwardSpec
    digest: str


class _Choices:
    """The file's choices, by device and class. problem: why the file is not used, "" where it is."""

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]], problem: str = "") -> None:
        self.path = path
        self.problem = problem
        self.warned = False
        self.of: dict[tuple[str, ProblemClass], dict[Machine, _Choice]] = {}
        for row in rows:
            machine, problem_class = Machine(**row["machine"]), ProblemClass(**row["problem"])
            choice = _Choice(_spec_of(problem_class, row["spec"]), row["digest"])
            spec = choice.spec
            made_for = (spec.dtype, spec.head_dim, getattr(spec, "value_dim", spec.head_dim), spec.softcap)
            of = problem_class
            if made_for != (of.dtype, of.head_dim, of.value_dim, of.softcap):
                raise ValueError(f"the spec {spec} is not for {of}")
            self.of.setdefault((machine.device, problem_class), {})[machine] = choice
        self.columns = {(of.dtype, of.head_dim, of.passed, of.deterministic) for _, of in self.of}

    def warn(self, reason: str) -> None:
        """One RuntimeWarning, however often it is called."""
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"the tuned choices in {self.path} {reason}; run `python cli.py tune` again or delete the file",
                RuntimeWarning,
                stacklevel=2,
            )


_choices: _Choices | None = None
_lock = threading.Lock()
_ignored = 0  # bodies of ignored() that are running


def path() -> Path:
    """The file of the choices; it may not exist."""
    return files.own_directory() / FILE


def count() -> int:
    """Choices in the file now; 0 where there is none or it cannot be read."""
    return sum(len(machines) for machines in _read(path()).of.values())


def find(problem: Problem, masks: Sequence[Mask], sm_count: int, *, cache: str = NONE) -> AttnSpec | None:
    """The variant kept for the forward pass of this class of problem on the current CUDA device, or None without one.

    masks: as in check.Call.  sm_count: multiprocessors of the device.  cache: as in ProblemClass. Never raises for
    what the file holds. None inside ignored(), and while cache.use_cubins is on: its folder holds the table's variants.
    """
    found = _find(problem, masks, sm_count, FORWARD, deterministic=True, cache=cache)
    return found if isinstance(found, AttnSpec) else None


def find_backward(
    problem: Problem, masks: Sequence[Mask], sm_count: int, *, deterministic: bool
) -> BackwardSpec | None:
    """The kernels kept for the backward pass of this class of problem, or None without them; else as find().

    deterministic: of the call. Choices for calls whose sums may have any order are apart from the others.
    """
    found = _find(problem, masks, sm_count, BACKWARD, deterministic=deterministic)
    return found if isinstance(found, BackwardSpec) else None


def _find(
    problem: Problem,
    masks: Sequence[Mask],
    sm_count: int,
    passed: str,
    *,
    deterministic: bool,
    cache: str = NONE,
) -> AttnSpec | BackwardSpec | None:
    if _ignored or kernel_cache.uses_compiled_elsewhere():
        return None
    kept = _kept()
    if kept.problem:
        kept.warn(f"are ignored: {kept.problem}")
    if (problem.dtype, round_up(problem.head_dim, 16), passed, deterministic) not in kept.columns:
        return None
    here = current_machine()
    problem_class = class_of(problem, masks, sm_count, passed, deterministic=deterministic, cache=cache)
    found = kept.of.get((here.device, problem_class))
    if found is None:
        return None
    choice = found.get(here)
    if choice is None:
        kept.warn(
            f"were made with another driver or NVRTC than {here.driver} and {here.nvrtc}, and are not used"
        )
        return None
    names = _sources(choice.spec)
    if choice.digest != " ".join(map(_digest_of, names)):
        kept.warn(f"were made with another {' or '.join(names)}, and are not used")
        return None
    return choice.spec


def _sources(spec: AttnSpec | BackwardSpec) -> list[str]:
    """The source files of a choice's kernels, each once."""
    if isinstance(spec, AttnSpec):
        return [spec.source]
    return list(dict.fromkeys(kernel.source for kernel in spec.kernels().values()))


def _spec_of(problem: ProblemClass, fields: dict[str, Any]) -> AttnSpec | BackwardSpec:
    """The spec of a row, of the kind that its class's pass has. Raises ValueError or TypeError for another."""
    if problem.passed == FORWARD:
        return AttnSpec(**fields)
    shapes = {name: tuple(of) for name, of in fields.items() if isinstance(of, list)}
    return BackwardSpec(**{**fields, **shapes})


def keep(
    machine: Machine, problem: ProblemClass, spec: AttnSpec | BackwardSpec, measured: dict[str, Any]
) -> Path:
    """Put a choice into the file, in place of one for the same machine and class; later plans use it.

    spec: an AttnSpec, for a class of the backward pass a BackwardSpec; TypeError for the other.  measured: figures for
    the reader of the file, kept as they are. Returns the file. Raises OSError when it cannot be written.
    """
    if isinstance(spec, AttnSpec) is not (problem.passed == FORWARD):
        raise TypeError(
            f"spec: expected an AttnSpec for {FORWARD}, a BackwardSpec for {BACKWARD}, got {spec!r}"
        )
    digest = " ".join(source.load(name).digest for name in _sources(spec))
    return _replace(machine, problem, [{"spec": asdict(spec), "digest": digest, "measured": measured}])


def drop(machine: Machine, problem: ProblemClass) -> None:
    """Take the choice for a machine and class out of the file, if there is one. Raises OSError as keep()."""
    if path().exists():
        _replace(machine, problem, [])


def _replace(machine: Machine, problem: ProblemClass, new: list[dict[str, Any]]) -> Path:
    """The file with `new` in place of what it holds for a machine and class."""
    target = path()
    key = {"machine": asdict(machine), "problem": asdict(problem)}
    try:
        trust.make_folder(target.parent)
        with held(target.with_suffix(".lock"), LOCK_TIMEOUT_S):
            others = [row for row in _rows_of(target) if {name: row[name] for name in key} != key]
            content = {"schema": SCHEMA, "choices": [*others, *({**key, **row} for row in new)]}
            files.replace_file(target, (json.dumps(content, indent=1) + "\n").encode(), trust.OWN_MODE)
    except OSError as error:
        raise OSError(
            f"the tuned choices cannot be kept in {target} ({error.strerror or error}); set OMNICUPY_CACHE_DIR "
            "to a folder that can be written"
        ) from error
    forget()
    return target


def forget() -> None:
    """Read the file anew at the next plan that could use it."""
    global _choices
    with _lock:
        _choices = None


@contextmanager
def without_saved_choices() -> Iterator[None]:
    """Leave the choices out for a while: for verification and measurement of the built-in table."""
    global _ignored
    _ignored += 1
    try:
        yield
    finally:
        _ignored -= 1


def current_machine() -> Machine:
    """The current CUDA device and what compiles for it. Needs CuPy and a device."""
    import cupy

    return _machine(int(cupy.cuda.runtime.getDevice()))


@cache_forever
def _machine(device: int) -> Machine:
    from cupy.cuda import runtime

    name = runtime.getDeviceProperties(device)["name"].decode()
    major, minor = divmod(int(runtime.driverGetVersion()), 1000)
    return Machine(name, f"{major}.{minor // 10}", nvrtc.version_text())


def _kept() -> _Choices:
    """The choices of the file, read once a process."""
    global _choices
    found = _choices
    if found is None:
        with _lock:
            found = _choices
            if found is None:
                found = _choices = _read(path())
    return found


def _read(target: Path) -> _Choices:
    """Never raises for what the file holds: a file that is not whole and legal has no choices, and says why."""
    try:
        content = trust.read_trusted(target)
    except FileNotFoundError:
        return _Choices(target, [])
    except OSError as error:
        return _Choices(target, [], f"it cannot be read ({error.strerror or error})")
    try:
        return _Choices(target, _parsed(content))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return _Choices(target, [], f"it is not a file of `tune` ({type(error).__name__}: {error})")


def _parsed(content: bytes) -> list[dict[str, Any]]:
    found = trust.parsed_json(content)
    if found["schema"] not in (SCHEMA, OLD_SCHEMA):
        raise ValueError(f"schema {found['schema']}, expected {SCHEMA}")
    rows: list[dict[str, Any]] = found["choices"]
    if found["schema"] == SCHEMA:  # choices were made before there were soft caps and kinds of caches, too
        return [{**row, "problem": {"softcap": False, "cache": NONE, **row["problem"]}} for row in rows]
    forward = {"passed": FORWARD, "deterministic": True, "softcap": False, "cache": NONE}
    return [
        {**row, "problem": {**row["problem"], "value_dim": row["problem"]["head_dim"], **forward}}
        for row in rows
    ]


def _rows_of(target: Path) -> list[dict[str, Any]]:
    """The rows of a file that is whole, [] for any other: it is about to be replaced."""
    return [] if _read(target).problem or not target.exists() else _parsed(trust.read_trusted(target))


@cache_forever
def _digest_of(name: str) -> str:
    """The digest of a kernel's sources, worked out once a process: what it has loaded stays as it is."""
    return source.load(name).digest
