"""Kernels that take turns: one that has no turn is compiled under --every-kernel alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from omnicupy.jit.spec import KernelSpec


def in_turn(specs: Iterable[KernelSpec], has_turn: Callable[[int, Any], bool]) -> list[Any]:
    """Each spec once, as a parameter of a test. has_turn: of its place in `specs`, and of itself."""
    marks = {True: (), False: pytest.mark.every_kernel}
    return [
        pytest.param(spec, marks=marks[bool(has_turn(i, spec))])
        for i, spec in enumerate(dict.fromkeys(specs))
    ]


def with_turn(parameters: Iterable[Any]) -> list[Any]:
    """The specs of `in_turn` that every run compiles."""
    return [one.values[0] for one in parameters if not one.marks]
