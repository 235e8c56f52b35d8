"""Gradients of omnicupy.torch on CPU tensors: numbers, what is asked for, what is saved, and what keeps the mask."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402

import omnicupy.torch  # noqa: E402
from omnicupy.torch import backward, eager  # noqa: E402
from omnicupy.torch import call as torch_call  # noqa: E402

DTYPES = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
MASK = oc.random(40, 3)
SUBSETS = [names for n in (1, 2, 3) for names in itertools.combinations("qkv", n)]


def _inputs(dtype: Any = torch.float32, needed: str = "qkv", tokens: int = 40, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(2, heads, tokens, 16, generator=generator).to(dtype) for heads in (4, 2, 2)]
    return [x.requires_grad_(name in needed) for name, x in zip("qkv", made, strict=True)]


def _like(x: Any, seed: int = 9) -> Any:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)


def _numpy(x: Any) -> np.ndarray:
    x = x.detach()
    return x.float().numpy().astype(DTYPES[x.dtype]) if x.dtype == torch.bfloat16 else x.numpy().copy()


def _same(found: Any, wanted: Any) -> None:
    assert found.is_contiguous()
    assert _numpy(found).dtype == wanted.dtype
    assert _numpy(found).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("with_lse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_numbers_are_those_of_numpy_arrays(dtype: Any, with_lse: bool) -> None:
    inputs = _inputs(dtype)
    out, lse = oc.torch.attention(*inputs, MASK, scale=0.3, return_lse=True)
    dout, dlse = _like(out), _like(lse) if with_lse else None
    torch.autograd.backward([out, lse] if with_lse else [out], [dout, dlse] if with_lse else [dout])
    arrays = [_numpy(x) for x in inputs]
    results = oc.attention(*arrays, MASK, scale=0.3, return_lse=True)
    given = None if dlse is None else _numpy(dlse)
    wanted = oc.attention_backward(_numpy(dout), *arrays, *results, MASK, scale=0.3, dlse=given)
    for x, gradient in zip(inputs, wanted, strict=True):
        _same(x.grad, gradient)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", ["random", "full", "batch", "empty rows and dead keys"])
def test_gradcheck(name: str) -> None:
    masks = {
        "random": oc.random(9, 1, text=(1, 3), image=(2, 4)),
        "full": None,
        "batch": [oc.causal(9), oc.sliding_window(9, left=2)],
        "empty rows and dead keys": oc.ranges([(2, 7, 3, 8)], 9),
    }
    inputs = [torch.randn(2, h, 9, 4, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)]

    def call(q: Any, k: Any, v: Any) -> Any:
        out, lse = oc.torch.attention(q, k, v, masks[name], return_lse=True)
        return out, torch.where(lse.isinf(), 0, lse)

    assert torch.autograd.gradcheck(call, inputs)  # each output alone, too


@pytest.mark.parametrize("needed", SUBSETS, ids="".join)
def test_only_what_is_asked_for_is_computed(needed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    engine = backward.api.attention_backward
    monkeypatch.setattr(
        backward.api,
        "attention_backward",
        lambda *args, **options: asked.append(options["wanted"]) or engine(*args, **options),
    )
    inputs, all_of_them = _inputs(needed="".join(needed)), _inputs()
    oc.torch.attention(*inputs, MASK).sum().backward()
    oc.torch.attention(*all_of_them, MASK).sum().backward()
    assert asked == [needed, ("q", "k", "v")]
    for name, x, y in zip("qkv", inputs, all_of_them, strict=True):
        assert x.grad is None if name not in needed else torch.equal(x.grad, y.grad)


def test_what_part_of_the_results_is_used() -> None:
    dout, dlse = _like(_inputs()[0]), _like(_inputs()[0])[..., 0]

    def of(grads: list[Any]) -> list[Any]:
        inputs = _inputs()
        results = oc.torch.attention(*inputs, MASK, return_lse=True)
        used = [(one, grad) for one, grad in zip(results, grads, strict=True) if grad is not None]
        torch.autograd.backward(*zip(*used, strict=True))
        return [x.grad for x in inputs]

    for grads in ([dout, None], [None, dlse]):
        given = [
            torch.zeros(shape.shape) if grad is None else grad
            for grad, shape in zip(grads, (dout, dlse), strict=True)
        ]
        for found, wanted in zip(of(grads), of(given), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


DOUTS = {
    "zero strides": lambda x: torch.ones(()).expand(x.shape),
    "transposed": lambda x: _like(x).transpose(1, 2).contiguous().transpose(1, 2),
    "of a concatenation": lambda x: torch.cat([_like(x, 1), _like(x)], dim=3)[..., 16:],
    "last axis apart": lambda x: _like(x).transpose(2, 3).contiguous().transpose(2, 3),
    "negated": lambda x: torch.complex(_like(x), _like(x, 1)).conj().imag,
    "zeros without memory": lambda x: torch._efficientzerotensor(x.shape),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", DOUTS)
def test_gradients_of_any_strides(what: str, dtype: Any) -> None:
    if dtype != torch.float32 and what in ("negated", "zeros without memory"):
        pytest.skip("made of float32")
    found, wanted = _inputs(dtype), _inputs(dtype)
    dout = DOUTS[what](found[0].float().detach())
    dout = dout if dout.dtype == dtype else dout.to(dtype)
    oc.torch.attention(*found, MASK).backward(dout)
    oc.torch.attention(*wanted, MASK).backward(torch.empty(dout.shape, dtype=dtype).copy_(dout))
    for x, y in zip(found, wanted, strict=True):
        assert torch.equal(x.grad, y.grad)


def test_a_loss_that_does_not_depend_on_it() -> None:
    inputs = _inputs()
    out, lse = oc.torch.attention(*inputs, MASK, return_lse=True)
    assert torch.autograd.grad(out.sum() + inputs[0].sum(), inputs[0])[0].shape == inputs[0].shape
    assert torch.autograd.grad((out.detach() + inputs[0]).sum(), inputs[1], allow_unused=True) == (None,)
    assert lse.requires_grad
    assert out.requires_grad


def test_one_tensor_three_times() -> None:
    x = torch.randn(1, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: oc.torch.attention(x, x, x, oc.causal(9)), (x,))


def test_what_a_transform_leaves_is_the_tensor_that_it_wrapped() -> None:
    """A function that torch.func.grad has called keeps its argument."""
    q, k, v = _inputs()
    kept: list[Any] = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(q)
    found = torch.autograd.grad(oc.torch.attention(kept[0], k, v, MASK).sum(), q)
    assert torch.equal(found[0], torch.autograd.grad(oc.torch.attention(q, k, v, MASK).sum(), q)[0])


def test_nan_in_dead_keys_and_empty_rows_reaches_nothing() -> None:
    mask = oc.ranges([(4, 40, 0, 30)], 40)
    clean, dirty = _inputs(), _inputs()
    with torch.no_grad():
        dirty[0][:, :, :4] = torch.nan
        dirty[1][:, :, 30:] = torch.nan
        dirty[2][:, :, 30:] = torch.inf
    dout = _like(clean[0])
    poisoned = dout.clone()
    poisoned[:, :, :4] = torch.nan
    oc.torch.attention(*clean, mask).backward(dout)
    oc.torch.attention(*dirty, mask).backward(poisoned)
    for x, y in zip(clean, dirty, strict=True):
        torch.testing.assert_close(y.grad, x.grad, rtol=0, atol=1e-5)
    for x in (clean, dirty):
        assert not x[0].grad[:, :, :4].any()
        assert not x[1].grad[:, :, 30:].any()
        assert not x[2].grad[:, :, 30:].any()


def test_the_mask_lives_until_the_backward_pass_and_no_longer() -> None:
    for listed in (False, True):
        inputs, mask = _inputs(), oc.random(40, 77)
        given = [mask, mask] if listed else mask
        out = oc.torch.attention(*inputs, given)
        wanted = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
        kept = weakref.ref(mask)
        if listed:
            given.clear()  # what the caller does to the list is the caller's
        del mask, given
        gc.collect()
        assert kept() is not None
        for x, y in zip(torch.autograd.grad(out.sum(), inputs), wanted, strict=True):
            assert torch.equal(x, y)
        del out
        gc.collect()
        assert kept() is None


@pytest.mark.parametrize("name", ["q", "k", "v", "out", "lse"])
def test_saved_tensors_that_were_changed_raise(name: str) -> None:
    inputs = [x.detach().clone().requires_grad_() * 1 for x in _inputs()]
    out, lse = oc.torch.attention(*inputs, MASK, return_lse=True)
    changed = dict(zip(("q", "k", "v", "out", "lse"), (*inputs, out, lse), strict=True))[name]
    loss = out.sum()
    changed.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_call_without_gradients_makes_no_node_and_no_lse(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    engine = eager._on_cpu
    monkeypatch.setattr(
        eager,
        "_on_cpu",
        lambda *args, **options: seen.append(options["return_lse"]) or engine(*args, **options),
    )
    q, k, v = _inputs()
    needs = oc.torch.attention(q, k, v, MASK)
    assert type(needs.grad_fn).__name__ == "AttentionBackward"
    monkeypatch.setattr(torch_call, "as_node", None)
    with torch.no_grad():
        assert torch.equal(oc.torch.attention(q, k, v, MASK), needs)
    assert not oc.torch.attention(*(x.detach() for x in (q, k, v)), MASK).requires_grad
    assert seen == [True, False, False]


def test_it_may_be_asked_for_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    engine = backward.api.attention_backward
    monkeypatch.setattr(
        backward.api,
        "attention_backward",
        lambda *args, **options: seen.append(options["deterministic"]) or engine(*args, **options),
    )
    for options in ({}, {"deterministic": False}):
        oc.torch.attention(*_inputs(), MASK, **options).sum().backward()
    torch.use_deterministic_algorithms(True)
    try:
        oc.torch.attention(*_inputs(), MASK, deterministic=False).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [True, False, True]


def test_threads_train_beside_each_other() -> None:
    wanted = {}
    for seed in range(4):
        inputs = _inputs(seed=seed)
        oc.torch.attention(*inputs, oc.random(40, seed)).square().sum().backward()
        wanted[seed] = [x.grad for x in inputs]
    wrong = []

    def train(seed: int) -> None:
        for _ in range(5):
            inputs = _inputs(seed=seed)
            oc.torch.attention(*inputs, oc.random(40, seed)).square().sum().backward()
            if not all(torch.equal(x.grad, y) for x, y in zip(inputs, wanted[seed], strict=True)):
                wrong.append(seed)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_parameters_frozen_or_not() -> None:
    q, k, v = (x.detach() for x in _inputs())
    held = torch.nn.Parameter(q, requires_grad=False)
    assert torch.equal(oc.torch.attention(held, k, v), oc.torch.attention(q, k, v))
    held.requires_grad_()
    oc.torch.attention(held, k, v).sum().backward()
    assert held.grad.any()


def test_a_subclass_that_wraps_tensors() -> None:
    q, k, v = _inputs()
    pair = TwoTensor(k.detach(), 2 * k.detach()).requires_grad_()
    oc.torch.attention(q, pair, v, MASK).sum().backward()
    plain = _inputs()
    oc.torch.attention(*plain, MASK).sum().backward()
    assert torch.equal(pair.grad.a, plain[1].grad)
    assert not torch.equal(pair.grad.b, plain[1].grad)
