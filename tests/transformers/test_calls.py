"""Calls of the attention function and of what users call: errors in words, and what no mask means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import forward  # noqa: E402
from omnicupy.transformers.masking import make_mask  # noqa: E402

REST = ", which omnicupy does not compute; load the model with attn_implementation='eager'"


class Layer(torch.nn.Module):
    is_causal = True


class PagedAttentionCache:
    """By this name transformers passes the cache of continuous batching."""

    def __repr__(self) -> str:
        return "a paged cache"


def _attention(mask: Any = None, rows: int = 6, keys: int = 6, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, rows), (2, keys), (2, keys)))
    given = {"query": q, "key": k, "value": v} | options
    return forward.attention(Layer(), attention_mask=mask, **given)[0]


def _of_widths(keys: int, values: int) -> Any:
    """A call on CUDA tensors without memory."""
    with FakeTensorMode():
        q, k, v = (torch.zeros(1, h, 6, n, device="cuda") for h, n in ((4, keys), (2, keys), (2, values)))
        return forward.attention(Layer(), q, k, v, None)


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "continuous batching": (
        lambda: _attention(cache=PagedAttentionCache()),
        oc.UnsupportedError,
        f"Layer asks for continuous batching (cache: a paged cache){REST}",
    ),
    "indices": (
        lambda: _attention(indices=torch.zeros(1, 6, 3)),
        oc.UnsupportedError,
        f"Layer asks for sparse attention by indices (indices: a tensor (1, 6, 3)){REST}",
    ),
    "pages": (
        lambda: _attention(read_index=[torch.arange(6)]),
        oc.UnsupportedError,
        f"Layer asks for continuous batching (read_index: [tensor([0, 1, 2, 3, 4, 5])]){REST}",
    ),
    "a window over a cache": (
        lambda: _attention(sliding_window=4, rows=2),
        oc.UnsupportedError,
        "sliding_window=4 without a mask goes with as many keys as rows, got 2 rows and 6 keys; pass attention_mask",
    ),
    "values on a GPU": (
        lambda: _of_widths(576, 512),
        oc.UnsupportedError,
        "Layer asks for a head_dim of the values other than that of the queries (576), so wide on a GPU (value: a "
        f"tensor (1, 2, 6, 512)){REST}",
    ),
    "a padding mask": (
        lambda: _attention(torch.ones(1, 6, dtype=torch.bool)),
        TypeError,
        "attention_mask must have 4 axes (batch, heads, rows, keys), got shape (1, 6); pass a mask of shape "
        "(batch, tokens) to the model, which makes one of it",
    ),
    "bounds of other sequences": (
        lambda: _attention(cu_seq_lens_q=torch.tensor([0, 6]), cu_seq_lens_k=torch.tensor([0, 2, 6])),
        ValueError,
        "cu_seq_lens_q and cu_seq_lens_k must bound as many sequences, got 1 and 2; an empty one repeats a bound",
    ),
    "bounds with a cache": (
        lambda: _attention(cu_seq_lens_q=torch.tensor([0, 6]), keys=9),
        ValueError,
        "cu_seq_lens_k must rise from 0 to the 9 tokens, got [0, 6]; pass the cumulative lengths of all sequences",
    ),
    "bounds that do not end": (
        lambda: _attention(cu_seq_lens_q=torch.tensor([0, 4, 2])),
        ValueError,
        "cu_seq_lens_q must rise from 0 to the 6 tokens, got [0, 4, 2]; pass the cumulative lengths of all sequences",
    ),
    "bounds of a batch": (
        lambda: _attention(query=torch.zeros(2, 4, 6, 8), cu_seq_lens_q=torch.tensor([0, 6])),
        ValueError,
        "cu_seq_lens_q goes with a batch of one, got 2; put all sequences in one row",
    ),
    "bounds in a list": (
        lambda: _attention(cu_seq_lens_q=[0, 6]),
        TypeError,
        "cu_seq_lens_q must be a tensor of integers, got list; convert it",
    ),
    "bounds between tokens": (
        lambda: _attention(cu_seq_lens_q=torch.tensor([0, 3.5, 6])),
        TypeError,
        "cu_seq_lens_q must be a tensor of integers, got torch.float32; cast it",
    ),
    "bounds of keys between tokens": (
        lambda: _attention(cu_seq_lens_k=torch.tensor([0, 3.5, 6])),
        TypeError,
        "cu_seq_lens_k must be a tensor of integers, got torch.float32; cast it",
    ),
    "no element": (
        lambda: make_mask(0, 6, 9),
        ValueError,
        "a mask is asked for with an empty axis, (batch, rows, keys) = (0, 6, 9); skip the call when it is empty",
    ),
    "names that change the result": (
        lambda: oc.transformers.register(ignore=["softcap"]),
        ValueError,
        "register: ignore must hold no name that changes the result, got 'softcap' (the bound of the scores); load "
        "such models with attn_implementation='eager'",
    ),
    "names in a string": (
        lambda: oc.transformers.register(ignore="softcap"),
        TypeError,
        "register: ignore must be a list of names, got 'softcap'; pass strings",
    ),
    "no masks": (
        lambda: oc.transformers.attention_mask([]),
        ValueError,
        "attention_mask: masks must hold at least one mask, got none; pass one an element",
    ),
    "no mask": (
        lambda: oc.transformers.attention_mask([oc.causal(3), 4]),
        TypeError,
        "attention_mask: masks[1] must be a Mask, got int; build it with omnicupy",
    ),
    "another batch than the list's": (
        lambda: oc.transformers.attention_mask([oc.causal(3), oc.causal(3)], batch=3),
        ValueError,
        "attention_mask: batch must be the number of masks (2) or left out, got 3; pass a single mask to share it",
    ),
    "no batch": (
        lambda: oc.transformers.attention_mask(oc.causal(3), batch=-1),
        ValueError,
        "attention_mask: batch must be at least 1, got -1; pass a positive number",
    ),
    "another batch than the inputs'": (
        lambda: _attention(oc.transformers.attention_mask(oc.causal(6), batch=5)),
        ValueError,
        "attention_mask must have the batch size of the inputs (1) or 1, got 5; pass one mask an element",
    ),
    "masks of several shapes": (
        lambda: oc.transformers.attention_mask([oc.causal(3), oc.causal(4)]),
        ValueError,
        "attention_mask: masks must have one shape, got (3, 3) and masks[1] of (4, 4); pad them with "
        "presets.padding",
    ),
    "a name": (
        lambda: oc.transformers.register(3),
        TypeError,
        "register: name must be a string, got int 3; pass a name",
    ),
    "a name with a meaning": (
        lambda: oc.transformers.register("my_flash"),
        ValueError,
        "register: name must hold none of flash, sdpa, flex, eager, paged, /, :, which transformers reads as its "
        "own, got 'my_flash'; take 'omnicupy'",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_calls(what: str) -> None:
    call, error, message = CALLS[what]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize(("rows", "keys"), [(6, 6), (6, 9), (9, 6), (1, 6)])
@pytest.mark.parametrize("is_causal", [None, True, False])
def test_without_a_mask_it_is_what_sdpa_does(rows: int, keys: int, is_causal: bool | None) -> None:
    sdpa = transformers.AttentionInterface()["sdpa"]
    q, k, v = (
        torch.randn(2, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (rows, keys, keys)
    )
    wanted, _ = sdpa(Layer(), q, k, v, None, is_causal=is_causal, scaling=0.3)
    found, weights = forward.attention(Layer(), q, k, v, None, is_causal=is_causal, scaling=0.3)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous()
    assert weights is None
