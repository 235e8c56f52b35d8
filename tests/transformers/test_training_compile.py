"""Gradients of transformers' layers inside torch.compile and torch.export, whatever says the mask."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy.transformers  # noqa: E402
from omnicupy.torch import held  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402

NAME = oc.transformers.register()
BOUNDS = torch.tensor([0, 8, 20])


def _random(seed: int) -> oc.Mask:
    return oc.random(20, seed, text=(2, 5), image=(3, 9))


def _additive(mask: oc.Mask) -> Any:
    return torch.where(torch.from_numpy(mask.to_dense()), 0.0, -1e9)[None, None]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Layer(torch.nn.Module):
    is_causal = True

    def forward(self, q: Any, k: Any, v: Any, mask: Any = None, **options: Any) -> Any:
        return forward.attention(self, q, k, v, mask, **options)[0] + 0


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "a window": {"sliding_window": 5},
    "bounds": {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": torch.tensor([0, 3, 20])},
    "a tensor": {"mask": _additive(_random(1))},
    "a tensor and bounds": {"mask": _additive(_random(1)), "cu_seq_lens_q": BOUNDS},
}


def _inputs(dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, 20, 8, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2)
    ]


def _gradients(layer: Any, **options: Any) -> list[Any]:
    inputs = _inputs()
    out = layer(*inputs, **options)
    del options
    gc.collect()
    out.square().sum().backward()
    return [x.grad for x in inputs]


def _same(found: list[Any], wanted: list[Any]) -> None:
    assert all(x.any() for x in wanted)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("what", OPTIONS)
def test_a_layer_in_one_graph_and_stored(what: str) -> None:
    layer, options = Layer(), OPTIONS[what]
    wanted = _gradients(layer, **options)
    _same(_gradients(torch.compile(layer, backend="aot_eager", fullgraph=True), **options), wanted)
    program = torch.export.export(layer, tuple(x.detach() for x in _inputs()), options)
    _same(_gradients(program.module(), **options), wanted)


@pytest.mark.in_turn(8, at=5)
def test_masks_and_bounds_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks are dropped before the backward pass; lse's memory keeps them."""
    monkeypatch.setattr(held, "MAX_HELD", 0)
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    for seed in range(3):
        wanted, found = (
            _gradients(layer, mask=oc.transformers.attention_mask(_random(seed)), cu_seq_lens_q=BOUNDS)
            for layer in (Layer(), compiled)
        )
        _same(found, wanted)


@pytest.mark.in_turn(8, at=2)
def test_the_masks_are_read_again_where_lse_was_moved() -> None:
    layer = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    for options in OPTIONS.values():
        wanted = _gradients(Layer(), **options)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
            _same(_gradients(layer, **options), wanted)


@pytest.mark.in_turn(8, at=4)
def test_a_whole_model_in_one_graph_that_makes_its_masks() -> None:
    inputs = tiny.text_rows("right", 20, 23)
    given = {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}
    found = []
    for run in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager", fullgraph=True)):
        model = tiny.model("mistral", NAME).train()
        run(model)(**given, use_cache=False).loss.backward()
        found.append([x.grad for x in model.parameters()])
    for wanted, x in zip(*found, strict=True):
        assert wanted.any()
        torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-6)


def test_a_mask_that_was_written_between_the_passes_raises() -> None:
    buffer = _additive(_random(1))
    out = torch.compile(Layer(), backend="aot_eager", fullgraph=True)(*_inputs(), buffer)
    buffer.copy_(_additive(_random(2)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_operators_keep_torch_s_contract() -> None:
    ops = torch.ops.omnicupy
    masks = [_random(1)]
    for said in (
        (_additive(_random(3)), None, 0.3, None, None, None, True),
        (None, [masks[0].handle], None, BOUNDS, BOUNDS, None, False),
        (None, None, None, None, None, 5, True),
    ):
        inputs = _inputs(torch.float64)
        torch.library.opcheck(ops.attention_of_tensors.default, (*inputs, *said, True))
        inputs = [x.detach() for x in inputs]
        out, lse = ops.attention_of_tensors(*inputs, *said, True)
        for grads, wanted in (((out, None), [True] * 3), ((None, lse), [True, False, False])):
            wanted = [*wanted, False]  # of sinks, which there are none
            torch.library.opcheck(
                ops.attention_of_tensors_backward.default, (*grads, *inputs, out, lse, *said, wanted)
            )


def test_what_has_no_derivative_raises() -> None:
    q, k, v = _inputs()
    (first,) = torch.autograd.grad(
        torch.ops.omnicupy.attention_of_tensors(q, k, v, None, None, None, None, None, None, True, True)[
            0
        ].sum(),
        q,
        create_graph=True,
    )
    with pytest.raises(oc.UnsupportedError, match=r"^attention has no second derivative"):
        first.sum().backward()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(oc.UnsupportedError, match="carries a tangent"):
            Layer()(dual, k, v)
