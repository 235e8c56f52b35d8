"""Options that reach attention by name: every one that transformers passes is used, harmless or refused."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
import transformers_names  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward, masking, options  # noqa: E402

ROWS = 40


class Layer(torch.nn.Module):
    is_causal = True


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.in_turn(8, at=6)
def test_every_name_that_the_installed_version_passes_has_its_place() -> None:
    found = transformers_names.names()
    assert len(found) > 25
    assert {"cu_seq_lens_q", "sliding_window", "s_aux", "position_bias", "softcap"} <= found.keys()
    missing = found.keys() - options.USED.keys() - options.HARMLESS.keys() - options.REFUSED.keys()
    assert not missing, {name: found[name] for name in missing}


def test_every_mask_option_that_the_installed_version_passes_has_its_place() -> None:
    found = transformers_names.mask_options()
    own = set(inspect.signature(masking.make_mask).parameters)
    assert {"mask_function", "q_offset", "local_size"} <= found.keys()
    assert not found.keys() - own - options.MASK_HARMLESS.keys()


def test_a_name_has_one_place_and_a_reason() -> None:
    tables = (options.USED, options.HARMLESS, options.REFUSED)
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert all(len(reason) > 10 for table in tables for reason in table.values())


@pytest.mark.parametrize("name", options.REFUSED)
def test_refused_names_raise(name: str) -> None:
    with pytest.raises(oc.UnsupportedError, match=f"Layer asks for {options.REFUSED[name]} \\({name}: "):
        _call(**{name: torch.ones(2)})
    assert torch.equal(_call(**{name: None}), _call())


@pytest.mark.parametrize("name", options.HARMLESS)
def test_harmless_names_change_nothing(name: str) -> None:
    assert torch.equal(_call(**{name: torch.ones(2)}), _call())


def test_an_unknown_name_raises_at_every_call_unless_it_is_ignored() -> None:
    name = oc.transformers.register()
    model, ids = tiny.model("llama", name), torch.arange(2, 12)[None]
    wanted = model(ids).logits
    for value in (0, False, "x"):
        for _ in range(2):
            with pytest.raises(oc.UnsupportedError, match="LlamaAttention passes my_option"):
                model(ids, my_option=value)
    assert torch.equal(model(ids, my_option=None).logits, wanted)
    model.set_attn_implementation(oc.transformers.register("mine", ignore=["my_option"]))
    assert torch.equal(model(ids, my_option=1).logits, wanted)
    with pytest.raises(oc.UnsupportedError, match="passes another"):
        model(ids, another=1)


def test_an_unknown_option_of_a_mask_raises_unless_it_is_ignored() -> None:
    sizes = {"batch_size": 1, "q_length": 4, "kv_length": 4}
    with pytest.raises(oc.UnsupportedError, match=r"a mask is asked for with tilt \(3\)"):
        masking.make_mask(**sizes, tilt=3)
    assert masking.make_mask(**sizes, tilt=3, ignored={"tilt"}).masks == masking.make_mask(**sizes).masks


def _call(mask: Any = None, rows: int = ROWS, keys: int = ROWS, is_causal: Any = None, **given: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, rows), (2, keys), (2, keys)))
    return forward.attention(Layer(), q, k, v, mask, is_causal=is_causal, **given)[0]


def _dense_call(dense: np.ndarray, **sizes: int) -> Any:
    return _call(oc.transformers.attention_mask(oc.from_dense(dense)), **sizes)


def _of_bounds(q: list[int], k: list[int], is_causal: bool, window: int | None) -> np.ndarray:
    """As flash attention: causal and window are aligned at the end of each sequence."""
    dense = np.zeros((q[-1], k[-1]), np.bool_)
    for (q0, q1), (k0, k1) in zip(pairwise(q), pairwise(k), strict=True):
        ahead = np.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - np.arange(k1 - k0)
        seen = ahead >= 0 if is_causal else np.ones_like(ahead, np.bool_)
        dense[q0:q1, k0:k1] = seen & (window is None or abs(ahead) < (window or 0))
    return dense


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(
    ("q", "k"),
    [
        ([0, 8, 8, 23, ROWS], None),
        ([0, 8, 8, 23, ROWS], [0, 3, 9, 30, 33]),
        ([0, 0, 20, ROWS], [0, 4, 4, 50]),
        ([0, ROWS], [0, 7]),
    ],
)
def test_sequences_by_their_bounds(
    q: list[int], k: list[int] | None, is_causal: bool, window: int | None
) -> None:
    wanted = _dense_call(_of_bounds(q, k or q, is_causal, window), keys=(k or q)[-1])
    given = {"cu_seq_lens_q": torch.tensor(q, dtype=torch.int32), "sliding_window": window}
    if k is not None:
        given["cu_seq_lens_k"] = torch.tensor(k)
    assert torch.equal(_call(keys=(k or q)[-1], is_causal=is_causal, **given), wanted)


@pytest.mark.parametrize("form", ["masks", "tensor"])
def test_bounds_beside_a_mask_keep_the_sequences_apart(form: str) -> None:
    mask = oc.segments([("text", 10), ("image", 20), ("text", 10)])
    dense = mask.to_dense() & _of_bounds([0, 15, ROWS], [0, 15, ROWS], False, None)
    given = oc.transformers.attention_mask(mask) if form == "masks" else torch.from_numpy(mask.to_dense())
    given = given if form == "masks" else given[None, None]
    bounds = torch.tensor([0, 15, ROWS])
    found = _call(given, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=25, sliding_window=3)
    assert torch.equal(found, _dense_call(dense))
    assert not torch.equal(found, _call(given))


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_window_without_a_mask(is_causal: bool) -> None:
    dense = _of_bounds([0, ROWS], [0, ROWS], is_causal, 6)
    assert torch.equal(_call(sliding_window=6, is_causal=is_causal), _dense_call(dense))


def test_bounds_of_a_model_that_gets_them_beside_its_mask() -> None:
    model = tiny.model("llama", oc.transformers.register())
    ids = torch.arange(2, 22)[None]
    bounds = torch.tensor([0, 8, 20], dtype=torch.int32)
    mask = oc.transformers.attention_mask(oc.presets.varlen([0, 8, 20], causal=True))
    wanted = model(ids, attention_mask=mask).logits
    assert torch.equal(model(ids, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds).logits, wanted)
    assert not torch.equal(model(ids).logits, wanted)
