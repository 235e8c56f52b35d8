"""Steps of continuous batching as attention gets them, with bounds that the device alone reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import batching, graphs  # noqa: E402

NAME = oc.transformers.register()


class Layer(torch.nn.Module):
    is_causal = True
    layer_idx = 0


def _call(function: Callable[..., Any], rows: int, keys: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, rows), (2, keys), (2, keys)))
    return function(Layer(), query=q, attention_mask=None, **{"key": k, "value": v} | options)[0]


def _step(q: list[int], k: list[int], **options: Any) -> dict[str, Any]:
    bounds = {"cu_seq_lens_q": torch.tensor(q, dtype=torch.int32)}
    bounds["cu_seq_lens_k"] = torch.tensor(k, dtype=torch.int32)
    return bounds | {"read_index": [], "write_index": [], "is_causal": True} | options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding_window": 4},
        {"scaling": 0.3, "softcap": 2.0, "s_aux": torch.tensor([0.1, 2.0, -1.0, 0.5])},
        {"max_length_k": 14},
        {"max_seqlen_k": 14, "sliding_window": 30},
    ],
)
def test_a_step_is_that_of_batching(options: dict[str, Any]) -> None:
    """Padding is neither read nor written: NaN beside, zeros after the last row."""
    given = _step([0, 5, 5, 6, 9, 9], [0, 5, 5, 19, 30, 30], **options)
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(1, 2, 37, 8, generator=generator) for _ in range(2))
    key[:, :, 30:], value[:, :, 30:] = float("nan"), float("inf")
    found = _call(graphs.attention, 12, 37, key=key, value=value, **given)
    assert not found[0, 9:].any()
    wanted = _call(batching.attention, 12, 37, key=key, value=value, **given)
    torch.testing.assert_close(found, wanted)


def test_layers_share_a_pass_until_they_begin_again() -> None:
    given, layer = _step([0, 4, 6], [0, 4, 6]), Layer()
    generator = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(1, heads, 6, 8, generator=generator)
        for name, heads in (("query", 4), ("key", 2), ("value", 2))
    }
    first = graphs.attention(layer, **inputs, attention_mask=None, **given)[0]
    given["cu_seq_lens_q"][1], given["cu_seq_lens_k"][1] = 2, 2
    again = graphs.attention(layer, **inputs, attention_mask=None, **given)[0]
    assert not torch.equal(again, first)
    layer.layer_idx = 1  # a later layer of the same pass
    given["cu_seq_lens_q"][1], given["cu_seq_lens_k"][1] = 4, 4
    assert torch.equal(graphs.attention(layer, **inputs, attention_mask=None, **given)[0], again)
    bounds = given.pop("cu_seq_lens_q")
    assert len(graphs._passes[bounds].steps) == 1
    before = len(graphs._passes)
    del bounds
    assert len(graphs._passes) == before - 1


def _without_bounds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "captures", lambda _: True)
        return _call(graphs.attention, 6, 6)


def _continuous(**options: Any) -> Callable[[], Any]:
    return lambda: oc.transformers.continuous(tiny.model("llama", NAME), **options)


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "graphs of block tables": (
        _continuous(use_cuda_graph=(False, True)),
        oc.UnsupportedError,
        "continuous: use_cuda_graph=(False, True) asks for graphs of steps by block tables alone, which omnicupy does "
        "not compute; pass True",
    ),
    "too many requests": (
        _continuous(use_cuda_graph=True, max_requests_per_batch=1025),
        ValueError,
        "continuous: max_requests_per_batch must be at most 1024 with use_cuda_graph, got 1025",
    ),
    "compiled steps": (
        _continuous(use_cuda_graph=True, default_compile_level=1),
        oc.UnsupportedError,
        "continuous: use_cuda_graph with default_compile_level=1 is not supported, since attention runs between the "
        "graphs of torch.compile; leave one of them out",
    ),
    "a captured call that is no step": (
        _without_bounds,
        oc.UnsupportedError,
        "Layer is captured into a CUDA graph without the bounds of continuous batching, by the name of attention that "
        "is for these alone ('_graphs'); set the model's attention to that of omnicupy.transformers.register ahead of "
        "captures of your own",
    ),
    "a block table": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 6], [0, 6], block_table=torch.zeros(1, 4))),
        oc.UnsupportedError,
        "Layer asks for continuous batching by a block table (block_table: a tensor (1, 4)), which omnicupy does not "
        "compute; load the model with attn_implementation='eager'",
    ),
    "no bounds": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 6], [0, 6], cu_seq_lens_k=None)),
        TypeError,
        "cu_seq_lens_k must be a tensor of bounds (sequences + 1,), got None; pass one",
    ),
    "wide bounds": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 6], [0, 6], cu_seq_lens_q=torch.tensor([0, 6]))),
        TypeError,
        "cu_seq_lens_q must be int32 where CUDA graphs may be captured, got torch.int64; cast it",
    ),
    "other sequences": (
        lambda: _call(graphs.attention, 6, 6, **_step([0, 2, 6], [0, 6])),
        ValueError,
        "cu_seq_lens_q and cu_seq_lens_k must bound as many sequences, got 2 and 1; an empty one repeats a bound",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what: str) -> None:
    call, error, message = ERRORS[what]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message
