"""Argument checks of `config`, of both passes."""

from __future__ import annotations

from typing import Any

from omnicupy.call.problem import Problem, type_name
from omnicupy.jit.spec import round_up


def check_config(config: Any, kind: str, found: Problem, *, is_kind: bool, on_gpu: bool) -> None:
    """Raises TypeError or ValueError unless the kernels of a config serve such a problem.

    kind: what it must be, with its article.  is_kind: whether it is.
    """
    if not is_kind:
        raise TypeError(f"config must be {kind} or None (chosen by the table), got {type_name(config)}")
    if not on_gpu:
        raise ValueError("config must be None for NumPy arrays: it chooses a GPU kernel; pass CuPy arrays")
    if config.dtype != found.dtype:
        raise ValueError(f"config must have the dtype of q ({found.dtype}), got {config.dtype}")
    if config.head_dim != (wanted := round_up(found.head_dim, 16)):
        raise ValueError(
            f"config must have head_dim {wanted} (that of q, {found.head_dim}, rounded up to 16), "
            f"got {config.head_dim}"
        )
    if config.softcap != found.softcap:
        raise ValueError(
            f"config must have softcap={found.softcap} for a call with{'' if found.softcap else 'out'} a softcap, got "
            f"{config.softcap}; replace it with dataclasses.replace(config, softcap={found.softcap})"
        )
