"""Masks of FlexAttention's mask_mod: the pairs that FlexAttention makes of it, and what a mask cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import omnicupy as oc

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
flex: Any = pytest.importorskip("torch.nn.attention.flex_attention", reason="an older PyTorch")

import omnicupy.torch  # noqa: E402

Q, K = 70, 90
DOCUMENT = torch.arange(Q + K) // 17
LENGTHS = torch.tensor([5, 60, 90])
TABLE = torch.rand(3, Q, K, generator=torch.Generator().manual_seed(1)) < 0.5
MODS: dict[str, Callable[..., Any]] = {
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q - k < 9) & (q >= k),
    "documents": lambda b, h, q, k: (DOCUMENT[q] == DOCUMENT[k]) & (q >= k),
    "prefix": lambda b, h, q, k: (k < 12) | (q >= k),
    "where": lambda b, h, q, k: torch.where(q < 30, k < 5, k % 3 == 0),
    "joined": flex.or_masks(lambda b, h, q, k: q >= k, lambda b, h, q, k: DOCUMENT[q] == DOCUMENT[k]),
    "a table": lambda b, h, q, k: TABLE[0, q, k],
    "all": lambda b, h, q, k: q >= 0,
}
OF_BATCH: dict[str, Callable[..., Any]] = {
    "lengths": lambda b, h, q, k: k < LENGTHS[b],
    "tables": lambda b, h, q, k: TABLE[b, q, k],
    "causal from a row on": lambda b, h, q, k: (q >= k) | (q < 10 * b),
}


# FlexAttention takes no number among indices before PyTorch 2.11.
OF_FLEX = MODS | {"a table": lambda b, h, q, k: TABLE[0][q, k]}


def _flex(mod: Callable[..., Any], batch: int) -> np.ndarray:
    return flex.create_mask(mod, batch, 1, Q, K, device="cpu")[:, 0].numpy()


@pytest.mark.parametrize("name", MODS)
def test_the_pairs_are_flex_attention_s(name: str) -> None:
    mask = oc.torch.from_mask_mod(MODS[name], Q, K)
    np.testing.assert_array_equal(mask.to_dense(), _flex(OF_FLEX[name], 1)[0])
    assert oc.torch.from_mask_mod(MODS[name], Q, K, batch=3, heads=2) == mask


@pytest.mark.parametrize("name", OF_BATCH)
def test_batch_elements_with_masks_of_their_own(name: str) -> None:
    masks = oc.torch.from_mask_mod(OF_BATCH[name], Q, K, batch=3)
    np.testing.assert_array_equal([mask.to_dense() for mask in masks], _flex(OF_BATCH[name], 3))
    q, k = torch.randn(3, 2, Q, 8), torch.randn(3, 2, K, 8)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, k, torch.from_numpy(_flex(OF_BATCH[name], 3))[:, None]
    )
    torch.testing.assert_close(oc.torch.attention(q, k, k, masks), torch.nan_to_num(wanted))


def test_more_rows_than_are_asked_for_at_a_time() -> None:
    document = torch.arange(5000) // 700
    mask = oc.torch.from_mask_mod(lambda b, h, q, k: (document[q] == document[k]) & (q >= k), 5000)
    assert mask == oc.documents([700] * 7 + [100])


def test_gradients_are_not_kept() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert oc.torch.from_mask_mod(lambda b, h, q, k: q * weight[0] >= k, 9) == oc.causal(9)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a batch-dependent one": (
        lambda: oc.torch.from_mask_mod(OF_BATCH["lengths"], Q),
        oc.UnsupportedError,
        "from_mask_mod: mask_mod reads b; pass batch=, the number of batch elements",
    ),
    "a head-dependent one": (
        lambda: oc.torch.from_mask_mod(lambda b, h, q, k: q >= k + h, Q),
        oc.UnsupportedError,
        "from_mask_mod: mask_mod reads h; pass heads=, the number of query heads",
    ),
    "heads that differ": (
        lambda: oc.torch.from_mask_mod(lambda b, h, q, k: q >= k + h, Q, heads=4),
        oc.UnsupportedError,
        "from_mask_mod: head 1 sees other keys than head 0, but a mask holds for all heads; call attention once for "
        "each group of heads that see the same",
    ),
    "no function": (
        lambda: oc.torch.from_mask_mod(3, Q),
        TypeError,
        "from_mask_mod: mask_mod must be a function of (b, h, q_idx, kv_idx), got int; pass a function",
    ),
    "a BlockMask": (
        lambda: oc.torch.from_mask_mod(
            flex.create_block_mask(MODS["causal"], None, None, Q, Q, device="cpu"), Q
        ),
        TypeError,
        "from_mask_mod: mask_mod must be a function of (b, h, q_idx, kv_idx), got BlockMask; pass its mask_mod",
    ),
    "a score": (
        lambda: oc.torch.from_mask_mod(lambda b, h, q, k: q - k, Q),
        TypeError,
        "from_mask_mod: mask_mod must return a boolean tensor, got torch.int64; compare inside it",
    ),
    "a bool": (
        lambda: oc.torch.from_mask_mod(lambda b, h, q, k: True, Q),
        TypeError,
        "from_mask_mod: mask_mod must return a boolean tensor, got bool; compare inside it",
    ),
    "axes": (
        lambda: oc.torch.from_mask_mod(lambda b, h, q, k: q == DOCUMENT, Q),
        ValueError,
        "from_mask_mod: mask_mod must return one boolean for a pair, got shape (160,); index with q_idx and kv_idx",
    ),
    "no batch": (
        lambda: oc.torch.from_mask_mod(MODS["causal"], Q, batch=0),
        ValueError,
        "from_mask_mod: batch must be at least 1, got 0; pass a positive number",
    ),
    "no rows": (
        lambda: oc.torch.from_mask_mod(MODS["causal"], 0),
        ValueError,
        f"from_mask_mod: q_len must be from 1 to {2**30} tokens, got 0; pass a length in that range",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_errors(what: str) -> None:
    call, error, message = BAD[what]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_a_block_mask_of_flex_attention_says_what_makes_a_mask_of_it() -> None:
    q = torch.zeros(1, 1, 128, 8)
    blocks = flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, 128, 128, device="cpu")
    with pytest.raises(
        TypeError, match=r"got torch.BlockMask; make one with omnicupy.torch.from_mask_mod\(mask.mask_mod"
    ):
        oc.torch.attention(q, q, q, blocks)
    assert oc.torch.from_mask_mod(blocks.mask_mod, 128) == oc.causal(128)
