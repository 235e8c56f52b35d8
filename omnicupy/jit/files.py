"""The user's folder, locks between processes, and files written whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omnicupy.jit import trust


def own_directory() -> Path:
    """Where this user's files are: directory(), or this user's part of it where it is shared. It may not exist yet."""
    return trust.own_folder(directory())


def directory() -> Path:
    """The cache folder (it may not exist yet): OMNICUPY_CACHE_DIR, else the platform's folder for caches, and in a
    process without a home (a container's user without a name) one in the folder for temporary files.
    """
    try:
        return _directory()
    except RuntimeError:  # pathlib finds no home
        return Path(tempfile.gettempdir()) / f"omnicupy-{trust.user_name()}"


def _directory() -> Path:
    if named := os.environ.get("OMNICUPY_CACHE_DIR"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "omnicupy" / "cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "omnicupy"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnicupy"


def replace_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file all or nothing: a reader sees the old one or the whole new one. Raises OSError.

    mode: its permissions, less those that the process takes from every file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        with os.fdopen(file, "wb") as opened:
            opened.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


try:
    import fcntl
except ImportError:  # not a POSIX system: the file's existence is the lock
    fcntl = None  # type: ignore[assignment]

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.1


@contextmanager
def held(path: Path, timeout_s: float) -> Iterator[bool]:
    """Hold the lock `path` for the body. Yields False when it could not be had: the wait ran past `timeout_s`
    seconds, or the file system has no locks; the body then runs without it and must be safe to run twice.

    Raises OSError when the lock's file cannot be made (read-only folder), or is a link or no regular file.
    """
    if fcntl is None:
        with _held_by_existence(path, timeout_s) as got:
            yield got
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, trust.OWN_MODE)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{path} is not a regular file")
        got = _wait(lambda: _try_flock(file), timeout_s)
        try:
            yield got
        finally:
            if got:  # a child that was forked meanwhile has the file open, too: closing it would not unlock
                fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)  # the file stays, since removing it would race with a waiter


def _try_flock(file: int) -> bool | None:
    """True: locked. False: another holds it. None: this file system cannot lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return None
    return True


@contextmanager
def _held_by_existence(path: Path, timeout_s: float) -> Iterator[bool]:
    got = _wait(lambda: _try_create(path, timeout_s), timeout_s)
    try:
        yield got
    finally:
        if got:
            path.unlink(missing_ok=True)


def _try_create(path: Path, stale_s: float) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, trust.OWN_MODE))
        return True
    except FileExistsError:
        try:
            if time.time() - path.stat().st_mtime > stale_s:  # its holder was killed
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        return False


def _wait(attempt: Callable[[], bool | None], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    pause = _FIRST_PAUSE_S
    while not (got := attempt()):
        if got is None or time.monotonic() >= deadline:
            return False
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    return True
