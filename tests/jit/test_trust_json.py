"""JSON that somebody else may have written: every reader survives what it may hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnicupy.choose import ceilings, saved
from omnicupy.jit import exported, trust
from omnicupy.tools.bench import records
from omnicupy.tools.verify import attestation

DEEP = b"[" * 200_000 + b"]" * 200_000
INFINITE = (b"1e999", b"-1e999", b"Infinity", b"NaN")


@pytest.mark.parametrize(
    "content", [DEEP, b'{"a":' * 100_000, *INFINITE, b"\xff", b"", b"9" * 5000], ids=range(9)
)
def test_what_is_no_json(content: bytes) -> None:
    with pytest.raises(ValueError):
        trust.parsed_json(content)


READERS: dict[str, Callable[[Path], Any]] = {
    "ceilings": ceilings.load,
    "bench": records.load,
    "tuned": lambda path: saved._read(path).problem or pytest.fail("it was taken"),
    "attestation": lambda path: attestation._read(path)[0] and pytest.fail("it was taken"),
    "manifest": lambda path: exported.read(path.parent),
}


@pytest.mark.parametrize("content", [DEEP, *INFINITE, b"[]", b"3", b'{"schema": 1e999}'], ids=range(8))
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_survives(tmp_path: Path, reader: str, content: bytes) -> None:
    path = tmp_path / exported.MANIFEST
    path.write_bytes(content)
    path.chmod(0o600)
    if reader in ("tuned", "attestation"):
        READERS[reader](path)
    else:
        with pytest.raises(ValueError, match=str(path)):
            READERS[reader](path)


def test_json_is_parsed_in_one_place() -> None:
    package = Path(trust.__file__).parents[1]
    found = [path for path in package.rglob("*.py") if "json.load" in path.read_text()]
    # The others read what a process of their own printed, where a result may be NaN.
    assert {path.name for path in found} == {"trust.py", "host.py", "step.py"}
