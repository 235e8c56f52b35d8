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


def cubins_of(folder: Path, version: tuple[int, int]) -> dict[str, str]:
    """What a folder holds that cubins of this NVRTC are to be added to, key -> spec, in words; nothing of a new one.

    Raises ValueError for a folder of another NVRTC, and for an unreadable manifest.
    """
    if not (folder / MANIFEST).is_file():
        return {}
    found, cubins = _parsed(folder)
    if found != version:
        raise ValueError(
            f"cubins: {folder} holds those of NVRTC {found[0]}.{found[1]}, got {version[0]}.{version[1]}; name another "
            "folder"
        )
    return cubins


def add(folder: Path, version: tuple[int, int], cubins: dict[str, str]) -> None:
    """Add entries that lie in the folder to its manifest. cubins, errors: as of cubins_of."""
    content = {"schema": SCHEMA, "nvrtc": version, "cubins": cubins_of(folder, version) | cubins}
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
