"""Plans of gradients where values have another width than keys: arrays, copies, maps, structs and work memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import fake_backward
import pytest
from fake_backward import Call, map_of, parts
from fake_device import BF16, ndarray

import omnicupy as oc
from omnicupy.call import check_masks
from omnicupy.choose import backward_table
from omnicupy.errors import UnsupportedError
from omnicupy.gpu import backward as gpu_backward
from omnicupy.jit.backward_spec import padded_rows

BATCH, Q_HEADS, KV_HEADS, TOKENS = 2, 4, 2, 300
SPECS = {
    "naive": backward_table.naive("sm_90", "bfloat16", 192, value_dim=128),
    "sm80": next(
        row.spec("sm_90", "bfloat16", 192, 128)
        for row in backward_table.TABLE
        if row.kernel == "sm80" and row.serves("sm_100", 192)
    ),
    "sm90": None,
}


class Latent(Call):
    """q and k of one width, v, out and dout of another one."""

    def __init__(self, head_dim: int = 192, value_dim: int = 128) -> None:
        super().__init__(batch=BATCH, heads=Q_HEADS, kv_heads=KV_HEADS, head_dim=head_dim)
        self.v = ndarray((BATCH, KV_HEADS, TOKENS, value_dim), BF16, 0)
        self.dout, self.out = (ndarray((BATCH, Q_HEADS, TOKENS, value_dim), BF16, 0) for _ in range(2))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    check_masks._full.cache_clear()
    return fake_backward.install(monkeypatch)


@pytest.mark.parametrize("config", SPECS)
def test_structs_say_how_wide_either_is(device: Any, config: str) -> None:
    call = Latent()
    gradients = oc.attention_backward(*call.arrays, oc.causal(TOKENS), config=SPECS[config])
    assert [one.shape for one in gradients] == [one.shape for one in (call.q, call.k, call.v)]
    assert parts(device.launches) == ["prepare", "dkdv", "dq"]
    assert {launched["spec"].kernel for launched in device.launches[1:]} == {config}
    arrays = {"q": call.q, "k": call.k, "v": call.v, "out": call.out, "dout": call.dout}
    arrays |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    for launched in device.launches:
        assert (launched["spec"].head_dim, launched["spec"].value_dim) == (192, 128)
        p = launched["params"]
        assert (p["head_dim"], p["value_dim"]) == (192, 128)
        for name, array in arrays.items():
            assert p[name] == array.data.ptr
            assert list(p[f"{name}_strides"]) == [stride // 2 for stride in array.strides[:3]]


def test_tensor_maps_have_the_columns_of_their_arrays(device: Any) -> None:
    call = Latent()
    oc.attention_backward(*call.arrays, oc.causal(TOKENS))
    for launched in device.launches[1:]:
        for name, array in (("q", call.q), ("k", call.k), ("v", call.v), ("dout", call.dout)):
            found = map_of(launched, f"{name}_map")
            assert (found["pointer"], found["shape"]) == (array.data.ptr, list(array.shape))


@pytest.mark.parametrize("config", SPECS)
def test_copies_are_as_wide_as_what_they_are_of(device: Any, config: str) -> None:
    call = Latent()
    mask = oc.ranges([(20, 300, 0, 250)], TOKENS, TOKENS)  # with dead rows and dead keys
    oc.attention_backward(*call.arrays, mask, config=SPECS[config])
    prepare, *others = device.launches
    places = {name: int(prepare["params"][f"{name}_copy"]) for name in ("q", "dout", "k", "v")}
    sizes = {name: getattr(call, name).nbytes for name in places}
    (scratch,) = device.scratch
    ordered = sorted((place, sizes[name]) for name, place in places.items())
    assert ordered[0][0] == scratch.data.ptr + 2 * 4 * BATCH * Q_HEADS * padded_rows(TOKENS)
    for (first, size), (after, _) in pairwise(ordered):
        assert first + size <= after < first + size + 256
    assert sum(ordered[-1]) <= scratch.data.ptr + scratch.nbytes
    for launched in others:
        for name, place in places.items():
            _, heads, tokens, columns = getattr(call, name).shape
            assert launched["params"][name] == place
            assert list(launched["params"][f"{name}_strides"]) == [
                heads * tokens * columns,
                tokens * columns,
                columns,
            ]


@pytest.mark.parametrize(("head_dim", "value_dim"), [(128, 64), (64, 128)])
def test_sums_of_dq_are_as_wide_as_keys(device: Any, head_dim: int, value_dim: int) -> None:
    call = Latent(head_dim, value_dim)
    spec = replace(backward_table.pick("sm_90", "bfloat16", head_dim, value_dim=value_dim), ordered=None)
    oc.attention_backward(*call.arrays, oc.causal(TOKENS), deterministic=False, config=spec)
    assert parts(device.launches) == ["prepare", "fused", "convert"]
    ((_, zeroed, _, _),) = device.zeroed
    assert zeroed == 4 * BATCH * Q_HEADS * padded_rows(TOKENS) * head_dim


def test_another_width_is_another_plan(device: Any) -> None:
    mask = oc.causal(TOKENS)
    for value_dim, kernels in ((128, 3), (192, 6), (128, 6), (64, 9)):
        oc.attention_backward(*Latent(192, value_dim).arrays, mask)
        assert len(device.kernels) == kernels
        assert device.launches[-1]["spec"].value_dim == value_dim


def test_widths_that_round_up_to_one_number_have_kernels_that_tell_them_apart(device: Any) -> None:
    oc.attention_backward(*Latent(56, 64).arrays, oc.causal(TOKENS))
    spec, p = device.launches[-1]["spec"], device.launches[-1]["params"]
    assert (spec.head_dim, spec.value_dim) == (64, 80)
    assert (p["head_dim"], p["value_dim"]) == (56, 64)


def test_what_a_first_pass_needs_is_prepared_for_the_width_of_v(device: Any) -> None:
    call, mask = Latent(), oc.causal(TOKENS)
    gpu_backward.prepare_backward(call.q, call.k, call.v, mask)
    ready = len(device.kernels)
    oc.attention_backward(*call.arrays, mask)
    assert len(device.kernels) == ready == 3


@pytest.mark.parametrize("value_dim", [192, 144])
def test_a_config_of_another_width_is_refused(device: Any, value_dim: int) -> None:
    config = backward_table.pick("sm_90", "bfloat16", 192, value_dim=value_dim)
    with pytest.raises(ValueError) as caught:
        oc.attention_backward(*Latent().arrays, config=config)
    assert str(caught.value) == (
        f"config must have value_dim 128 (for v of 128 columns beside 192 of q), got {value_dim}"
    )
    assert not device.launches


@pytest.mark.parametrize(("head_dim", "value_dim"), [(576, 512), (64, 512), (248, 256)])
def test_widths_that_no_kernel_serves_are_refused(device: Any, head_dim: int, value_dim: int) -> None:
    with pytest.raises(UnsupportedError, match=f"{value_dim} columns where q and k have {head_dim}"):
        oc.attention_backward(*Latent(head_dim, value_dim).arrays)
    with pytest.raises(UnsupportedError, match=f"{value_dim} columns where q and k have {head_dim}"):
        backward_table.pick("sm_90", "bfloat16", head_dim, value_dim=value_dim)
    assert not device.launches
