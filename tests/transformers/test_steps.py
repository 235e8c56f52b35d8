"""Steps of decoding whose keys a table on the device names: the tokens of eager, whatever pads and caches them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import table_gpu  # noqa: E402 - after what it needs
import tiny_models as tiny  # noqa: E402
from transformers import masking_utils as library  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.torch import key_tables  # noqa: E402
from omnicupy.transformers import masking, on_device  # noqa: E402

NAME = oc.transformers.register()


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    return table_gpu.install(monkeypatch)


def _pair(name: str, **changes: Any) -> tuple[Any, Any]:
    return tiny.model(name, "eager", **changes), tiny.model(name, NAME, **changes)


def _generated(models: tuple[Any, Any], inputs: dict[str, Any], **how: Any) -> None:
    how = {"max_new_tokens": 14, "do_sample": False} | how
    wanted, found = (model.generate(**inputs, **how) for model in models)
    assert torch.equal(found, wanted)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "cache"), tiny.CACHES)
def test_generated_tokens(name: str, cache: str | None, side: str, fake: Any) -> None:
    _generated(_pair(name), tiny.MODELS[name].inputs(side), cache_implementation=cache)
    # Masks of images are the host's: with a static cache their functions are asked in steps, too.
    assert bool(fake.launches) == ((name, cache) not in (("gemma3", "static"), ("paligemma", "static")))


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_generation_has_one_plan_and_reads_nothing(
    cache: str | None, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve steps and three layers: lists are made once a step."""
    ours, inputs = tiny.model("llama", NAME), tiny.text_rows("left", 7, 30)
    monkeypatch.setattr(key_tables.SeenKeys, "on_host", None)
    ours.generate(**inputs, max_new_tokens=13, do_sample=False, cache_implementation=cache)
    assert (fake.launches, fake.lists, len(fake.plans)) == (36, 12, 1)


def _random_function(rng: Any, depth: int = 2) -> Any:
    if depth and rng.integers(2):
        join = (library.and_masks, library.or_masks)[rng.integers(2)]
        return join(*(_random_function(rng, depth - 1) for _ in range(rng.integers(1, 4))))
    size = int(rng.integers(1, 9))
    left = torch.from_numpy(rng.integers(0, 4, 3))
    some = (
        library.causal_mask_function,
        library.bidirectional_mask_function,
        library.sliding_window_overlay(size),
        library.sliding_window_bidirectional_overlay(size),
        library.chunked_overlay(size, left),
    )
    return some[rng.integers(len(some))]


@pytest.mark.parametrize("seed", range(150))
def test_random_functions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    keys, first = (int(rng.integers(*of)) for of in ((1, 24), (0, 6)))
    row = int(rng.integers(0, first + keys + 2))
    padding = torch.from_numpy(rng.random((3, int(rng.integers(first + 1, first + keys + 4)))) < 0.7)
    call = {
        "q_offset": (row, torch.tensor(row))[rng.integers(2)],
        "kv_offset": first,
        "mask_function": _random_function(rng),
        "attention_mask": (None, padding, 2 * padding.long())[rng.integers(3)],
    }
    wanted = masking.make_mask(3, 1, keys, **call)
    table_gpu.install(monkeypatch)
    found = masking.make_mask(3, 1, keys, **call)
    assert found.held.keys is not None
    assert found.shape == wanted.shape
    assert found.masks == wanted.masks
    np.testing.assert_array_equal(found.held.keys.on_host() & np.ones((3, 1), bool), wanted.dense()[:, 0, 0])


@pytest.mark.parametrize(
    "strides", ["plain", "tokens first", "a part", "one head", "one sequence", "widths", "fused"]
)
@pytest.mark.parametrize("keys", [1, 9, 300])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_layouts(strides: str, keys: int, has_sinks: bool, fake: Any) -> None:
    generator = torch.Generator().manual_seed(keys)
    heads, batch = (1 if strides == "one head" else 2), (1 if strides == "one sequence" else 3)
    width = 16 if strides == "widths" else 8
    k, v = (torch.randn(batch, heads, keys, of, generator=generator) for of in (8, width))
    if strides == "tokens first":
        k, v = (one.transpose(1, 2).contiguous().transpose(1, 2) for one in (k, v))
    if strides == "a part":
        k, v = (torch.cat([one, one], 2)[:, :, :keys] for one in (k, v))
    q = torch.randn(batch, 4 * heads, 1, 8, generator=generator)
    if strides == "fused":
        q = torch.cat([q, q], 1)[:, : 4 * heads]
    seen = torch.rand(batch, keys, generator=generator) < 0.6
    seen[:, -1], seen[0] = True, False
    sinks = torch.randn(4 * heads, generator=generator) if has_sinks else None
    found = key_tables.SeenKeys(seen, keys).attention(q, k, v, sinks, (None, 3.0))
    mask = oc.transformers.attention_mask([oc.from_dense(one[None].numpy()) for one in seen], batch)
    layer = torch.nn.Module()
    wanted = oc.transformers.forward.attention(layer, q, k, v, mask, softcap=3.0, s_aux=sinks)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous()


@pytest.mark.parametrize("function", [library.causal_mask_function, library.bidirectional_mask_function])
@pytest.mark.parametrize("make", [int, torch.tensor])
def test_rows_at_all_places(function: Any, make: Any, fake: Any) -> None:
    """A padding that ends before the keys, or behind them."""
    for length in (5, 7, 12):
        padding = torch.ones(2, length, dtype=torch.bool)
        padding[0, 3] = False
        for row in range(11):
            call = {"kv_offset": 2, "mask_function": function, "attention_mask": 2 * padding.long()}
            found = masking.make_mask(2, 1, 7, q_offset=make(row), **call)
            wanted = library.sdpa_mask(
                2, 1, 7, q_offset=row, allow_is_causal_skip=False, **call | {"attention_mask": padding}
            )
            assert found.held.keys is not None
            assert torch.equal(found.dense(), wanted)


def test_padding_that_is_written_later_changes_nothing(fake: Any) -> None:
    padding = torch.tensor([[False, True, True], [True, True, True]])
    mask = masking.make_mask(2, 1, 3, q_offset=2, attention_mask=padding)
    padding.fill_(False)
    assert mask.dense()[:, 0, 0].tolist() == [[False, True, True], [True, True, True]]


def test_elements_that_are_written_count(fake: Any) -> None:
    mask = masking.make_mask(1, 1, 4, q_offset=3)
    mask[..., 1:] = False
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 4, 8)
    found = oc.transformers.forward.attention(torch.nn.Module(), q, k, k, mask)[0]
    torch.testing.assert_close(found[:, 0], k[:, :, 0])
    assert not fake.launches


def test_other_kernels_get_masks(fake: Any) -> None:
    fake.kernel = "sm80"
    _generated(_pair("llama"), tiny.text_rows("left", 7, 30))
    assert not fake.launches


def test_a_cache_that_is_reset_and_used_again(fake: Any) -> None:
    eager, ours = _pair("llama")
    caches = [transformers.StaticCache(config=model.config, max_cache_len=64) for model in (eager, ours)]
    for short, long in ((7, 30), (11, 12)):
        inputs = tiny.text_rows("left", short, long)
        tokens = []
        for model, cache in zip((eager, ours), caches, strict=True):
            tokens.append(model.generate(**inputs, max_new_tokens=8, do_sample=False, past_key_values=cache))
            cache.reset()
        assert torch.equal(*tokens)
    assert fake.launches


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_ways_of_decoding(how: dict[str, Any], fake: Any) -> None:
    inputs = tiny.text_rows("left", 7, 30)
    if "num_beams" not in how:  # for one sequence alone
        inputs = {name: one[:1] for name, one in inputs.items()}
    _generated(_pair("llama"), inputs, **how)


def test_several_models_in_turns(fake: Any) -> None:
    for name in ("llama", "mistral", "llama", "gemma2"):
        for short, long in ((7, 30), (5, 9)):
            _generated(_pair(name), tiny.text_rows("left", short, long))


def test_gradients_get_masks(fake: Any) -> None:
    mask = masking.make_mask(1, 1, 4, q_offset=3)
    assert mask.held.keys is not None
    q, k = torch.randn(1, 2, 1, 8, requires_grad=True), torch.randn(1, 2, 4, 8)
    with torch.enable_grad():
        oc.transformers.forward.attention(torch.nn.Module(), q, k, k, mask)[0].sum().backward()
    assert q.grad is not None
    assert not fake.launches


def test_masks_stay_on_the_host_once_something_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "_has_compiled", False)
    from torch._dynamo import eval_frame

    monkeypatch.setattr(eval_frame, "cached_backends", {})
    assert not on_device.compiles()
    torch.compiler.disable(len)
    assert not on_device.compiles()
    torch.compile(len)
    assert on_device.compiles()
    eval_frame.cached_backends.clear()
    assert on_device.compiles()


def test_functions_whose_tensors_may_be_too_short_are_looked_at_by_the_host(fake: Any) -> None:
    labels = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels for 5 positions are needed"):
        masking.make_mask(2, 1, 5, q_offset=4, mask_function=library.packed_sequence_mask_function(labels))


@pytest.mark.parametrize("shape", [(), (2,), (5,), (1, 5), (2, 1, 5), (2, 5, 5)])
@pytest.mark.parametrize("batch", [2, 5])
def test_a_padding_of_other_axes_is_named(batch: int, shape: tuple[int, ...], fake: Any) -> None:
    with pytest.raises(ValueError, match=r"^attention_mask must have shape \(batch, tokens\)"):
        masking.make_mask(batch, 1, 5, q_offset=4, attention_mask=torch.ones(shape))


def test_copies_share_keys_and_masks(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks of models on several devices copy the mask for each layer."""
    mask = masking.make_mask(2, 1, 4, q_offset=3, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    copies = [mask.clone(), mask.clone()]
    assert all(copy.held.keys is mask.held.keys for copy in copies)
    monkeypatch.setattr(key_tables.SeenKeys, "on", lambda keys, _: there[keys])
    there = {mask.held.keys: key_tables.SeenKeys(torch.zeros(2, 4, dtype=torch.bool), 4)}
    copies.append(mask.clone())  # as if on another device
    assert copies[-1].held.keys in there.values()
    reads = []
    on_host = key_tables.SeenKeys.on_host
    monkeypatch.setattr(key_tables.SeenKeys, "on_host", lambda keys: reads.append(keys) or on_host(keys))
    assert all(copy.masks is copies[0].masks for copy in copies)
    assert reads == [mask.held.keys]
    copies[0][:] = False
    assert not copies[0].dense().any()
    assert mask.dense().sum() == copies[1].dense().sum() == copies[2].dense().sum() == 7


def test_keys_are_not_read_while_a_graph_is_captured(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [masking.make_mask(1, 1, 4, q_offset=3) for _ in range(2)]
    made = masks[0].masks
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(key_tables.SeenKeys, "device", torch.device("cuda", 0))
    assert masks[0].masks is made
    with pytest.raises(oc.UnsupportedError, match="a tensor cannot be read for its mask while a CUDA graph"):
        _ = masks[1].masks


def test_a_mask_that_reaches_a_compiled_call(fake: Any) -> None:
    padding = torch.tensor([[False, True, True, True], [True, True, True, True]])
    mask = masking.make_mask(2, 1, 4, q_offset=3, attention_mask=padding)
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 2, 1, 8, generator=generator), torch.randn(2, 2, 4, 8, generator=generator)
    layer = torch.nn.Module()

    def call(q: Any, k: Any, mask: Any) -> Any:
        return oc.transformers.forward.attention(layer, q, k, k, mask)[0] * 2

    wanted = call(q, k, mask)
    assert fake.launches == 1
    torch.testing.assert_close(torch.compile(call, backend="eager")(q, k, mask), wanted)
    assert fake.launches == 1
