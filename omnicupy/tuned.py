"""The user's tuned choices: variants that `tune` found best on a GPU, kept in one file beside the kernel cache.

The file is read at most once a process, at the first plan that could use it. A choice is found by everything that
it may depend on: the machine (device, driver, NVRTC), the digest of the kernel's sources, and the class of the
problem. A file that cannot be read, or a choice made with something else, costs one warning and is not used.
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

from omnicupy import cache, nvrtc, source
from omnicupy.check import Problem
from omnicupy.layouts import causal
from omnicupy.locks import held
from omnicupy.masks import Mask
from omnicupy.spec import AttnSpec, round_up

FILE = "tuned.json"
SCHEMA = 1
LOCK_TIMEOUT_S = 10.0
# Upper ends of the classes, in rows a span of a key has on average, and in query rows, waves and keys.
SPAN_ROWS = (64, 256, 1024, 4096)
QUERY_ROWS = (64, 128)
WAVES = (1, 2, 4, 8)
KEYS = (512, 2048, 8192)

_ROWS_OF_A_BLOCK = 128  # of the query blocks that waves are counted in


@dataclass(frozen=True)
class Machine:
    """What a choice was made on. driver: the CUDA version that the driver serves.  nvrtc: "major.minor"."""

    device: str
    driver: str
    nvrtc: str


@dataclass(frozen=True)
class ProblemClass:
    """Problems that share a choice. head_dim: the kernel's.  mask, shape: as mask_class and shape_class say."""

    dtype: str
    head_dim: int
    mask: str
    shape: str


@dataclass(frozen=True)
class _Choice:
    spec: AttnSpec
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
            choice = _Choice(AttnSpec(**row["spec"]), row["digest"])
            if (choice.spec.dtype, choice.spec.head_dim) != (problem_class.dtype, problem_class.head_dim):
                raise ValueError(f"the spec {choice.spec} is not for {problem_class}")
            self.of.setdefault((machine.device, problem_class), {})[machine] = choice
        self.columns = {(of.dtype, of.head_dim) for _, of in self.of}

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
    return cache.directory() / FILE


def count() -> int:
    """Choices in the file now; 0 where there is none or it cannot be read."""
    return sum(len(machines) for machines in _read(path()).of.values())


def find(problem: Problem, masks: Sequence[Mask], sm_count: int) -> AttnSpec | None:
    """The variant kept for this class of problem on the current CUDA device, or None without one.

    masks: as from check.masks_of.  sm_count: multiprocessors of the device. Never raises for what the file
    holds. None inside ignored(), and while cache.use_cubins is on: its folder holds the table's variants.
    """
    if _ignored or cache.uses_cubins():
        return None
    kept = _kept()
    if kept.problem:
        kept.warn(f"are ignored: {kept.problem}")
    if (problem.dtype, round_up(problem.head_dim, 16)) not in kept.columns:
        return None
    here = current_machine()
    found = kept.of.get((here.device, class_of(problem, masks, sm_count)))
    if found is None:
        return None
    choice = found.get(here)
    if choice is None:
        kept.warn(
            f"were made with another driver or NVRTC than {here.driver} and {here.nvrtc}, and are not used"
        )
        return None
    if choice.digest != _digest_of(choice.spec.source):
        kept.warn(f"were made with another {choice.spec.source}, and are not used")
        return None
    return choice.spec


def keep(machine: Machine, problem: ProblemClass, spec: AttnSpec, measured: dict[str, Any]) -> Path:
    """Put a choice into the file, in place of one for the same machine and class; later plans use it.

    measured: figures for the reader of the file, kept as they are. Returns the file. Raises OSError when it
    cannot be written.
    """
    digest = source.load(spec.source).digest
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
        target.parent.mkdir(parents=True, exist_ok=True)
        with held(target.with_suffix(".lock"), LOCK_TIMEOUT_S):
            others = [row for row in _rows_of(target) if {name: row[name] for name in key} != key]
            content = {"schema": SCHEMA, "choices": [*others, *({**key, **row} for row in new)]}
            cache.replace_file(target, (json.dumps(content, indent=1) + "\n").encode())
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
def ignored() -> Iterator[None]:
    """Leave the choices out for a while: for verification and measurement of the built-in table."""
    global _ignored
    _ignored += 1
    try:
        yield
    finally:
        _ignored -= 1


def class_of(problem: Problem, masks: Sequence[Mask], sm_count: int) -> ProblemClass:
    """The class of a call's problem; O(k_len) for masks held as intervals."""
    head_dim = round_up(problem.head_dim, 16)
    return ProblemClass(problem.dtype, head_dim, mask_class(masks), shape_class(problem, sm_count))


def mask_class(masks: Sequence[Mask]) -> str:
    """ "full", "causal", "bits" (a mask held as bits), or how many rows see a key in one go, on average.

    The last decides how much of a tile is wasted at its edges: "spans<=64", up to "spans>4096"; "spans<=64"
    too where nothing is allowed.
    """
    q_len, k_len = masks[0].shape
    if all(mask.pairs == q_len * k_len for mask in masks):
        return "full"
    plain = causal(q_len, k_len)
    if all(mask.pairs == plain.pairs and mask == plain for mask in masks):
        return "causal"
    if any(mask.intervals is None for mask in masks):
        return "bits"
    spans = sum(int((m.intervals[0] < m.intervals[1]).sum()) for m in masks if m.intervals is not None)
    return _bucket("spans", sum(mask.pairs for mask in masks) / max(1, spans), SPAN_ROWS)


def shape_class(problem: Problem, sm_count: int) -> str:
    """What decides how well tiles fill the device: rows, blocks of 128 rows a multiprocessor, and keys; for few rows
    also whether two heads of a group can share a tile.
    """
    blocks = problem.batch * problem.q_heads * -(-problem.q_len // _ROWS_OF_A_BLOCK)
    found = [
        _bucket("rows", problem.q_len, QUERY_ROWS),
        _bucket("waves", blocks / sm_count, WAVES),
        _bucket("keys", problem.k_len, KEYS),
    ]
    if problem.q_len <= QUERY_ROWS[0] and problem.group % 2 == 0:
        found.append("heads in twos")
    return ", ".join(found)


def current_machine() -> Machine:
    """The current CUDA device and what compiles for it. Needs CuPy and a device."""
    import cupy

    return _machine(int(cupy.cuda.runtime.getDevice()))


@cache_forever
def _machine(device: int) -> Machine:
    from cupy.cuda import runtime

    name = runtime.getDeviceProperties(device)["name"].decode()
    major, minor = divmod(int(runtime.driverGetVersion()), 1000)
    return Machine(name, f"{major}.{minor // 10}", ".".join(map(str, nvrtc.version())))


def _bucket(name: str, value: float, ends: Sequence[int]) -> str:
    for end in ends:
        if value <= end:
            return f"{name}<={end}"
    return f"{name}>{ends[-1]}"


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
        content = target.read_bytes()
    except FileNotFoundError:
        return _Choices(target, [])
    except OSError as error:
        return _Choices(target, [], f"it cannot be read ({error.strerror or error})")
    try:
        return _Choices(target, _parsed(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _Choices(target, [], f"it is not a file of `tune` ({type(error).__name__}: {error})")


def _parsed(content: bytes) -> list[dict[str, Any]]:
    found = json.loads(content)
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']}, expected {SCHEMA}")
    rows: list[dict[str, Any]] = found["choices"]
    return rows


def _rows_of(target: Path) -> list[dict[str, Any]]:
    """The rows of a file that is whole, [] for any other: it is about to be replaced."""
    return [] if _read(target).problem or not target.exists() else _parsed(target.read_bytes())


@cache_forever
def _digest_of(name: str) -> str:
    """The digest of a kernel's sources, worked out once a process: what it has loaded stays as it is."""
    return source.load(name).digest
