"""Mask tensors: their forms, what is kept of them, and MaskTensors that a model computes with."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import dense, kept  # noqa: E402

NAME = oc.transformers.register()
SHAPE = (2, 4, 20, 20)
CAUSAL = oc.causal(20)
IMAGE = oc.segments([("text", 4), ("image", 10), ("text", 6)])


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _bool(*masks: Any) -> Any:
    return torch.from_numpy(np.stack([mask.to_dense() for mask in masks]))[:, None]


def _additive(visible: Any, lowest: float, dtype: Any = torch.float32) -> Any:
    return torch.where(visible, 0.0, lowest).to(dtype)


FORMS: dict[str, Callable[[Any], Any]] = {
    "bool": lambda seen: seen,
    "uint8": lambda seen: seen.to(torch.uint8),
    "int64": lambda seen: seen.long(),
    "negative integers": lambda seen: torch.where(seen, 0, -10000),
    "-inf": lambda seen: _additive(seen, -torch.inf),
    "the lowest": lambda seen: _additive(seen, torch.finfo(torch.float32).min),
    "twice the lowest": lambda seen: _additive(seen, torch.finfo(torch.float32).min) * 2,
    "-1e9": lambda seen: _additive(seen, -1e9),
    "-1e4": lambda seen: _additive(seen, -1e4),
    "-1e4 in bfloat16": lambda seen: _additive(seen, -1e4, torch.bfloat16),
    "-1e4 in float16": lambda seen: _additive(seen, -1e4, torch.float16),
    "float64": lambda seen: _additive(seen, -1e30, torch.float64),
    "several": lambda seen: torch.where(torch.rand(seen.shape) < 0.5, 1.0, 1e5) * _additive(seen, -1e4),
}


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, heads: int) -> None:
    seen = _bool(CAUSAL, IMAGE)
    given = FORMS[form](seen)
    for tensor in (given.expand(-1, heads, -1, -1), given.repeat(1, heads, 1, 1)):
        assert dense.from_tensor(tensor, SHAPE) == (CAUSAL, IMAGE)
    assert dense.from_tensor(FORMS[form](seen[:1]), SHAPE) == (CAUSAL,)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 20), (1, 1, 1, 20), (2, 1, 20, 1), (2, 4, 1, 20)])
def test_forms_that_are_broadcast(shape: tuple[int, ...], form: str) -> None:
    seen = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(1)) < 0.6
    given = FORMS[form](seen.expand(shape).clone())
    masks = dense.from_tensor(given, SHAPE)
    assert len(masks) == shape[0]
    for mask, wanted in zip(masks, seen.expand(shape[0], 1, 20, 20)[:, 0], strict=True):
        np.testing.assert_array_equal(mask.to_dense(), wanted.numpy())
        assert mask.intervals is not None or shape[2] > 1


@pytest.mark.parametrize("value", [-1.0, 1.0, 1e9, -9000.0, torch.nan, torch.inf])
def test_biases_are_refused(value: float) -> None:
    biased = _additive(_bool(CAUSAL), -torch.inf)
    biased[0, 0, 3, 1] = value
    with pytest.raises(oc.UnsupportedError, match=r"^attention_mask: biases are not supported"):
        dense.from_tensor(biased, SHAPE)


def test_heads_with_masks_of_their_own_are_refused() -> None:
    seen = _bool(CAUSAL).repeat(1, 4, 1, 1)
    seen[0, 2, 5, 5] = False
    with pytest.raises(oc.UnsupportedError, match=r"^attention_mask: a mask for each head"):
        dense.from_tensor(seen, SHAPE)


def test_a_mask_for_all_rows_gives_eager_s_logits() -> None:
    ids = tiny.text_rows("left", 20, 20)["input_ids"]
    seen = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    seen[1, ..., 13:] = False
    eager, ours = (
        tiny.model("llama", how)(ids, attention_mask=_additive(seen, -1e9)).logits for how in ("eager", NAME)
    )
    torch.testing.assert_close(ours, eager, rtol=2e-5, atol=2e-4)


WRITES: dict[str, Callable[[Any, Any], Any]] = {
    "copy_": lambda buffer, new: buffer.copy_(new),
    "data": lambda buffer, new: buffer.data.copy_(new),
    "numpy": lambda buffer, new: np.copyto(buffer.numpy(), new.numpy()),
    "another data": lambda buffer, new: setattr(buffer, "data", new.clone()),
    "a view": lambda buffer, new: buffer.view(-1).copy_(new.view(-1)),
    "dlpack": lambda buffer, new: torch.from_dlpack(buffer.detach()).copy_(new),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("how", WRITES)
def test_a_buffer_that_is_written_is_read_again(how: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        buffer, new = _additive(_bool(CAUSAL), -1e9), _additive(_bool(IMAGE), -1e9)
        for part in (lambda: buffer, lambda: buffer[:, :, :, :20], lambda: buffer.expand(1, 4, 20, 20)):
            before = buffer.clone()
            assert dense.from_tensor(part(), SHAPE) == (CAUSAL,)
            WRITES[how](buffer, new)
            assert dense.from_tensor(part(), SHAPE) == (IMAGE,)
            WRITES[how](buffer, before)


def test_a_tensor_that_every_layer_gets_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    masks_of = dense._masks_of
    monkeypatch.setattr(dense, "_masks_of", lambda *given: read.append(given) or masks_of(*given))
    model, ids = tiny.model("llama", NAME), tiny.text_rows("left", 12, 12)["input_ids"]
    given = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    first = model(ids, attention_mask=given).logits
    assert len(read) == 1
    given[0, 0, 5:, 2] = False
    assert not torch.equal(model(ids, attention_mask=given).logits[:, 5:], first[:, 5:])
    assert len(read) == 2
    with torch.inference_mode():
        assert torch.equal(
            model(ids, attention_mask=given.clone()).logits, model(ids, attention_mask=given).logits
        )
    assert len(read) == 3


def test_views_that_each_layer_makes_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    masks_of = dense._masks_of
    monkeypatch.setattr(dense, "_masks_of", lambda *given: read.append(given) or masks_of(*given))
    given = _bool(oc.causal(30))
    for _ in range(3):
        assert dense.from_tensor(given[..., :20, :20], SHAPE) == (CAUSAL,)
        assert dense.from_tensor(given[..., 10:, 10:], SHAPE) == (CAUSAL,)
    assert len(read) == 2


def test_threads_may_read_one_tensor_in_many_ways() -> None:
    given = torch.zeros(2)

    def read(first: int) -> None:
        for what in range(first, first + 300):
            assert kept.derived(given, what % 31, lambda one, what=what: (what % 31,), "a mask") == (
                what % 31,
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(0, 28, 7)))


def test_what_is_kept_is_bounded_and_dies_with_the_tensor() -> None:
    gc.collect()
    before = len(kept._readings)
    given = _bool(oc.full(40))
    for first in range(3 * kept.MAX_READINGS // 2):
        dense.from_tensor(given[..., first : first + 20, :20], SHAPE)
        dense.from_tensor(given[..., :20, :20], (1, 1, 20, 20))
    assert len(kept._readings) == before + 1
    assert max(len(parts) for parts in kept._readings.values()) <= kept.MAX_READINGS
    del given
    gc.collect()
    assert len(kept._readings) == before


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "slice": lambda mask: mask[:, :, :, :12],
    "select": lambda mask: mask[1, 0],
    "index": lambda mask: mask[torch.tensor([1, 0, 1])],
    "repeat": lambda mask: mask.repeat(1, 4, 1, 1),
    "expand": lambda mask: mask.expand(2, 4, 20, 20),
    "cat": lambda mask: torch.cat([mask, torch.ones(2, 1, 20, 3, dtype=torch.bool)], dim=-1),
    "stack": lambda mask: torch.stack([mask, mask]),
    "chunk": lambda mask: torch.chunk(mask, 2)[1],
    "pad": lambda mask: torch.nn.functional.pad(mask, (0, 3), value=True),
    "and": lambda mask: mask & torch.eye(20, dtype=torch.bool),
    "not": lambda mask: ~mask,
    "where": lambda mask: torch.where(mask, 0.0, -1e9),
    "fill": lambda mask: torch.zeros(2, 4, 20, 20).masked_fill(~mask, -1e9),
    "float": lambda mask: (1.0 - mask.float()) * -1e9,
    "all": lambda mask: mask.all(),
    "sum": lambda mask: mask.sum(-1),
    "item": lambda mask: mask[0, 0, 3, 2].item(),
    "tolist": lambda mask: mask.tolist(),
    "numpy": lambda mask: torch.from_numpy(mask.numpy()),
    "asarray": lambda mask: torch.from_numpy(np.asarray(mask)),
    "equal": lambda mask: torch.equal(mask, _bool(CAUSAL, IMAGE)),
    "reshape": lambda mask: mask.reshape(2, 400),
    "transpose": lambda mask: mask.transpose(-1, -2),
    "interpolate": lambda mask: torch.nn.functional.max_pool2d(mask.float(), 2),
}


@pytest.mark.parametrize("what", COMPUTED)
def test_what_a_model_computes_with_a_mask_is_what_it_would_with_the_tensor(what: str) -> None:
    found = COMPUTED[what](oc.transformers.attention_mask([CAUSAL, IMAGE]))
    wanted = COMPUTED[what](_bool(CAUSAL, IMAGE))
    assert type(found) is type(wanted)
    assert torch.equal(found, wanted) if isinstance(found, torch.Tensor) else found == wanted


WRITTEN: dict[str, Callable[[Any], Any]] = {
    "an element": lambda mask: mask.__setitem__((0, 0, 3, 2), False),
    "a slice": lambda mask: mask[..., 4:9].fill_(True),
    "a view": lambda mask: mask.view(2, 400)[:, 7:90].zero_(),
    "and": lambda mask: mask.logical_and_(torch.eye(20, dtype=torch.bool)),
    "an alias": lambda mask: mask.detach().fill_(True),
    "numpy": lambda mask: np.copyto(mask.numpy()[0, 0, 5:9], True),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_a_mask_that_a_model_writes_is_the_mask_from_then_on(what: str) -> None:
    held, tensor = oc.transformers.attention_mask([CAUSAL, IMAGE]), _bool(CAUSAL, IMAGE)
    alias, before = held.detach(), held.clone()
    for one in (held, tensor):
        WRITTEN[what](one)
    assert torch.equal(held & held, tensor)
    for one in (held, alias, pickle.loads(pickle.dumps(held)), copy.deepcopy(held)):
        assert [mask.to_dense().tolist() for mask in one.masks] == tensor[:, 0].tolist()
    assert before.masks == (CAUSAL, IMAGE)
    assert held.logical_or_(held) is held


@pytest.mark.parametrize(
    "add", [lambda x, mask: x + mask, lambda x, mask: mask + x, lambda x, mask: x.add_(mask)]
)
def test_a_mask_is_not_added_to_scores(add: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(oc.UnsupportedError, match="adds a mask to numbers, but this mask is boolean"):
        add(torch.zeros(2, 4, 20, 20), oc.transformers.attention_mask([CAUSAL, IMAGE]))


def test_mask_tensors_are_stored_as_their_masks() -> None:
    tensor = oc.transformers.attention_mask(oc.causal(3000), batch=2)
    stored = io.BytesIO()
    torch.save(tensor, stored)
    assert stored.tell() < 100_000
    stored.seek(0)
    for found in (
        pickle.loads(pickle.dumps(tensor)),
        copy.deepcopy(tensor),
        torch.load(stored, weights_only=False),
    ):
        assert (found.masks, found.shape) == (tensor.masks, tensor.shape)
        assert found.held.dense is None


def test_siglip2_repeats_its_mask() -> None:
    config = transformers.Siglip2VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=4,
        num_patches=16,
    )
    inputs = {
        "pixel_values": torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(5)),
        "pixel_attention_mask": torch.tensor([[1] * 16, [1] * 12 + [0] * 4]),
        "spatial_shapes": torch.tensor([[4, 4], [4, 3]]),
    }
    found = []
    for how in ("eager", NAME):
        torch.manual_seed(0)
        model = transformers.Siglip2VisionModel._from_config(
            copy.deepcopy(config), attn_implementation=how
        ).eval()
        found.append(model(**inputs).pooler_output)
    torch.testing.assert_close(found[1], found[0])
