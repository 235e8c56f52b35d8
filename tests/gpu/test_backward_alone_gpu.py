"""Gradients on a device where one kernel makes lse2, delta and dQ, too: right, and always the same bits."""

from __future__ import annotations

from typing import Any

import pytest
from gradients_gpu import Gradients, bits, config_of, launches_of, poison_work_memory

import omnicupy as oc
from omnicupy.schedule import backward_grid

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")
LENGTH = 1500


def _mask() -> Any:
    return oc.random(LENGTH, 1, text=(20, 90), image=(60, 400))


def _launched(mask: Any) -> list[bool]:
    """Of the kernels that were planned: do they make lse2 and delta?"""
    return [launch.kernel.prepares for launch in launches_of(mask)]


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize(("head_dim", "kv_heads"), [(128, 2), (128, 8), (96, 8), (80, 8)])
def test_the_bits_are_those_behind_a_launch_that_prepares(
    head_dim: int, kv_heads: int, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if config_of(cp, "sm90", head_dim) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    monkeypatch.setattr(backward_grid, "FEW_ADDITIONS", 0)
    monkeypatch.setattr(backward_grid, "MANY_ADDITIONS", 1 << 20)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        found = []
        for alone in (False, True):
            monkeypatch.setattr(backward_grid.BackwardGrid, "prepares_beside", lambda *_, alone=alone: alone)
            call = Gradients(
                cp,
                [_mask(), oc.causal(LENGTH)] if masks == 2 else _mask(),
                (2, 8, LENGTH, head_dim),
                kv_heads,
            )
            made = call.run()
            assert _launched(call.mask) == ([True] if alone else [False, False])
            found.append(bits(cp, made))
        call.check(made)
        assert found[0] == found[1]
        for _ in range(30):
            poison_work_memory(cp, call.mask)
            assert bits(cp, call.run(out_grads=call.targets())) == found[1]
