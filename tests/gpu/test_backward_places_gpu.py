"""Gradients on a device where sums of dQ share places, as they do where they would fill memory."""

from __future__ import annotations

from typing import Any

import pytest
from gradients_gpu import Gradients, bits, config_of, field_of, launches_of, poison_work_memory

import omnicupy as oc
from omnicupy.schedule import backward_grid

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_kernel")]
cp: Any = pytest.importorskip("cupy")


def _mask() -> Any:
    return oc.random(700, 1, text=(20, 90), image=(60, 200))


def _holes() -> Any:
    """Rows that see no key, a whole tile of them, too."""
    return oc.ranges([(30, 250, 0, 200), (400, 660, 410, 690)], 700, 700)


def _turn_heads(call: Gradients) -> list[int]:
    """Of the kernels that made dQ of sums, for how many heads of keys there were places at a time."""
    finishing = [launch for launch in launches_of(call.mask) if launch.kernel.finishes]
    return [field_of(launch, "turn_heads") for launch in finishing]


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize(("head_dim", "kv_heads"), [(128, 2), (128, 8), (80, 8)])
def test_heads_take_turns_at_the_places_of_sums(
    head_dim: int, kv_heads: int, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if their sums filled memory: places for those of one head of keys."""
    if config_of(cp, "sm90", head_dim) is None:
        pytest.skip("no kernel makes dQ of sums on this device")
    of_head = 8 // kv_heads * masks * -(-700 // 64) * 64 * 4 * head_dim
    monkeypatch.setattr(backward_grid, "MOST_UNSHARED_BYTES", 0)
    monkeypatch.setattr(backward_grid, "MOST_SUMS_BYTES", of_head)
    call = Gradients(cp, [_mask(), _holes()] if masks == 2 else _holes(), (2, 8, 700, head_dim), kv_heads)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        first = call.run()
        call.check(first)
        assert _turn_heads(call) == [1]
        for _ in range(30):
            poison_work_memory(cp, call.mask)
            assert bits(cp, call.run(out_grads=call.targets())) == bits(cp, first)
