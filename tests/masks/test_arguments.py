"""What calls on a device make of the mask argument before they look it up."""

from __future__ import annotations

from typing import Any

import fake_device
import ml_dtypes
import numpy as np
import pytest
from fake_device import ndarray

import omnicupy as oc

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def test_an_array_for_a_mask_is_refused_by_name(device: fake_device.Device) -> None:
    """Its truth value, which a look-up might ask for, is an error of another kind."""
    arrays = [ndarray((2, 4, 300, 64), BF16) for _ in range(3)]
    for call in (oc.attention, oc.prepare):
        with pytest.raises(TypeError, match=r"a boolean array becomes one with from_dense$"):
            call(*arrays, np.ones((300, 300), np.bool_))


@pytest.mark.parametrize("as_list", [list, tuple])
def test_a_list_of_one_mask_is_planned_once(device: fake_device.Device, as_list: Any) -> None:
    mask = oc.causal(300)
    arrays = [ndarray((1, 4, 300, 64), BF16) for _ in range(3)]
    for masks in (as_list([mask]), as_list([mask]), mask):
        oc.attention(*arrays, masks)
    assert len(device.launches) == 3
    assert len(mask._device[()].plans) == 2  # of the mask, and of lists of it
    assert len(device.uploads) == 1
    with pytest.raises(ValueError, match=r"^mask\[0\]"):
        oc.attention(*arrays, as_list([oc.causal(299)]))
    two = [ndarray((2, 4, 300, 64), BF16) for _ in range(3)]
    oc.attention(*two, mask)
    with pytest.raises(ValueError, match=r"^mask"):
        oc.attention(*two, as_list([mask]))
