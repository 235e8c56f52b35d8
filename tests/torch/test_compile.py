"""omnicupy.torch inside torch.compile and other tracers: one graph, masks as inputs, the operators' contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch._dynamo.utils import counters  # noqa: E402

import omnicupy.torch  # noqa: E402

SHAPES = ((2, 4, 40, 16), (2, 2, 40, 16), (2, 2, 40, 16))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def _inputs(dtype: Any = torch.bfloat16) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def _layer(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
    found = oc.torch.attention(q * 2, k, v, mask, **options)
    return (found[0] + 1, found[1]) if isinstance(found, tuple) else found + 1


def _compiled(layer: Any = _layer, **options: Any) -> Any:
    return torch.compile(layer, backend="aot_eager", **{"fullgraph": True, **options})


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_twenty_masks_of_one_shape_are_two_graphs() -> None:
    arrays, layer = _inputs(), _compiled()
    for seed in range(20):
        mask = oc.random(40, seed)
        assert torch.equal(layer(*arrays, mask), _layer(*arrays, mask))
        assert _graphs() == min(seed + 1, 2)
    assert not counters["graph_break"]


def test_lists_of_masks_are_inputs_as_well() -> None:
    arrays, layer = _inputs(), _compiled()
    for seed in range(10):
        masks = [oc.random(40, seed), oc.random(40, seed + 100)]
        assert torch.equal(layer(*arrays, masks), _layer(*arrays, masks))
    assert _graphs() == 2


@pytest.mark.in_turn(8)
def test_inductor() -> None:
    arrays = _inputs(torch.float32)
    layer = torch.compile(_layer, fullgraph=True)
    for seed in range(4):
        mask = oc.random(40, seed)
        torch.testing.assert_close(layer(*arrays, mask), _layer(*arrays, mask))
    assert _graphs() == 2


def test_options() -> None:
    arrays, layer, mask = _inputs(), _compiled(), oc.random(40, 1)
    out, lse = layer(*arrays, mask, return_lse=True, scale=0.3)
    wanted, wanted_lse = _layer(*arrays, mask, return_lse=True, scale=0.3)
    assert torch.equal(out, wanted)
    assert torch.equal(lse, wanted_lse)
    assert torch.equal(layer(*arrays, None), _layer(*arrays, None))


@pytest.mark.parametrize("return_lse", [False, True])
def test_out_is_written_inside_a_graph(return_lse: bool) -> None:
    def layer(q: Any, k: Any, v: Any, mask: Any, out: Any) -> Any:
        oc.torch.attention(q, k, v, mask, out=out, return_lse=return_lse)
        return out + 1

    arrays, mask = _inputs(), oc.random(40, 1)
    target = torch.zeros(SHAPES[0], dtype=torch.bfloat16)
    after = _compiled(layer)(*arrays, mask, target)
    assert torch.equal(target, oc.torch.attention(*arrays, mask))
    assert torch.equal(after, target + 1)


def test_transposed_views_and_other_lengths() -> None:
    layer = _compiled(dynamic=True)
    for tokens in (40, 56, 72):
        arrays = [torch.randn(2, tokens, heads, 16).transpose(1, 2) for heads in (4, 2, 2)]
        mask = oc.random(tokens, 1)
        assert torch.equal(layer(*arrays, mask), _layer(*arrays, mask))
    assert _graphs() <= 2


def test_a_mask_that_the_function_closes_over() -> None:
    arrays, mask = _inputs(), oc.random(40, 1)
    layer = _compiled(lambda q, k, v: oc.torch.attention(q, k, v, mask))
    assert torch.equal(layer(*arrays), oc.torch.attention(*arrays, mask))


def test_errors_at_run_time_are_the_library_s() -> None:
    arrays, layer = _inputs(), _compiled()
    layer(*arrays, oc.causal(40))
    with pytest.raises(ValueError, match=r"mask must have the shape \(q tokens, k tokens\) = \(40, 40\)"):
        layer(*arrays, oc.causal(39))
    with pytest.raises(ValueError, match="a list must hold one Mask per batch element"):
        layer(*arrays, [oc.causal(40)])


TRACED = {
    "out of a gradient": (
        lambda q, k, v, layer: layer(q.requires_grad_(), k, v, None, out=torch.zeros(SHAPES[0])),
        oc.UnsupportedError,
        "out must be None where q requires a gradient",
    ),
    "a mask": (
        lambda q, k, v, layer: layer(q, k, v, [3, oc.causal(40)]),
        TypeError,
        "mask must be a Mask, a list of one Mask per batch element, or None (full)",
    ),
    "a config": (
        lambda q, k, v, layer: layer(q, k, v, None, config="sm80"),
        oc.UnsupportedError,
        "config must be None inside torch.compile; call attention outside of it",
    ),
    "a split": (
        lambda q, k, v, layer: layer(q, k, v, None, split=384),
        oc.UnsupportedError,
        "split must be None inside torch.compile; call attention outside of it",
    ),
}


@pytest.mark.parametrize("what", TRACED)
def test_errors_while_tracing_show_the_library_s(what: str) -> None:
    call, _, message = TRACED[what]
    with pytest.raises(torch._dynamo.exc.Unsupported) as raised:
        call(*_inputs(), _compiled())
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("out of a gradient", oc.UnsupportedError, "out must be None where q requires a gradient"),
        ("a mask", TypeError, r"mask\[0\] must be a Mask, got int; use full\(...\) where all is visible"),
        ("a config", ValueError, "config must be None for CPU tensors"),
    ],
)
def test_errors_without_fullgraph_are_the_library_s(what: str, error: type[Exception], message: str) -> None:
    call = TRACED[what][0]
    with pytest.raises(error, match=message):
        call(*_inputs(), _compiled(fullgraph=False))


def test_what_the_compiler_leaves_to_python_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer, seen, run = oc.torch.state.tracer, [], oc.torch.eager._on_cpu
    assert tracer() is None
    monkeypatch.setattr(
        oc.torch.eager, "_on_cpu", lambda *args, **options: seen.append(tracer()) or run(*args, **options)
    )
    with pytest.raises(ValueError, match="config must be None"):
        TRACED["a config"][0](*_inputs(), _compiled(fullgraph=False))
    assert seen == [None]


def test_gradients_are_fine_where_none_are_kept() -> None:
    q, k, v = _inputs()
    layer, wanted = _compiled(), _layer(q, k, v, None)
    with torch.no_grad():
        assert torch.equal(layer(q.requires_grad_(), k, v, None), wanted)


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", ["attention", "attention_out"])
def test_the_operators_keep_torch_s_contract(name: str, count: int, return_lse: bool) -> None:
    masks = [oc.random(40, seed) for seed in range(count)]
    handles = [mask.handle for mask in masks] if count < 2 else [0, *[mask.handle for mask in masks]]
    target = [torch.zeros(SHAPES[0], dtype=torch.bfloat16)] if name == "attention_out" else []
    operator = getattr(torch.ops.omnicupy, name).default
    torch.library.opcheck(operator, (*_inputs(), *target, handles, 0.5, return_lse))


def test_a_tracer_that_is_not_torch_compile_sees_the_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    mask = oc.random(40, 1)
    graph = make_fx(lambda q, k, v: oc.torch.attention(q, k, v, mask))(*_inputs())
    assert torch.ops.omnicupy.attention.default in {node.target for node in graph.graph.nodes}
    assert torch.equal(graph(*_inputs()), oc.torch.attention(*_inputs(), mask))


def test_a_graph_outlives_its_mask_with_an_error() -> None:
    handle = oc.causal(40).handle
    with pytest.raises(ValueError, match=f"mask: no mask with handle {handle} is left"):
        torch.ops.omnicupy.attention(*_inputs(), [handle], None, False)


MADE_INSIDE: dict[str, Callable[[int], Any]] = {
    "a constructor": lambda n: oc.causal(n),
    "documents": lambda n: oc.documents([3, n - 3]),
    "a predicate": lambda n: oc.from_predicate(lambda q, k: q >= k, n),
    "a preset": lambda n: oc.presets.gemma3(n, [(2, 3)], window=4),
    "a part": lambda n: LONG[0:n, 0:n],
    "rows": lambda n: LONG[0:n, 0:n].rows(0, n),
    "joined": lambda n: LONG[0:n, 0:n] & ~oc.full(n, n),
    "a mask_mod": lambda n: oc.torch.from_mask_mod(lambda b, h, q, k: q >= k, n),
}
LONG = oc.random(64, 1)


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("what", MADE_INSIDE)
def test_masks_that_are_made_inside_are_left_to_python(what: str) -> None:
    """The graph breaks there; as one graph it says why it cannot."""

    def layer(x: Any) -> Any:
        return oc.torch.attention(x, x, x, MADE_INSIDE[what](x.shape[2])).sin()

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    for tokens in (12, 12, 14, 17, 20, 12):
        x = torch.randn(1, 2, tokens, 8)
        torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="make it outside of what is compiled"):
        torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
