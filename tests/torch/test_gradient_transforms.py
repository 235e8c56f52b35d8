"""Gradients where torch does more than call backward: checkpoints, hooks, autocast, torch.func, second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.autograd import forward_ad  # noqa: E402
from torch.utils import checkpoint  # noqa: E402

import omnicupy.torch  # noqa: E402
from omnicupy.torch import eager  # noqa: E402

MASK = oc.random(9, 1, text=(1, 3), image=(2, 4))
SEEN = torch.from_numpy(MASK.to_dense())
Q, K, V = (
    torch.randn(2, h, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(h))
    for h in (4, 2, 2)
)
Call = Callable[[Any, Any, Any], Any]


def _ours(q: Any, k: Any, v: Any) -> Any:
    return oc.torch.attention(q, k, v, MASK)


def _plain(q: Any, k: Any, v: Any) -> Any:
    k, v = (x.repeat_interleave(2, -3) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~SEEN, -torch.inf)
    return torch.softmax(scores, -1) @ v


def _needed() -> list[Any]:
    return [x.clone().requires_grad_() for x in (Q, K, V)]


def _gradients(call: Call) -> Any:
    inputs = _needed()
    call(*inputs).square().sum().backward()
    return [x.grad for x in inputs]


WANTED = _gradients(_plain)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each forward pass."""
    seen: list[int] = []
    engine = eager._on_cpu
    monkeypatch.setattr(eager, "_on_cpu", lambda *args, **options: seen.append(1) or engine(*args, **options))
    return seen


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, forwards: list[int]) -> None:
    found = _gradients(lambda *inputs: checkpoint.checkpoint(_ours, *inputs, use_reentrant=reentrant))
    torch.testing.assert_close(found, WANTED)
    assert len(forwards) == 2


@pytest.mark.parametrize("saved", [False, True])
def test_selective_checkpointing(saved: bool, forwards: list[int]) -> None:
    """Which operators are saved is said by their names: attention's is torch.ops.omnicupy.attention.default."""
    names = [torch.ops.omnicupy.attention.default] if saved else [torch.ops.aten.mm.default]

    def contexts() -> Any:
        return checkpoint.create_selective_checkpoint_contexts(names)

    found = _gradients(
        lambda *inputs: checkpoint.checkpoint(_ours, *inputs, use_reentrant=False, context_fn=contexts)
    )
    torch.testing.assert_close(found, WANTED)
    assert len(forwards) == 2 - saved


def test_activations_that_are_packed_elsewhere() -> None:
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(_gradients(_ours), WANTED)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy().copy(), torch.from_numpy):
        torch.testing.assert_close(_gradients(_ours), WANTED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: Any) -> None:
    inputs = [x.detach().float().requires_grad_() for x in (Q, K, V)]
    with torch.autocast("cpu", dtype=dtype):
        out = _ours(*inputs)
    assert out.dtype == dtype
    out.sum().backward()
    cast = [x.detach().to(dtype).requires_grad_() for x in inputs]
    _ours(*cast).sum().backward()
    for x, y in zip(inputs, cast, strict=True):
        assert x.grad.dtype == torch.float32
        assert torch.equal(x.grad, y.grad.float())


def _one(call: Call) -> Call:
    """The call on one batch element without its axis."""
    return lambda q, k, v: call(q[None], k[None], v[None])[0]


def _per_sample(call: Call) -> Any:
    return torch.vmap(torch.func.grad(lambda *x: _one(call)(*x).square().sum(), argnums=(0, 1, 2)))(Q, K, V)


def _of_vmap(call: Call) -> Any:
    return torch.func.grad(lambda *x: torch.vmap(_one(call))(*x).square().sum(), argnums=(0, 1, 2))(Q, K, V)


def _batched(call: Call) -> Any:
    inputs = _needed()
    out = call(*inputs)
    return torch.autograd.grad(out, inputs, torch.stack([out, 2 * out]).detach(), is_grads_batched=True)


def _create_graph(call: Call) -> Any:
    inputs = _needed()
    return torch.autograd.grad(call(*inputs).square().sum(), inputs, create_graph=True)


RIGHT: dict[str, Callable[[Call], Any]] = {
    "grad": lambda call: torch.func.grad(lambda *x: call(*x).square().sum(), argnums=(0, 1, 2))(Q, K, V),
    "grad of k": lambda call: torch.func.grad(lambda k: call(Q, k, V).sum())(K),
    "vjp": lambda call: torch.func.vjp(call, Q, K, V)[1](Q),
    "jacrev": lambda call: torch.func.jacrev(lambda q: call(q, K, V).sum(-1)[0, 0])(Q),
    "vmap of grad": _per_sample,
    "grad of vmap": _of_vmap,
    "vmap of what needs gradients": lambda call: _gradients(torch.vmap(_one(call))),
    "functionalize": lambda call: _gradients(torch.func.functionalize(call)),
    "jacobian": lambda call: torch.autograd.functional.jacobian(
        lambda v: call(Q, K, v).sum(-1)[0, 0], V, vectorize=True
    ),
    "batched gradients": _batched,
    "create_graph alone": _create_graph,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("what", RIGHT)
def test_transforms_that_are_right(what: str) -> None:
    torch.testing.assert_close(RIGHT[what](_ours), RIGHT[what](_plain))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("what", ["grad", "vmap of grad"])
def test_a_graph_of_a_transform(what: str) -> None:
    """Before 2.14 PyTorch does not trace an operator's gradients under torch.func, and says so."""
    torch.compiler.reset()
    call = torch.compile(lambda: RIGHT[what](_ours), backend="aot_eager")
    if torch.__version__ < (2, 14):
        with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported)):
            call()
    else:
        assert all(map(torch.allclose, call(), RIGHT[what](_plain)))


def _twice(call: Call, factor: Any = 1, squared: bool = True) -> Any:
    q, k, v = _needed()
    out = call(q * factor, k, v)
    (first,) = torch.autograd.grad((out.square() if squared else out).sum(), q, create_graph=True)
    return torch.autograd.grad((first * q).sum(), (q, k, v), allow_unused=True)


def _nested_grad(call: Call) -> Any:
    inner = torch.func.grad(lambda q, k: call(q, k, V).sum())
    return torch.func.grad(lambda k: inner(Q, k).square().sum())(K)


def _dual(call: Call) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(_needed()[0], Q), K, V)).tangent


SECOND, FORWARD = "^attention has no second derivative: a gradient of its gradient", "carries a tangent, but"
RAISES: dict[str, tuple[Callable[[Call], Any], str]] = {
    "twice": (_twice, SECOND),
    "twice, of a sum": (lambda call: _twice(call, squared=False), SECOND),
    "twice, of something before": (lambda call: _twice(call, 2, squared=False), SECOND),
    "grad of grad": (_nested_grad, SECOND),
    "gradgradcheck": (lambda call: torch.autograd.gradgradcheck(call, _needed(), fast_mode=True), SECOND),
    "jvp": (lambda call: torch.func.jvp(call, (Q, K, V), (Q, K, V)), FORWARD),
    "jacfwd": (lambda call: torch.func.jacfwd(lambda q: call(q, K, V))(Q), FORWARD),
    "linearize": (lambda call: torch.func.linearize(lambda q: call(q, K, V), Q), FORWARD),
    "hessian": (lambda call: torch.func.hessian(lambda q: call(q, K, V).sum())(Q), FORWARD),
    "jvp of grad": (
        lambda call: torch.func.jvp(torch.func.grad(lambda q: call(q, K, V).sum()), (Q,), (Q,)),
        FORWARD,
    ),
    "dual": (_dual, FORWARD),
}


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("what", RAISES)
def test_transforms_that_cannot_be_right_raise(what: str) -> None:
    transform, message = RAISES[what]
    with pytest.raises(oc.UnsupportedError, match=message):
        transform(_ours)


def _written(q: Any) -> Any:
    return oc.torch.attention(q, K, V, out=torch.empty_like(q))


OUT = {
    "vmap": lambda: torch.vmap(_written)(Q[None]),
    "functionalize": lambda: torch.func.functionalize(_written)(Q),
    "grad in vmap": lambda: torch.vmap(torch.func.grad(lambda k: _written(Q).sum() * k.sum()))(K[None]),
}


@pytest.mark.parametrize("what", OUT)
def test_an_out_that_transforms_would_not_see_raises(what: str) -> None:
    with pytest.raises(oc.UnsupportedError, match=r"^out must be None inside of torch\.vmap"):
        OUT[what]()


def test_a_tangent_that_reaches_the_backward_pass_alone_raises() -> None:
    q, k, v = _needed()
    out = _ours(q, k, v)
    with forward_ad.dual_level():
        dout = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(oc.UnsupportedError, match=r"^dout carries a tangent"):
            torch.autograd.grad(out, q, dout)


def test_storage_that_holds_no_numbers_is_named() -> None:
    q, k, v = _needed()
    with pytest.raises(oc.UnsupportedError, match=r"^k is stored as"):
        oc.torch.attention(q, k.detach().to_sparse(), v)
    with pytest.raises(oc.UnsupportedError, match=r"^torch\.jit\.trace cannot record attention"):
        torch.jit.trace(_ours, (q, k, v))
    with pytest.raises(ValueError, match=r"^config must be None for CPU tensors"):
        oc.torch.attention(q, k, v, config=object())  # type: ignore[arg-type]
