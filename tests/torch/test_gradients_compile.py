"""Gradients inside torch.compile and other tracers: one graph, masks that are dropped, the operators' contracts."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch._dynamo.utils import counters  # noqa: E402
from torch.utils import checkpoint  # noqa: E402

import omnicupy.torch  # noqa: E402
from omnicupy.torch import held  # noqa: E402

HEADS, KV_HEADS, WIDTH = 4, 2, 16
OPS = torch.ops.omnicupy


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    held._latest.clear()
    yield
    torch.compiler.reset()


def _inputs(tokens: int = 40, needed: str = "qkv", dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn(2, heads, tokens, 16, generator=generator).to(dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    return [x.requires_grad_(name in needed) for name, x in zip("qkv", made, strict=True)]


def _layer(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
    found = oc.torch.attention(q * 2, k, v, mask, **options)
    return (found[0] + 1, found[1] * 3) if isinstance(found, tuple) else found + 1


def _compiled(layer: Any = _layer, **options: Any) -> Any:
    return torch.compile(layer, **{"backend": "aot_eager", "fullgraph": True, **options})


def _gradients(layer: Any, mask: Any, inputs: list[Any] | None = None, **options: Any) -> list[Any]:
    inputs = inputs or _inputs()
    found = layer(*inputs, mask, **options)
    loss = sum(one.square().sum() for one in (found if isinstance(found, tuple) else (found,)))
    needed = [x for x in inputs if x.requires_grad]
    return list(torch.autograd.grad(loss, needed))


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_twenty_masks_of_one_shape_are_two_graphs() -> None:
    layer = _compiled()
    for seed in range(20):
        mask = oc.random(40, seed)
        assert all(map(torch.equal, _gradients(layer, mask), _gradients(_layer, mask)))
        assert _graphs() == min(seed + 1, 2)
    assert not counters["graph_break"]


def test_lists_of_masks_and_none() -> None:
    layer = _compiled()
    for seed in range(4):
        masks = [oc.random(40, seed), oc.random(40, seed + 100)]
        assert all(map(torch.equal, _gradients(layer, masks), _gradients(_layer, masks)))
    assert _graphs() == 2
    assert all(map(torch.equal, _gradients(layer, None), _gradients(_layer, None)))


@pytest.mark.parametrize("needed", ["q", "k", "v", "qv", "kv"])
def test_only_some_need_gradients(needed: str) -> None:
    found, wanted = (
        _gradients(layer, oc.random(40, 1), _inputs(needed=needed)) for layer in (_compiled(), _layer)
    )
    assert len(found) == len(needed)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_options_and_the_gradient_of_lse(dtype: Any) -> None:
    mask, options = oc.random(40, 1), {"return_lse": True, "scale": 0.3, "deterministic": False}
    found, wanted = (
        _gradients(layer, mask, _inputs(dtype=dtype), **options) for layer in (_compiled(), _layer)
    )
    assert all(map(torch.equal, found, wanted))


class Block(torch.nn.Module):
    """Attention and a residual, as models have it; `memory` checkpoints it inside the graph."""

    def __init__(self, memory: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory = memory
        self.qkv = torch.nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * 16, bias=False)
        self.proj = torch.nn.Linear(HEADS * 16, WIDTH, bias=False)

    def attend(self, x: Any, mask: Any) -> Any:
        q, k, v = self.qkv(x).unflatten(2, (-1, 16)).transpose(1, 2).split([HEADS, KV_HEADS, KV_HEADS], 1)
        return x + self.proj(oc.torch.attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def forward(self, x: Any, mask: Any) -> Any:
        if self.memory:
            return checkpoint.checkpoint(self.attend, x, mask, use_reentrant=False)
        return self.attend(x, mask)


def _trained(model: Any, *, drop: bool, steps: int = 5) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for seed in range(steps):
        x = torch.randn(2, 40, WIDTH, generator=generator)
        mask: Any = oc.random(40, seed)
        loss = model(x, mask).square().mean()
        if drop:
            mask = None
            gc.collect()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("memory", [False, True])
def test_training_with_masks_that_are_dropped_before_the_backward_pass(memory: bool, backend: str) -> None:
    wanted = _trained(Block(), drop=False)
    found = _trained(_compiled(Block(memory), backend=backend), drop=True)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert wanted[-1] != pytest.approx(wanted[0], rel=1e-3)
    assert _graphs() == 2
    assert not counters["graph_break"]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_mask_lives_as_long_as_what_the_graph_saved(
    return_lse: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MAX_HELD", 0)  # nothing but lse's memory keeps it
    layer = _compiled(backend=backend)
    for seed in range(3):
        inputs, mask = _inputs(), oc.random(40, seed)
        found = layer(*inputs, mask, return_lse=return_lse)
        loss = (found[0] if return_lse else found).sum()
        kept = weakref.ref(mask)
        del mask, found
        gc.collect()
        assert kept() is not None
        loss.backward()
        assert inputs[0].grad.any()
        del loss
        gc.collect()
        assert kept() is None


def test_few_masks_are_kept_where_nothing_else_keeps_them() -> None:
    layer, masks = _compiled(), []
    for seed in range(held.MAX_HELD + 5):
        mask = oc.causal(40) & oc.sliding_window(40, left=seed)
        layer(*_inputs(), mask).sum()
        masks.append(weakref.ref(mask))
    del mask
    gc.collect()
    alive = [one for one in masks if one() is not None]
    assert alive == masks[-held.MAX_HELD :]


def test_a_graph_whose_mask_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MAX_HELD", 0)
    model, mask = _compiled(Block(memory=True)), oc.causal(40)
    loss = model(torch.randn(2, 40, WIDTH), mask).sum()
    del mask
    gc.collect()
    with pytest.raises(ValueError, match=r"^mask: no mask with handle"):
        loss.backward()


def test_other_lengths() -> None:
    layer = _compiled(dynamic=True)
    for tokens in (40, 56, 72):
        mask = oc.random(tokens, 1)
        found, wanted = (_gradients(one, mask, _inputs(tokens)) for one in (layer, _layer))
        assert all(map(torch.equal, found, wanted))
    assert _graphs() <= 2


def test_compiled_autograd() -> None:
    mask = oc.random(40, 1)
    wanted = _gradients(_layer, mask)
    for layer in (_layer, _compiled()):
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
            inputs = _inputs()
            layer(*inputs, mask).square().sum().backward()
        assert all(map(torch.equal, [x.grad for x in inputs], wanted))


def test_a_backward_pass_that_the_compiler_leaves_to_python() -> None:
    def step(q: Any, k: Any, v: Any, mask: Any) -> Any:
        torch._dynamo.graph_break()
        return torch.autograd.grad(_layer(q, k, v, mask).square().sum(), (q, k, v))

    mask = oc.random(40, 1)
    found = _compiled(step, fullgraph=False)(*_inputs(), mask)
    assert all(map(torch.equal, found, _gradients(_layer, mask)))


TRANSFORMS = {
    "jvp": lambda layer: torch.compile(lambda x: torch.func.jvp(layer, (x,), (x,))[1], backend="aot_eager"),
    "of a graph: grad": lambda layer: torch.func.grad(_compiled(layer)),
    "of a graph: jvp": lambda layer: lambda x: torch.func.jvp(_compiled(layer), (x,), (x,))[1],
}


@pytest.mark.parametrize("what", TRANSFORMS)
def test_transforms_of_graphs_raise(what: str) -> None:
    _, k, v = (x.detach() for x in _inputs())
    mask = oc.random(40, 1)
    call = TRANSFORMS[what](lambda q: _layer(q, k, v, mask).sum())
    with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported)):
        call(_inputs()[0].detach())


@pytest.mark.parametrize("factor", [1, 2])
def test_a_graph_of_gradients_raises(factor: int) -> None:
    """With a factor the graph saves a product; torch.compile itself would give no second derivative, and no error."""
    q, k, v = _inputs()
    mask = oc.random(40, 1)
    layer = _compiled(lambda q, k, v: oc.torch.attention(q * factor, k, v, mask).square().sum())
    torch.autograd.grad(layer(q, k, v), q, retain_graph=True)
    for needed in ((q, k, v), (q, k.detach(), v.detach())):
        if torch.__version__ < (2, 13) and not needed[1].requires_grad:  # PyTorch's graph of it is missing
            assert not torch.autograd.grad(layer(*needed), q, create_graph=True)[0].requires_grad
            continue
        with pytest.raises(oc.UnsupportedError, match=r"^attention has no second derivative"):
            torch.autograd.grad(layer(*needed), q, create_graph=True)


def test_a_stored_program_can_be_trained() -> None:
    class Whole(Block):
        def forward(self, x: Any) -> Any:
            return self.attend(x, None)

    model, x = Whole(), torch.randn(2, 40, WIDTH)
    stored = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for one in (model, loaded):
        one(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any()
        assert torch.equal(loaded.get_parameter(name).grad, parameter.grad)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_operators_keep_torch_s_contract(count: int) -> None:
    masks = [oc.random(40, seed) for seed in range(count)]
    handles = (
        [mask.handle for mask in masks]
        if count == 1
        else [1]
        if not count
        else [0, *[mask.handle for mask in masks]]
    )
    inputs = _inputs(dtype=torch.float64)
    for more in ((), (False,), (True, True)):
        torch.library.opcheck(OPS.attention.default, (*inputs, handles, 0.5, True, *more))
    out, lse = OPS.attention(*(x.detach() for x in inputs), handles, 0.5, True)
    saved = [*(x.detach() for x in inputs), out, lse, handles, 0.5]
    for grads in ((out, lse), (out, None), (None, lse)):
        for wanted in ([True] * 3 + [False], [False, True, False, False]):
            torch.library.opcheck(OPS.attention_backward.default, (*grads, *saved, wanted, True))


def test_the_operator_needs_lse_for_gradients() -> None:
    with pytest.raises(
        oc.UnsupportedError,
        match=r"^return_lse must be True where q, k, v or sink_logits requires a gradient",
    ):
        OPS.attention(*_inputs(), [1], None, False)
