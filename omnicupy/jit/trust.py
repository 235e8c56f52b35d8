"""Files and folders that somebody else may have made: what may be taken from them, and where this user's own are.

What a cache folder holds is run on the GPU, so nothing is taken that another user could have written: a file is read
that is regular, belongs to this user or to root, and cannot be written by others. All else is as if it were missing.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 26  # of a file that is read: 64 MiB
OWN_MODE = 0o600  # of files that this user alone reads and writes
_FOLDER_MODE = 0o700
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Without O_NONBLOCK the opening of a pipe waits for its other end. Windows has none of these.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def read_trusted(path: Path, *, from_anyone: bool = False) -> bytes:
    """All bytes of a regular file of at most MAX_BYTES, of this user or root, which nobody else can write.

    from_anyone: whoever it belongs to, for folders that the caller has named.
    Raises OSError for a file that is none of this, as for one that is missing; a link is none.
    """
    file = os.open(path, _FLAGS)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a regular file")
        if not from_anyone and not _is_ours(found):
            raise PermissionError(f"{path} could have been written by another user")
        with os.fdopen(file, "rb", closefd=False) as opened:
            content = opened.read(MAX_BYTES + 1)
    finally:
        os.close(file)
    if len(content) > MAX_BYTES:
        raise OSError(f"{path} is larger than {MAX_BYTES} bytes")
    return content


def parsed_json(content: bytes) -> Any:
    """What JSON text says. Raises ValueError for all that is not JSON of finite numbers and moderate depth."""
    try:
        return json.loads(content, parse_constant=_refuse_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def own_folder(base: Path) -> Path:
    """Where this user's files are: `base`, or a subfolder of it where others can write to it too or it is another
    user's. Neither needs to exist.
    """
    base = _followed(base)
    try:
        found = base.stat()
    except OSError:  # to be made, or for make_folder to find out
        return base
    if not stat.S_ISDIR(found.st_mode) or _is_ours(found):
        return base
    return base / f"user-{user_name()}"


def make_folder(folder: Path) -> None:
    """Make a folder of `own_folder` if need be, for this user alone. Raises OSError where it cannot be made or is not
    this user's.
    """
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    if not is_ours(folder):
        raise PermissionError(13, "it belongs to another user, or others can write to it", str(folder))


def is_ours(folder: Path) -> bool:
    """Is it a folder of this user or root, no link to one, in which nobody else can write? Else others could change a
    file after it was read and before it is loaded.
    """
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _is_ours(found)


def user_name() -> str:
    """A name for this user that no other user has: its number, where there are any."""
    return str(_user()) if hasattr(os, "getuid") else "self"


def _followed(base: Path) -> Path:
    """The folder that a link of this user's or root's leads to; other links are not followed."""
    try:
        found = base.lstat()
    except OSError:
        return base
    return Path(os.path.realpath(base)) if stat.S_ISLNK(found.st_mode) and _is_owner(found) else base


def _is_ours(found: os.stat_result) -> bool:
    return _is_owner(found) and (os.name == "nt" or not found.st_mode & _OTHERS_WRITE)


def _is_owner(found: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or found.st_uid in (0, _user())


def _user() -> int:
    return os.getuid()


def _refuse_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(found := float(text)):
        raise ValueError(f"{text} is too large")
    return found
