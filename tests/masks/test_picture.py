"""Pictures of masks: where they end, what tells kinds apart, and which paths they are refused at."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from omnicupy.masks import constructors, picture, segment_masks
from omnicupy.masks import mask as masks_mask
from omnicupy.masks.block_mask import CAUSAL, FULL, PARTIAL


def _mixed() -> masks_mask.Mask:
    return segment_masks.segments([[("text", 70), ("image", 130)], [("noise", 90), ("text", 61)]])


@pytest.mark.parametrize("mask", [_mixed(), constructors.causal(351), constructors.full(100, 351)])
def test_a_picture_ends_where_the_mask_does(mask: masks_mask.Mask) -> None:
    pytest.importorskip("matplotlib")
    figure = picture.drawn(mask.blocks(32, 32), mask.segments)
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, mask.shape[1])
    assert axes.get_ylim() == (mask.shape[0], 0)


def test_kinds_differ_in_grey() -> None:
    pytest.importorskip("matplotlib")
    grid = np.array([[0, FULL], [CAUSAL, PARTIAL]], np.uint8)
    grey = picture._hatched(grid) @ np.array([0.299, 0.587, 0.114])
    half = picture.PIXELS // 2
    assert grey.shape == (2 * half, 2 * half)
    parts = {
        (i, j): grey[i * half : (i + 1) * half, j * half : (j + 1) * half] for i in (0, 1) for j in (0, 1)
    }
    assert [len(np.unique(parts[place])) for place in ((0, 0), (0, 1), (1, 0), (1, 1))] == [1, 1, 2, 2]
    causal, partial = (part < part.max() for part in (parts[1, 0], parts[1, 1]))
    assert np.array_equal(causal[1:, :-1], causal[:-1, 1:])  # stripes run from lower left to upper right
    assert np.array_equal(partial[:, 8], partial[:, 24])
    assert not np.array_equal(partial[1:, :-1], partial[:-1, 1:])
    figure = picture.drawn(_mixed().blocks(32, 32), _mixed().segments)
    (legend,) = (axes.get_legend() for axes in figure.axes)
    looks = [(patch.get_hatch(), patch.get_label()) for patch in legend.get_patches()]
    assert len({hatch for hatch, label in looks if "segment" in label}) == 3
    assert ("///", "causal tile") in looks


def test_a_path_that_cannot_be_written_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def cut(*arguments: object) -> None:
        raise AssertionError("work was done before the path was looked at")

    monkeypatch.setattr(masks_mask, "cut", cut)
    (tmp_path / "file").write_text("")
    for path, error, message in (
        (tmp_path, ValueError, f"plot: expected a file, got the folder '{tmp_path}'; name a file in it"),
        ("", ValueError, "plot: expected a file, got the folder ''"),
        (tmp_path / "x.exe", ValueError, "plot: expected a suffix of "),
        (tmp_path / "file" / "x.png", ValueError, f"but {tmp_path / 'file'} is no folder"),
        (5, TypeError, "plot: path must be a path, got int; name a file such as mask.png"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            constructors.causal(9).plot(path)  # type: ignore[arg-type]
    monkeypatch.setattr(picture.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=re.escape(f"plot: {tmp_path} cannot be written")):
        constructors.causal(9).plot(tmp_path / "new" / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
