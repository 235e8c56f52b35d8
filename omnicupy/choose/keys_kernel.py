"""The name of the kernel that makes dK and dV of a call, or all gradients: benchmark records keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omnicupy.call.check_backward import GRADIENTS
from omnicupy.call.problem import Problem
from omnicupy.choose.backward_prediction import keys_part
from omnicupy.choose.backward_traffic import may_prepare
from omnicupy.choose.ceilings import Device
from omnicupy.jit.backward_spec import BackwardSpec
from omnicupy.masks.mask import Mask
from omnicupy.schedule.backward_grid import BackwardGrid, lists_of


def keys_kernel(
    spec: BackwardSpec,
    problem: Problem,
    mask: Mask,
    device: Device,
    *,
    deterministic: bool,
    wanted: Sequence[str] = GRADIENTS,
) -> str:
    """The name among the parts of `spec`, which tells whether the kernel prepares, too; "dq" where dQ alone is wanted.
    mask: of all batch elements.
    """
    if "k" not in wanted and "v" not in wanted:
        return "dq"
    name = keys_part(spec, problem, (mask,), deterministic=deterministic, wanted=wanted)
    kernel = spec.part(name)
    if not may_prepare(kernel, problem, mask):
        return name
    grid = BackwardGrid(kernel, problem, 1, device.sm_count, device.l2_bytes)
    if not grid.prepares_beside(lists_of(kernel, (mask,), grid.workers)):
        return name
    preparing = replace(kernel, prepares=True)
    return next(other for other, one in spec.kernels().items() if one == preparing)
