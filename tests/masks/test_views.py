"""What a mask shows and how it is sampled: statistics, text, pictures, random layouts, predicates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mask_oracle as oracle
import numpy as np
import pytest

from omnicupy.masks import bits, constructors, segment_masks


def test_stats() -> None:
    stats = constructors.causal(256).stats(64, 64)
    assert (stats.full, stats.causal, stats.partial, stats.empty, stats.tiles) == (6, 4, 0, 6, 10)
    assert stats.pairs == 256 * 257 // 2
    assert stats.executed == 10 * 64 * 64
    assert stats.waste == stats.executed / stats.pairs
    assert stats.density == stats.pairs / 256**2
    assert str(stats) == (
        "mask      256 rows x 256 keys\n"
        "pairs     32,896 allowed (50.20%)\n"
        "tiles     64 x 64: 10 visited, 6 skipped\n"
        "          6 full, 4 causal, 0 partial\n"
        "executed  40,960 pairs, 1.245 x the allowed ones"
    )
    empty = constructors.ranges([], 8).stats(8, 32)
    assert (empty.tiles, empty.waste, empty.density) == (0, 1.0, 0.0)


def test_print_draws_pairs() -> None:
    assert str(constructors.causal(3)) == (
        "mask of 3 rows x 3 keys, 6 pairs (66.7%), 1 interval per key\n"
        "█··\n██·\n███\n"
        "one character is one pair: · none, █ allowed"
    )


def test_print_counts_cells_of_large_masks() -> None:
    lines = str(constructors.causal(1 << 20)).splitlines()
    assert (
        lines[0] == "mask of 1048576 rows x 1048576 keys, 549,756,338,176 pairs (50.0%), 1 interval per key"
    )
    assert len(lines) == 34
    assert lines[1] == "▓░" + "·" * 62
    assert lines[32] == "█" * 62 + "▓░"
    assert lines[33] == "one character is up to 32768 x 16384 pairs: · none, ░▒▓ some, █ all"
    assert (
        len(str(constructors.from_dense(np.random.default_rng(0).random((100, 100)) < 0.5)).splitlines())
        == 34
    )


def test_repr_is_short() -> None:
    assert repr(constructors.causal(3, 4)) == "<Mask 3x4 pairs=9 intervals=1 diagonal=1>"
    assert repr(constructors.from_dense(np.random.default_rng(0).random((40, 30)) < 0.5)).endswith(
        "bits diagonal=0>"
    )


def test_plot_saves_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, mask in enumerate(
        [
            segment_masks.random(2000, 0, documents=3),
            constructors.causal(700, 900),
            constructors.from_dense(np.random.default_rng(0).random((40, 30)) < 0.5),
        ]
    ):
        path = tmp_path / f"{number}.png"
        mask.plot(path, br=32, bc=32)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as caught:
        constructors.causal(9).plot(tmp_path / "x.png")
    assert str(caught.value) == (
        "plot: matplotlib is needed, but cannot be imported; in the checkout: pip install '.[plot]'"
    )


def test_import_needs_no_matplotlib() -> None:
    code = "import sys, omnicupy.masks.constructors; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_random_is_seeded_and_obeys_its_ranges() -> None:
    mask = segment_masks.random(20000, 7, documents=5)
    assert mask == segment_masks.random(20000, 7, documents=5)
    assert mask != segment_masks.random(20000, 8, documents=5)
    assert [document for *_, document in mask.segments] == sorted(document for *_, document in mask.segments)
    assert {document for *_, document in mask.segments} == set(range(5))
    lasts = {document: stop for _, _, stop, document in mask.segments}
    previous = None
    for kind, first, stop, document in mask.segments:
        assert (kind == "text") == (previous is None or previous[1] != document or previous[0] != "text")
        low, high = (32, 256) if kind == "text" else (256, 1024)
        assert stop - first <= high
        assert stop - first >= low or stop == lasts[document]
        previous = kind, document
    np.testing.assert_array_equal(
        segment_masks.random(300, 3).to_dense(), oracle.described(segment_masks.random(300, 3).segments)
    )


def test_noise_probability() -> None:
    for noise, kinds in (
        (0.0, {"text", "image"}),
        (1.0, {"text", "noise"}),
        (0.5, {"text", "image", "noise"}),
    ):
        assert {kind for kind, *_ in segment_masks.random(50000, 0, noise=noise).segments} == kinds


def test_predicate_rows_come_in_bounded_chunks() -> None:
    """No call sees more pairs than a chunk; a long mask with a short interval form never becomes bits."""
    largest = 0

    def rule(q: np.ndarray, k: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, q.size * k.size)
        return (k <= q) & (k > q - 100)

    mask = constructors.from_predicate(rule, 6000)
    assert largest <= bits.CHUNK_PAIRS
    assert mask == constructors.sliding_window(6000, left=99)
    assert mask.intervals is not None
    assert constructors.from_predicate(lambda q, k: np.bool_(True), 5, 6) == constructors.full(5, 6)
