"""Masks are made outside of the graphs of torch.compile, which would trace their NumPy as operations on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch

import omnicupy
from omnicupy.masks.mask import Mask
from omnicupy.torch.mask_mods import from_mask_mod

WHY = "a mask is no part of a graph; make it outside of what is compiled, and pass it as an argument"
_PACKAGES = ("omnicupy.masks", "omnicupy.presets")


def keep_apart() -> None:
    """Have torch.compile leave what makes masks to Python: its graph breaks there, or, where it is to be one graph, it
    says why it cannot.

    This is torch.compiler.disable, but for functions that stay what they are, and without torch._dynamo, which takes a
    second to import.
    """
    frames: Any = torch._C._dynamo.eval_frame
    skips = None
    if hasattr(frames, "_FrameExecStrategy"):  # older versions cannot leave out what a function calls
        skips = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
    for function in _makers():
        function._torchdynamo_disable, function._torchdynamo_disable_msg = True, WHY
        if skips is not None:
            frames.set_code_exec_strategy(function.__code__, skips)


def _makers() -> Iterator[Any]:
    """The public functions and methods that make masks."""
    yield from_mask_mod
    for owner in (omnicupy, omnicupy.presets):
        found = (getattr(owner, name) for name in owner.__all__)
        yield from (
            one for one in found if isinstance(one, FunctionType) and one.__module__.startswith(_PACKAGES)
        )
    for kind in Mask.__mro__[:-1]:
        yield from (one for one in vars(kind).values() if isinstance(one, FunctionType))
