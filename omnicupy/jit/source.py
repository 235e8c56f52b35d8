"""The CUDA sources of one kernel: the entry file, every header it includes, a digest of their bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*(["<])([^">\n]+)[">]', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """One translation unit, complete: nothing outside it decides the compiled bytes.

    name: file name of the entry.  text: its bytes.  headers: (name as included, bytes), sorted by name; empty
    when it includes nothing.  digest: sha256 (hex) of all of them, names and lengths included.
    """

    name: str
    text: bytes
    headers: tuple[tuple[str, bytes], ...]
    digest: str


def kernels_dir() -> Path:
    """The folder of the CUDA sources: the installed package's own, else the checkout's `kernels/`.

    Raises FileNotFoundError when neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "kernels", package.parent / "kernels"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the kernel sources are missing: expected the folder 'kernels' in {package}; reinstall omnicupy"
    )


def load(name: str, root: Path | None = None) -> Source:
    """Read kernels/`name` and, transitively, every `#include "omni/..."`. root: in place of kernels_dir().

    The files are read anew at each call, so an edited header is seen at once.

    Raises FileNotFoundError for a missing file, ValueError for an include that is not spelled from the root:
    NVRTC gets the headers from memory and finds no other.
    """
    root = kernels_dir() if root is None else root
    text = _read(root, name, f"kernel source {name!r}")
    headers: dict[str, bytes] = {}
    waiting = [(name, include) for include in _includes(name, text)]
    while waiting:
        parent, header = waiting.pop()
        if header not in headers:
            headers[header] = _read(root, header, f"header {header!r}, included by {parent!r},")
            waiting += [(header, include) for include in _includes(header, headers[header])]
    ordered = tuple(sorted(headers.items()))
    return Source(name, text, ordered, _digest([(name, text), *ordered]))


def _read(root: Path, name: str, what: str) -> bytes:
    path = root / name
    if not path.is_file():
        raise FileNotFoundError(f"{what} is missing: expected the file {path}")
    return path.read_bytes()


def _includes(name: str, text: bytes) -> list[str]:
    found = [(quote, include.decode()) for quote, include in _INCLUDE.findall(text)]
    for quote, include in found:
        if quote != b'"' or not include.startswith("omni/") or ".." in include:
            raise ValueError(
                f'{name}: includes must be spelled from the kernels\' root (#include "omni/..."), '
                f"got {include!r}; NVRTC is given no other headers"
            )
    return [include for _, include in found]


def _digest(files: Iterable[tuple[str, bytes]]) -> str:
    """sha256 over names, lengths and bytes: no two different sets of files share a digest."""
    state = hashlib.sha256()
    for name, text in files:
        state.update(f"{len(name)} {name} {len(text)}\n".encode())
        state.update(text)
    return state.hexdigest()
