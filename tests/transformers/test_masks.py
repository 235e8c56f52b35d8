"""Mask functions of transformers, read from their closures: equal to what transformers makes, for far less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
library: Any = pytest.importorskip("transformers.masking_utils", reason="transformers is not installed")

from omnicupy.transformers import closures  # noqa: E402
from omnicupy.transformers.masking import make_mask  # noqa: E402

Rng = np.random.Generator
BATCH, LENGTH = 2, 60


def _labels(rng: Rng, least: int) -> Any:
    """Runs of labels, (BATCH, LENGTH); a label may come back after others."""
    rows = []
    for _ in range(BATCH):
        edges = np.sort(rng.choice(LENGTH - 1, 6, replace=False) + 1)
        rows.append(np.repeat(rng.integers(least, 4, 7), np.diff([0, *edges, LENGTH])))
    return torch.from_numpy(np.array(rows))


def _leaf(rng: Rng) -> Any:
    size = int(rng.integers(1, 30))
    left = torch.from_numpy(rng.integers(0, 9, BATCH))
    choices: list[Callable[[], Any]] = [
        lambda: library.causal_mask_function,
        lambda: library.bidirectional_mask_function,
        lambda: library.sliding_window_overlay(size),
        lambda: library.sliding_window_bidirectional_overlay(size),
        lambda: library.chunked_overlay(size, left),
        lambda: library.blockwise_overlay(_labels(rng, -1)),
        lambda: library.packed_sequence_mask_function(_labels(rng, 0)),
        lambda: library.padding_mask_function(torch.from_numpy(rng.random((BATCH, LENGTH)) < 0.8)),
    ]
    return choices[rng.integers(len(choices))]()


def _function(rng: Rng, depth: int = 3, leaf: Callable[[Rng], Any] = _leaf) -> Any:
    if depth == 0 or rng.random() < 0.2:
        return leaf(rng)
    join = library.and_masks if rng.random() < 0.5 else library.or_masks
    return join(*[_function(rng, depth - 1, leaf) for _ in range(rng.integers(1, 4))])


def _call(rng: Rng) -> dict[str, Any]:
    """Sizes and offsets of a call, and its padding."""
    q_offset, kv_offset = (int(rng.integers(0, 30)) if rng.random() < 0.5 else 0 for _ in range(2))
    padding = None
    if rng.random() < 0.6:  # may be longer or shorter than the keys
        padding = torch.arange(int(rng.integers(kv_offset + 1, LENGTH + 9)))[None] >= torch.tensor([[3], [0]])
    return {
        "batch_size": BATCH,
        "q_length": int(rng.integers(1, LENGTH - q_offset + 1)),
        "kv_length": int(rng.integers(1, LENGTH - kv_offset + 1)),
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "attention_mask": padding,
    }


def _wanted(call: dict[str, Any], function: Any, **options: Any) -> np.ndarray:
    made = library.sdpa_mask(**call, mask_function=function, allow_is_causal_skip=False, **options)
    return made.expand(BATCH, 1, call["q_length"], call["kv_length"]).numpy()[:, 0]


def _dense(found: Any) -> np.ndarray:
    masks = found.masks if len(found.masks) > 1 else found.masks * found.shape[0]
    return np.stack([mask.to_dense() for mask in masks])


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("seed", range(300))
def test_random_functions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    call, function = _call(rng), _function(rng)
    wanted = _wanted(call, function)
    closures.known()
    monkeypatch.setattr(library, "sdpa_mask", None)  # nothing is evaluated
    found = make_mask(**call, mask_function=function, dtype=torch.float32, config=None)
    assert found.shape == (BATCH, 1, call["q_length"], call["kv_length"])
    np.testing.assert_array_equal(_dense(found), wanted)
    for mask in found.masks:
        assert mask.diagonal == call["q_offset"] - call["kv_offset"]


@pytest.mark.parametrize("use_vmap", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_functions_with_unknown_parts(seed: int, use_vmap: bool) -> None:
    rng = np.random.default_rng(seed)
    marks = torch.from_numpy(rng.random((BATCH, LENGTH, LENGTH)) < 0.5)

    def leaf(rng: Rng) -> Any:
        if rng.random() < 0.7:
            return _leaf(rng)
        if rng.random() < 0.5:
            return lambda batch, head, q, k: marks[batch, q, k]
        return lambda batch, head, q, k: (q + batch) // 7 >= k // 7

    call, function = _call(rng), _function(rng, leaf=leaf)
    found = make_mask(**call, mask_function=function, use_vmap=use_vmap)
    np.testing.assert_array_equal(_dense(found), _wanted(call, function, use_vmap=use_vmap))


def _documents(rng: Rng) -> tuple[Any, Any]:
    """Labels and positions of packed sequences, as transformers finds them."""
    positions = []
    for _ in range(BATCH):
        lengths = np.diff([0, *np.sort(rng.choice(LENGTH - 1, 4, replace=False) + 1), LENGTH])
        positions.append(np.concatenate([np.arange(n) + rng.integers(0, 3) for n in lengths]))
    ids = torch.from_numpy(np.array(positions))
    return library.find_packed_sequence_indices(ids), ids


def _apart(function: Any, positions: Any, labels: Any) -> Any:
    """Packed sequences kept apart, in either order of the two functions."""
    parts = [
        library.packed_sequence_mask_function(labels),
        library.remap_positions_for_packed_sequence(function, positions),
    ]
    return library.and_masks(*(parts if labels.sum() % 2 else parts[::-1]))


@pytest.mark.skipif(
    not hasattr(library, "remap_positions_for_packed_sequence"), reason="an older transformers"
)
@pytest.mark.parametrize("seed", range(100))
def test_packed_sequences_with_positions_of_their_own(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    labels, positions = _documents(rng)
    function = _apart(_function(rng, 2), positions, labels)
    if rng.random() < 0.5:
        function = library.or_masks(function, library.blockwise_overlay(_labels(rng, -1)))
    call = {"batch_size": BATCH, "q_length": LENGTH, "kv_length": LENGTH}
    wanted = _wanted(call, function)
    monkeypatch.setattr(library, "sdpa_mask", None)
    np.testing.assert_array_equal(_dense(make_mask(**call, mask_function=function)), wanted)


@pytest.mark.skipif(
    not hasattr(library, "remap_positions_for_packed_sequence"), reason="an older transformers"
)
def test_positions_that_are_no_packed_sequences_are_evaluated() -> None:
    rng = np.random.default_rng(0)
    labels, positions = _documents(rng)
    unknown = lambda batch, head, q, k: (q * k) % 3 == 0  # noqa: E731
    call = {"batch_size": BATCH, "q_length": LENGTH, "kv_length": LENGTH}
    for function in (
        library.remap_positions_for_packed_sequence(library.causal_mask_function, positions),
        _apart(library.causal_mask_function, positions.flip(1), labels),
        _apart(unknown, positions, labels),
    ):
        np.testing.assert_array_equal(
            _dense(make_mask(**call, mask_function=function)), _wanted(call, function)
        )
