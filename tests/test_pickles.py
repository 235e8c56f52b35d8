"""Pickles name public classes as the caller does, so that files may move."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import numpy as np
import pytest

import omnicupy as oc

SPEC = oc.AttnSpec(arch="sm_80", kernel="sm80", dtype="float16", head_dim=64, br=64, bc=64)
TILE = oc.TileShape(64, 64, 1, 4)
GRADIENTS = oc.BackwardSpec(arch="sm_80", kernel="naive", dtype="float16", head_dim=64, dkdv=TILE, dq=TILE)
MASK = oc.segments([("text", 9), ("image", 20)])
BITS = oc.from_dense(np.random.default_rng(0).random((40, 40)) < 0.5)
PICKLED = [MASK, BITS, MASK.blocks(16, 32), BITS.blocks(16, 32), SPEC, GRADIENTS]
PICKLED += [oc.TileShape(64, 128), oc.UnsupportedError("why"), oc.CompileError("what", "log")]


def _globals(data: bytes) -> set[str]:
    """Every module attribute that loading the pickle looks up."""
    found, strings = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        if "UNICODE" in opcode.name or opcode.name == "BINUNICODE8":
            strings.append(argument)
        if opcode.name == "GLOBAL":
            found.add(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
    return found


@pytest.mark.parametrize("value", PICKLED, ids=lambda value: type(value).__name__)
def test_a_pickle_names_nothing_of_ours_but_public_names(value: Any) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(value, protocol)
        ours = {name for name in _globals(data) if name.startswith("omnicupy")}
        parts = {"omnicupy.TileShape"} if isinstance(value, oc.BackwardSpec) else set()
        assert ours - parts == {f"omnicupy.{type(value).__name__}"}
        assert b"omnicupy." not in data
        assert type(pickle.loads(data)) is type(value)


def test_every_public_class_says_where_it_is() -> None:
    classes = [value for name in oc.__all__ if isinstance(value := getattr(oc, name), type)]
    assert {cls.__module__ for cls in classes} == {"omnicupy"}
