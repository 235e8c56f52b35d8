"""Ways in which torch stores, replays or transforms a call, and tensors that are no plain ones: right, or raised."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402
from torch.utils.data import DataLoader, Dataset, default_collate  # noqa: E402

import omnicupy.torch  # noqa: E402

ROOT = Path(__file__).parents[2]
MASK = oc.random(40, 1)


def _inputs() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, 40, 16, generator=generator) for heads in (4, 2, 2)]


Q, K, V = _inputs()
WANTED = oc.torch.attention(Q, K, V, MASK)


class Layer(torch.nn.Module):
    """A module that holds its mask."""

    def __init__(self, mask: Any = MASK) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        return oc.torch.attention(q, k, v, self.mask) + 0


class Masks(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"mask": oc.random(40, i), "q": torch.full((4, 40, 16), float(i))}


def _exported(mask: Any, strict: bool) -> Any:
    stored = io.BytesIO()
    torch.export.save(torch.export.export(Layer(mask), (Q, K, V), strict=strict), stored)
    stored.seek(0)
    return torch.export.load(stored).module()(Q, K, V)


def _dual(call: Callable[..., Any], index: int = 1) -> Any:
    with forward_ad.dual_level():
        given = _inputs()
        given[index] = forward_ad.make_dual(given[index], torch.ones_like(given[index]))
        return call(*given, MASK)


def _loaded(workers: int) -> None:
    loader = DataLoader(Masks(), batch_size=2, num_workers=workers)
    for first, batch in zip((0, 2), loader, strict=True):
        assert batch["mask"] == [oc.random(40, first), oc.random(40, first + 1)]
        oc.torch.attention(batch["q"], K, V, batch["mask"])


def _stacked(*arrays: Any) -> list[Any]:
    return [torch.stack([array, 2 * array]) for array in arrays]


def _vmapped() -> Any:
    found = torch.vmap(lambda q, v: oc.torch.attention(q, K, v, MASK), in_dims=(0, 1))(
        *_stacked(Q), _stacked(V)[0].movedim(0, 1)
    )
    torch.testing.assert_close(found[1], oc.torch.attention(2 * Q, K, 2 * V, MASK))
    return found[0]


def _saved() -> Any:
    stored = io.BytesIO()
    torch.save(Layer(), stored)
    stored.seek(0)
    return torch.load(stored, weights_only=False)(Q, K, V)


class Plain(torch.Tensor):  # type: ignore[misc]
    """A subclass with memory of its own."""


WORKS: dict[str, Callable[[], Any]] = {
    "make_fx": lambda: make_fx(Layer())(Q, K, V)(Q, K, V),
    "deepcopy": lambda: copy.deepcopy(Layer())(Q, K, V),
    "pickle": lambda: pickle.loads(pickle.dumps(Layer()))(Q, K, V),
    "save": _saved,
    "functional_call": lambda: torch.func.functional_call(Layer(), {}, (Q, K, V)),
    "functionalize": lambda: torch.func.functionalize(Layer())(Q, K, V),
    "checkpoint": lambda: torch.utils.checkpoint.checkpoint(Layer(), Q, K, V, use_reentrant=False),
    "vmap": _vmapped,
    "subclass": lambda: oc.torch.attention(Q.as_subclass(Plain), K, V.as_subclass(Plain), MASK).as_subclass(
        torch.Tensor
    ),
    "subclass that wraps": lambda: oc.torch.attention(Q, TwoTensor(K, 2 * K), V, MASK).a,
    "resolved": lambda: oc.torch.attention(Q, K, torch.complex(V, V).conj().imag.resolve_neg().neg(), MASK),
    "DataLoader": lambda: _loaded(0) or WANTED,
    "DataLoader's workers": lambda: _loaded(2) or WANTED,
}


@pytest.mark.parametrize("what", WORKS)
def test_works(what: str) -> None:
    torch.testing.assert_close(WORKS[what](), WANTED)


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_without_a_mask_is_exported(strict: bool) -> None:
    torch.testing.assert_close(_exported(None, strict), oc.torch.attention(Q, K, V))


def _nested(layout: Any) -> Any:
    return torch.nested.nested_tensor([torch.randn(5, 4, 16), torch.randn(7, 4, 16)], layout=layout)


def _script() -> Any:
    return torch.jit.script(Layer())


OPERATOR = torch.ops.omnicupy.attention
NESTED = r"is a nested tensor; pass its sequences one after the other"
RAISES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "export": (lambda: _exported(MASK, False), oc.UnsupportedError, r"^mask must be None in torch\.export"),
    "strict export": (lambda: _exported(MASK, True), Exception, r"mask must be None in torch\.export"),
    "jit.trace": (
        lambda: torch.jit.trace(Layer(), (Q, K, V)),
        oc.UnsupportedError,
        r"^torch\.jit\.trace cannot record attention; use torch\.compile",
    ),
    "jit.trace, no mask": (
        lambda: torch.jit.trace(Layer(None), (Q, K, V)),
        oc.UnsupportedError,
        r"^torch\.jit\.trace cannot record attention; use torch\.compile",
    ),
    "jit.script": (_script, torch.jit.frontend.NotSupportedError, "omnicupy/torch"),
    "fx": (lambda: torch.fx.symbolic_trace(Layer()), TypeError, r"^q must be a torch\.Tensor"),
    "func.jvp": (
        lambda: torch.func.jvp(lambda v: oc.torch.attention(Q, K, v), (V,), (V,)),
        oc.UnsupportedError,
        "^v carries a tangent",
    ),
    "dual": (lambda: _dual(oc.torch.attention), oc.UnsupportedError, "^k carries a tangent"),
    "dual, compiled": (
        lambda: torch.compile(lambda: _dual(oc.torch.attention), backend="eager")(),
        oc.UnsupportedError,
        "^k carries a tangent",
    ),
    "dual, the operator": (
        lambda: _dual(lambda q, k, v, mask: OPERATOR(q, k, v, [mask.handle], None, False)),
        oc.UnsupportedError,
        "^k carries a tangent",
    ),
    "nested": (
        lambda: oc.torch.attention(*[_nested(torch.strided)] * 3),
        oc.UnsupportedError,
        f"^q {NESTED}",
    ),
    "jagged": (lambda: oc.torch.attention(*[_nested(torch.jagged)] * 3), oc.UnsupportedError, f"^q {NESTED}"),
    "nested k": (
        lambda: oc.torch.attention(Q, _nested(torch.strided), V),
        oc.UnsupportedError,
        f"^k {NESTED}",
    ),
    "jagged v": (
        lambda: oc.torch.attention(Q, K, _nested(torch.jagged)),
        oc.UnsupportedError,
        f"^v {NESTED}",
    ),
    "sparse": (
        lambda: oc.torch.attention(Q.to_sparse(), K, V),
        oc.UnsupportedError,
        r"^q is stored as torch\.sparse_coo; pass q\.to_dense\(\)",
    ),
    "sparse v": (
        lambda: oc.torch.attention(Q, K, V.to_sparse()),
        oc.UnsupportedError,
        r"^v is stored as torch\.sparse_coo; pass v\.to_dense\(\)",
    ),
    "quantised": (
        lambda: oc.torch.attention(Q, torch.quantize_per_tensor(K, 0.1, 0, torch.qint8), V),
        TypeError,
        r"^k must be float16, bfloat16, float32 or float64, got torch\.qint8",
    ),
    "negated": (
        lambda: oc.torch.attention(Q, K, torch.complex(V, V).conj().imag),
        oc.UnsupportedError,
        r"^v is a negated view; pass v\.resolve_neg\(\)",
    ),
    "zeros without memory": (
        lambda: oc.torch.attention(Q, torch._efficientzerotensor(K.shape), V),
        oc.UnsupportedError,
        "^k holds no memory of its own",
    ),
}


@pytest.mark.parametrize("what", RAISES)
def test_raises(what: str) -> None:
    call, error, message = RAISES[what]
    with pytest.raises(error, match=message):
        call()


def test_masks_are_collated_to_a_list() -> None:
    masks = [oc.causal(40), oc.full(40)]
    assert default_collate([{"mask": mask} for mask in masks]) == {"mask": masks}


def test_a_handle_that_was_stored_finds_no_mask_of_another_process() -> None:
    code = "import omnicupy as oc; print(oc.causal(4).handle)"
    found = [
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT).stdout)
        for _ in range(2)
    ]
    assert abs(found[0] - found[1]) > 2**20
    with pytest.raises(ValueError, match="no mask with handle"):
        OPERATOR(Q, K, V, [found[0]], None, False)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_autocast_does_what_it_does_to_scaled_dot_product_attention(name: str) -> None:
    given = dict(zip("qkv", _inputs(), strict=True))
    given[name] = given[name].bfloat16()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            found = oc.torch.attention(**given, mask=MASK)
            wanted = torch.nn.functional.scaled_dot_product_attention(
                *given.values(), torch.from_numpy(MASK.to_dense()), enable_gqa=True
            )
        assert found.dtype == wanted.dtype == dtype
        assert torch.equal(found, oc.torch.attention(*(x.to(dtype) for x in given.values()), MASK))
    with pytest.raises(TypeError, match="must have the dtype of q"):
        oc.torch.attention(**given, mask=MASK)


def test_autocast_inside_a_graph_and_of_doubles() -> None:
    layer = torch.compile(oc.torch.attention, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(Q, K.bfloat16(), V, MASK), oc.torch.attention(Q, K, V, MASK))
        assert oc.torch.attention(Q.double(), K.double(), V.double(), MASK).dtype == torch.float64
