"""Plans of forward calls whose values have another width than keys."""

from __future__ import annotations

from typing import Any

import fake_device
import ml_dtypes
import numpy as np
import pytest
from fake_device import ndarray

import omnicupy as oc
from omnicupy.call.problem import Problem
from omnicupy.choose import classes, prediction
from omnicupy.errors import UnsupportedError
from omnicupy.jit.spec import AttnSpec
from omnicupy.schedule.grid import Grid, part_bytes

BF16 = np.dtype(ml_dtypes.bfloat16)
SPEC = AttnSpec(
    arch="sm_90a",
    kernel="sm90",
    dtype="bfloat16",
    head_dim=192,
    value_dim=128,
    br=128,
    bc=64,
    stages=2,
    warps=12,
)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> fake_device.Device:
    return fake_device.install(monkeypatch)


def _inputs(head_dim: int, value_dim: int, tokens: int = 5000) -> list[ndarray]:
    shapes = ((2, 8, tokens, head_dim), (2, 2, tokens, head_dim), (2, 2, tokens, value_dim))
    return [ndarray(shape, BF16) for shape in shapes]


@pytest.mark.parametrize("config", [None, SPEC], ids=["chosen", "config"])
def test_what_a_call_is_launched_with(device: fake_device.Device, config: Any) -> None:
    q, k, v = _inputs(192, 128)
    out = oc.attention(q, k, v, oc.causal(5000), config=config)
    (launched,), (spec,) = device.launches, device.kernels
    p = launched["params"]
    assert (spec.kernel, spec.head_dim, spec.value_dim) == ("sm90", 192, 128)
    assert out.shape == (2, 8, 5000, 128)
    assert list(p["out_strides"]) == [8 * 5000 * 128, 5000 * 128, 128]
    assert (p["head_dim"], p["value_dim"]) == (192, 128)
    for name, array in (("q_map", q), ("k_map", k), ("v_map", v)):
        words = [int(word) for word in p[name].astype(np.int64)]
        assert words[1:5] == list(array.shape)
        assert words[5:9] == list(array.strides)


def test_the_table_has_a_tile_for_latent_attention(device: fake_device.Device) -> None:
    oc.attention(*_inputs(192, 128), oc.causal(5000))
    oc.attention(*_inputs(192, 192), oc.causal(5000))
    own, equal = device.kernels
    assert (own.br, own.bc) == (128, 128)
    assert (equal.br, equal.bc) == (128, 96)


def test_widths_that_round_up_to_one_number_stay_apart(device: fake_device.Device) -> None:
    q, k, v = _inputs(40, 48)
    assert oc.attention(q, k, v).shape[-1] == 48
    assert (device.kernels[0].head_dim, device.kernels[0].value_dim) == (48, 64)


def test_other_pairs_are_refused_by_name(device: fake_device.Device) -> None:
    with pytest.raises(UnsupportedError, match="512"):
        oc.attention(*_inputs(576, 512, tokens=64))
    assert not device.launches


@pytest.mark.parametrize("value_dim", [192, 64])
def test_a_config_of_other_widths_is_refused(device: fake_device.Device, value_dim: int) -> None:
    """It would read and write past the ends of rows."""
    config = AttnSpec(
        arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=192, value_dim=value_dim, br=64, bc=64
    )
    with pytest.raises(ValueError, match=rf"config must have .*128.*got .*{value_dim}"):
        oc.attention(*_inputs(192, 128), config=config)
    assert not device.launches


def test_parts_and_sections_count_both_widths() -> None:
    problem = Problem(2, 8, 2, 64, 9000, 192, "bfloat16", value_dim=128)
    grid = Grid.of(SPEC, problem, 1, sm_count=132, l2_bytes=50 << 20)
    assert part_bytes(SPEC, problem) == 4 * 128 * (128 + 8)
    wide = Problem(2, 8, 2, 64, 9000, 192, "bfloat16")
    assert prediction.operand_bytes(problem) * 384 == prediction.operand_bytes(wide) * 320
    head_bytes = 2 * 9000 * (192 + 128)
    small = Grid.of(SPEC, problem, 1, sm_count=132, l2_bytes=4 * head_bytes)
    assert (grid.section(1), small.section(1)) == (16, 8)


def test_classes_of_tuned_choices_tell_widths_apart() -> None:
    mask = oc.full(100)
    made = {
        classes.class_of(Problem(1, 2, 2, 100, 100, 192, "float16", value_dim=value_dim), [mask], 132)
        for value_dim in (192, 128, 120)
    }
    assert {one.value_dim for one in made} == {192, 128}
