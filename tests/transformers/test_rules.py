"""Masks that transformers asks for: how they are kept, what is known, what happens to what is not."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
library: Any = pytest.importorskip("transformers.masking_utils", reason="transformers is not installed")

import omnicupy as oc  # noqa: E402 - after what it needs
from omnicupy.transformers import closures, dense, masking, one_row, rules  # noqa: E402
from omnicupy.transformers.masking import make_mask  # noqa: E402


@pytest.fixture
def _nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    closures.known()  # which compares known functions with the library's

    def refuse(*_: Any) -> None:
        raise AssertionError("a function was evaluated pair by pair")

    monkeypatch.setattr(library, "sdpa_mask", refuse)


@pytest.mark.usefixtures("_nothing_is_evaluated")
def test_long_sequences_have_few_intervals() -> None:
    """Gemma 3 at 200,000 tokens, whose pairs no machine holds."""
    length = 200_000
    ids = torch.full((1, length), -1)
    for image in range(150):
        ids[0, 100 + 1300 * image : 356 + 1300 * image] = image
    blocks = library.blockwise_overlay(ids)
    function = library.and_masks(
        library.or_masks(library.causal_mask_function, blocks), library.sliding_window_overlay(1024)
    )
    (mask,) = make_mask(1, length, length, mask_function=function).masks
    spans = [(100 + 1300 * image, 256) for image in range(150)]
    assert mask == oc.presets.gemma3(length, spans, window=1024)
    assert mask.intervals is not None
    assert len(mask.intervals[0]) == 1


def test_both_compositions_of_windows_and_images() -> None:
    ids = torch.full((1, 40), -1)
    ids[0, 10:26] = 0
    blocks, window = library.blockwise_overlay(ids), library.sliding_window_overlay(6)
    causal = library.causal_mask_function
    over_all = library.and_masks(library.or_masks(causal, blocks), window)
    over_causal = library.or_masks(library.and_masks(causal, window), blocks)
    for function, compose in ((over_all, "window_over_all"), (over_causal, "window_over_causal")):
        (mask,) = make_mask(1, 40, 40, mask_function=function).masks
        assert mask == oc.presets.gemma3(40, [(10, 16)], 6, compose)


def test_equal_masks_are_one_object() -> None:
    (first,) = make_mask(3, 50, 70, q_offset=20).masks
    padding = torch.ones(3, 70, dtype=torch.bool)
    (second,) = make_mask(3, 50, 70, q_offset=torch.tensor(20), attention_mask=padding).masks
    assert first is second
    assert first == oc.causal(50, 70)
    padding[1, :5] = False
    padded = make_mask(3, 50, 70, q_offset=20, attention_mask=padding).masks
    assert [mask is first for mask in padded] == [True, False, True]


def test_an_unused_cache_is_hidden() -> None:
    found = make_mask(1, 4, 32, q_offset=6, attention_mask=torch.ones(1, 10, dtype=torch.bool))
    np.testing.assert_array_equal(found.masks[0].to_dense(), np.arange(32)[None] <= np.arange(6, 10)[:, None])


def test_many_runs_of_one_label_become_bits() -> None:
    ids = torch.arange(300)[None] % 2
    (mask,) = make_mask(1, 300, 300, mask_function=library.blockwise_overlay(ids)).masks
    assert mask.intervals is None
    np.testing.assert_array_equal(mask.to_dense(), (ids[0][:, None] == ids[0][None]).numpy())


@pytest.fixture
def _fresh_table() -> Iterator[None]:
    closures.known.cache_clear()
    yield
    closures.known.cache_clear()


@pytest.mark.usefixtures("_fresh_table")
def test_a_function_with_another_meaning_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def sliding_window_overlay(sliding_window: int) -> Any:
        def inner_mask(batch: Any, head: Any, q: Any, k: Any) -> Any:
            return k >= q - sliding_window  # one more than the library's

        return inner_mask

    monkeypatch.setattr(library, "sliding_window_overlay", sliding_window_overlay)
    with pytest.warns(
        UserWarning, match="inner_mask is not what omnicupy knows by that name; masks that use"
    ):
        closures.known()
    window = library.and_masks(library.causal_mask_function, sliding_window_overlay(3))
    (mask,) = make_mask(1, 20, 20, mask_function=window).masks
    assert mask == oc.sliding_window(20, left=3)


@pytest.mark.usefixtures("_fresh_table")
def test_a_function_with_another_closure_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def blockwise_overlay(ids: Any) -> Any:
        return lambda batch, head, q, k: (ids[batch, q] == ids[batch, k]) & (ids[batch, q] >= 0)

    monkeypatch.setattr(library, "blockwise_overlay", blockwise_overlay)
    with pytest.warns(UserWarning, match="look at every pair"):
        closures.known()
    ids = torch.tensor([[0, 0, -1, 1, 1, 0]])
    (mask,) = make_mask(1, 6, 6, mask_function=library.blockwise_overlay(ids)).masks
    labels = ids[0].numpy()
    wanted = (labels[:, None] == labels) & (labels[:, None] >= 0)
    np.testing.assert_array_equal(mask.to_dense(), wanted)


def test_labels_of_too_few_positions() -> None:
    function = library.blockwise_overlay(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError) as raised:
        make_mask(1, 1, 6, q_offset=5, mask_function=function)
    assert str(raised.value) == (
        "mask_function: labels for 6 positions are needed, got 5; pass token types or positions of the whole "
        "sequence, the cached part included"
    )


def test_known_functions_are_compared_with_the_library_s() -> None:
    names = {known.name for known in closures.known().values()}
    later = {"positions"} if hasattr(library, "remap_positions_for_packed_sequence") else set()
    assert (
        names
        == {"causal", "all", "window", "both sides", "chunks", "blocks", "keys", "packed", "and", "or"}
        | later
    )


def test_a_mask_tensor_moves_and_holds_no_elements() -> None:
    tensor = masking.attention_mask(oc.causal(4, 6), batch=3)
    assert (tensor.shape, tensor.dtype, tensor.device.type) == ((3, 1, 4, 6), torch.bool, "cpu")
    for moved in (
        tensor.contiguous(),
        tensor.clone(),
        tensor.detach(),
        tensor.to("meta"),
        tensor.to(torch.bool),
    ):
        assert moved.masks == tensor.masks
        assert moved.shape == tensor.shape
    assert tensor.to("meta").device.type == "meta"
    assert repr(tensor) == f"MaskTensor({tensor.masks[0]!r}, batch=3, device='cpu')"
    assert tensor.held.dense is None


def test_rules_without_transformers() -> None:
    """The tree alone: what is shiftable, what is the same for two elements."""
    band, chunks = rules.Band(0, 4), rules.Chunks(3, np.array([0, 0, 1]))
    assert rules.both(band, band).shiftable
    assert not rules.both(band, chunks).shiftable
    view = rules.View(4, 6, 2, 9)
    masks = rules.masks_of(rules.Joined([band, chunks], operator.or_), view, 3)
    assert masks[0] is masks[1]
    assert masks[0] != masks[2]
    q, k = np.arange(4, 10)[:, None], np.arange(2, 11)[None]
    wanted = ((q - k >= 0) & (q - k <= 4)) | ((k - 1) // 3 == (q - 1) // 3)
    np.testing.assert_array_equal(masks[2].to_dense(), wanted)


@pytest.mark.parametrize("seed", range(40))
def test_documents_with_rules_of_their_own_positions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = np.array([0, *np.sort(rng.choice(49, 3, replace=False) + 1), 50])
    lengths = np.diff(edges)
    position = np.concatenate([np.arange(n) + rng.integers(0, 4) for n in lengths])
    document = np.repeat(rng.permutation(4), lengths)
    size, marks = int(rng.integers(2, 9)), rng.integers(-1, 2, 60)
    q, k = position[:, None], position[None]
    cases = (
        (rules.Band(0, size), (k <= q) & (q - k <= size)),
        (rules.Chunks(size, np.array([1])), (k - 1) // size == (q - 1) // size),
        (rules.Labels(marks[None], least=0), (marks[q] == marks[k]) & (marks[q] >= 0)),
        (
            rules.both(rules.Band(low=0), rules.Chunks(size, np.array([0]))),
            (k <= q) & (k // size == q // size),
        ),
    )
    assert rules.packed(document[None], position[None])
    for inner, wanted in cases:
        mask = rules.Documents(document[None], position[None], inner).mask(rules.View(0, 50, 0, 50), 0)
        np.testing.assert_array_equal(mask.to_dense(), wanted & (document[:, None] == document[None]))
        assert mask.intervals is not None


def test_what_packed_sequences_are() -> None:
    assert rules.packed(np.array([[0, 0, 1]]), np.array([[4, 5, 0]]))
    for labels, positions in (([0, 0, 1], [4, 6, 0]), ([0, 1, 0], [0, 0, 1]), ([0, 0, 1], [1, 0, 0])):
        assert not rules.packed(np.array([labels]), np.array([positions]))


ROWS = {
    "causal": rules.Band(low=0),
    "all": rules.Band(),
    "window": rules.both(rules.Band(low=0), rules.Band(high=4)),
    "window on both sides": rules.Band(-3, 3),
    "chunks": rules.both(rules.Band(low=0), rules.Chunks(5, np.array([0, 2, 0, 9]))),
    "either": rules.Joined([rules.Band(high=2), rules.Chunks(5, np.array([0, 2, 0, 9]))], operator.or_),
    "labels": rules.both(rules.Band(low=0), rules.Labels(np.arange(80).reshape(4, 20) // 3)),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("padding", [None, [0, 3, 0, 12], [5, 5, 5, 5], [20, 0, 1, 14]])
@pytest.mark.parametrize("view", [(14, 1, 0, 15), (14, 1, 0, 20), (13, 1, 4, 10), (0, 1, 0, 1)])
def test_a_single_row_is_read_for_all_elements_at_once(
    name: str, padding: list[int] | None, view: tuple[int, int, int, int]
) -> None:
    rule: Any = ROWS[name]
    if padding is not None:
        rule = rules.both(rule, rules.Keys(np.arange(15)[None] >= np.array(padding)[:, None]))
    at = rules.View(*view)
    wanted, found = rules.masks_of(rule, at, 4), one_row.masks_of(rule, at, 4)
    assert found == wanted
    assert [mask.live for mask in found] == [mask.live for mask in wanted]
    assert [mask.diagonal for mask in found] == [mask.diagonal for mask in wanted]
    for mask, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mask.blocks(64, 32).entries, other.blocks(64, 32).entries)
        assert mask.intervals is not None
    assert all(a is b for a in found for b in found if a == b)
    assert all(a is b for a, b in zip(one_row.masks_of(rule, at, 4), found, strict=True))


@pytest.mark.usefixtures("_fresh_table")
def test_another_default_device_changes_nothing() -> None:
    """The device that users set for their models: here one on which nothing can be read."""
    hidden = torch.full((1, 1, 4, 4), -1e9).triu(1)
    names = {known.name for known in closures.known().values()}
    closures.known.cache_clear()
    with torch.device("meta"):
        assert {known.name for known in closures.known().values()} == names
        assert dense.from_tensor(hidden, (1, 2, 4, 4)) == (oc.causal(4),)
