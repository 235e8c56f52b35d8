"""Compiled kernels on disk: a key of everything that decides the bytes -> the path of a checked cubin.

An entry is two files, `<key>.cubin` and `<key>.json` (its checksum and resource report), published in that
order by os.replace. A reader takes nothing whose checksum does not hold, so a corrupt, truncated or foreign
entry is a miss.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omnicupy.errors import UnsupportedError
from omnicupy.jit import exported, nvrtc, trust
from omnicupy.jit.exported import SCHEMA, Exported
from omnicupy.jit.files import held, own_directory, replace_file
from omnicupy.jit.nvrtc import Cubin
from omnicupy.jit.source import Source, load
from omnicupy.jit.spec import KernelSpec

LOCK_TIMEOUT_S = 60.0  # compiling takes about a second: a longer wait means that the holder hangs

Build = Callable[[KernelSpec, Source], Cubin]


@dataclass(frozen=True)
class Entry:
    """A cubin on disk. nvrtc: (major, minor) of the NVRTC that built it; the rest as in nvrtc.Cubin."""

    path: Path
    key: str
    registers: int
    spill_bytes: int
    warnings: tuple[str, ...]
    log: str
    nvrtc: tuple[int, int]


@dataclass(frozen=True)
class Kernels:
    """Where kernels are taken from: a folder of cubins, or the cache. epoch: names launch plans made with them."""

    override: Exported | None
    epoch: int


_override: Exported | None = None
epoch = 0  # of the kernels that are taken: launch plans made with others are not used
_newest = 0
_private_lock = threading.Lock()


def cubin(spec: KernelSpec, build: Build = nvrtc.compile) -> Path:
    """Path of the cubin of `spec`, compiled by `build` unless cached. Raises what entry() raises."""
    return entry(spec, build).path


def entry(spec: KernelSpec, build: Build = nvrtc.compile) -> Entry:
    """The cache entry of `spec`, compiled by `build` on a miss; of several processes that miss, one compiles.

    A cache folder that cannot be written costs one RuntimeWarning per process and a private temporary folder.
    Raises CompileError, UnsupportedError (no NVRTC; or use_cubins is on and has no such cubin).
    """
    source = load(spec.source)
    if _override is not None:
        return _find_override(_override, spec, source)
    version = nvrtc.version()
    key = key_of(spec, source.digest, version)
    folder = own_directory()
    if found := _find(folder, key):
        return found
    try:
        return _build_in(folder, spec, source, build)
    except _UnwritableError as error:
        _warn_once(
            f"{error}; compiling into a private temporary folder (set OMNICUPY_CACHE_DIR to keep kernels)"
        )
    try:
        return _build_in(_private_folder(os.getpid()), spec, source, build)
    except _UnwritableError as error:
        raise OSError(f"{error}; set OMNICUPY_CACHE_DIR to a folder that can be written") from error


def key_of(spec: KernelSpec, digest: str, version: tuple[int, int]) -> str:
    """The name of an entry: a digest of everything that decides a cubin's bytes."""
    parts = {
        "schema": SCHEMA,
        "spec": asdict(spec),  # type: ignore[call-overload]
        "source": digest,
        "nvrtc": version,
        "options": nvrtc.options(spec),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def compiled_elsewhere(folder: str | Path | None) -> None:
    """Take every kernel from a folder that export() made, whatever NVRTC made it, and from nowhere else.

    None goes back to the cache. Raises FileNotFoundError without a manifest, ValueError for an unreadable
    one.
    """
    take(kernels_of(folder))


def kernels_of(folder: str | Path | None) -> Kernels:
    """The kernels of a folder that export() made, or of the cache (None), for take(). Raises as compiled_elsewhere."""
    global _newest
    found = None if folder is None else exported.read(Path(folder))
    _newest += 1
    return Kernels(found, _newest)


def current() -> Kernels:
    """Where kernels are taken from now."""
    return Kernels(_override, epoch)


def take(kernels: Kernels) -> None:
    """Take kernels from there from now on; what was made with them when they were taken before is used again."""
    global _override, epoch
    _override, epoch = kernels.override, kernels.epoch


def uses_compiled_elsewhere() -> bool:
    """True while use_cubins() has named a folder."""
    return _override is not None


def export(specs: Iterable[KernelSpec], folder: str | Path, build: Build = nvrtc.compile) -> int:
    """Put the cubins of `specs`, compiled by this machine's NVRTC, into `folder` for use_cubins() elsewhere.

    Returns their number. What an earlier export put there stays, if the same NVRTC made it. The manifest is written
    last: a folder without one is unfinished.
    Raises RuntimeError while use_cubins is on, ValueError for a folder of another NVRTC, and what entry() raises.
    """
    if _override is not None:
        raise RuntimeError("export compiles with this machine's NVRTC: call use_cubins(None) first")
    target = Path(folder)
    exported.cubins_of(target, nvrtc.version())  # raises before anything is compiled
    target.mkdir(parents=True, exist_ok=True)
    specs = list(dict.fromkeys(specs))
    entries = {(made := entry(spec, build)).key: (made, spec) for spec in specs}
    for key, (made, _) in entries.items():
        for suffix in (".cubin", ".json"):
            replace_file(target / f"{key}{suffix}", trust.read_trusted(made.path.with_suffix(suffix)))
    exported.add(target, nvrtc.version(), {key: str(spec) for key, (_, spec) in entries.items()})
    return len(entries)


class _UnwritableError(Exception):
    """The folder takes no entry. Its text tells which and why."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(f"the kernel cache {folder} cannot be written ({error.strerror or error})")


def _build_in(folder: Path, spec: KernelSpec, source: Source, build: Build) -> Entry:
    key = key_of(spec, source.digest, nvrtc.version())
    with ExitStack() as stack:
        try:
            trust.make_folder(folder)
            locked = stack.enter_context(held(folder / f"{key}.lock", LOCK_TIMEOUT_S))
        except OSError as error:
            raise _UnwritableError(folder, error) from error
        if found := _find(folder, key):
            return found
        if not locked:
            _warn_once(f"the kernel cache {folder} could not be locked; compiling without the lock")
        made = build(spec, source)
        try:
            _publish(folder, key, spec, made)
        except OSError as error:
            raise _UnwritableError(folder, error) from error
    if found := _find(folder, key):
        return found
    raise _UnwritableError(folder, OSError("it does not return what is written to it"))


def _publish(folder: Path, key: str, spec: KernelSpec, made: Cubin) -> None:
    record = {
        "schema": SCHEMA,
        "key": key,
        "sha256": hashlib.sha256(made.image).hexdigest(),
        "spec": asdict(spec),  # type: ignore[call-overload]
        "nvrtc": nvrtc.version(),
        "registers": made.registers,
        "spill_bytes": made.spill_bytes,
        "warnings": made.warnings,
        "log": made.log,
    }
    replace_file(folder / f"{key}.cubin", made.image, trust.OWN_MODE)
    replace_file(folder / f"{key}.json", json.dumps(record, indent=1).encode(), trust.OWN_MODE)


def _find(folder: Path, key: str, *, from_anyone: bool = False) -> Entry | None:
    """The entry if it is there, whole, and nobody's but ours. Never raises for what a file may be or hold: that is a
    miss.

    from_anyone: whoever wrote it, for a folder that the caller has named.
    """
    path = folder / f"{key}.cubin"
    if not from_anyone and not trust.is_ours(folder):
        return None
    try:
        record: Any = trust.parsed_json(trust.read_trusted(folder / f"{key}.json", from_anyone=from_anyone))
        if record["schema"] != SCHEMA or record["key"] != key:
            return None
        image = trust.read_trusted(path, from_anyone=from_anyone)
        if hashlib.sha256(image).hexdigest() != record["sha256"]:
            return None
        major, minor = record["nvrtc"]
        return Entry(
            path=path,
            key=key,
            registers=int(record["registers"]),
            spill_bytes=int(record["spill_bytes"]),
            warnings=tuple(record["warnings"]),
            log=str(record["log"]),
            nvrtc=(int(major), int(minor)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _find_override(override: Exported, spec: KernelSpec, source: Source) -> Entry:
    key = key_of(spec, source.digest, override.nvrtc)
    found = _find(override.folder, key, from_anyone=True) if key in override.keys else None
    if found is None:
        state = "is corrupt" if key in override.keys else "is missing"
        raise UnsupportedError(
            f"{spec}: its cubin {key} {state} in {override.folder} ({len(override.keys)} cubins of NVRTC "
            f"{override.nvrtc[0]}.{override.nvrtc[1]}); export it again from these sources"
        )
    return found


@lru_cache(maxsize=1)
def _private_folder_of(process: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="omnicupy-"))

    def remove() -> None:
        if os.getpid() == process:  # a forked child must not take it from its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _private_folder(process: int) -> Path:
    with _private_lock:
        return _private_folder_of(process)


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
