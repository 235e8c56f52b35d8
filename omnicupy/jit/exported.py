"""Folders of cubins compiled elsewhere: a manifest says what is there, and which NVRTC made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnicupy.jit import trust
from omnicupy.jit.files import replace_file

SCHEMA = 1  # of keys, records and manifests; a new number leaves all old entries unread
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Exported:
    """A folder of cubins. keys: of its entries, as cache.key_of gives them."""

    folder: Path
    nvrtc: tuple[int, int]
    keys: frozenset[str]


def read(folder: Path) -> Exported:
    """What a folder holds. Raises FileNotFoundError without a manifest, ValueError for an unreadable one."""
    version, cubins = _parsed(folder)
    return Exported(folder, version, frozenset(cubins))


def check(folder: Path, version: tuple[int, int]) -> None:
    """Raises ValueError for a folder that cubins of this NVRTC cannot be added to: it holds another one's."""
    if (folder / MANIFEST).is_file() and (found := _parsed(folder)[0]) != version:
        raise ValueError(
            f"cubins: {folder} holds those of NVRTC {found[0]}.{found[1]}, got {version[0]}.{version[1]}; name another "
            "folder"
        )


def add(folder: Path, version: tuple[int, int], cubins: dict[str, str]) -> None:
    """Add entries that lie in the folder to its manifest. cubins: key -> spec, in words. Raises as check."""
    check(folder, version)
    before = _parsed(folder)[1] if (folder / MANIFEST).is_file() else {}
    content = {"schema": SCHEMA, "nvrtc": version, "cubins": before | cubins}
    replace_file(folder / MANIFEST, json.dumps(content, indent=1).encode())


def _parsed(folder: Path) -> tuple[tuple[int, int], dict[str, str]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"cubins: expected the file {path}; make the folder with cache.export")
    try:
        manifest: dict[str, Any] = trust.parsed_json(trust.read_trusted(path, from_anyone=True))
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"schema {manifest['schema']}, expected {SCHEMA}")
        major, minor = manifest["nvrtc"]
        return (int(major), int(minor)), dict(manifest["cubins"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cubins: {path} is not a manifest of cache.export ({error}); make the folder anew"
        ) from error
