"""gpu/workspace.py: every (device, stream) has memory of its own for unfinished rows, its counters zero at first."""

from __future__ import annotations

import pytest
from fake_device import Allocating, Stream

from omnicupy.errors import UnsupportedError
from omnicupy.gpu import workspace
from omnicupy.gpu.workspace import Need, Workspace

SMALL, LARGE = Need(1000, 10), Need(5000, 70)


class Captured(Stream):
    def is_capturing(self) -> bool:
        return True


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Allocating:
    fake = Allocating()
    monkeypatch.setattr(workspace, "cupy", fake)
    for name in ("_of_stream", "_spares"):
        monkeypatch.setattr(workspace, name, {})
    monkeypatch.setattr(workspace, "_replaced", [])
    return fake


def test_counters_are_zero_and_waited_for_and_rows_follow_them(cupy: Allocating) -> None:
    made = Workspace(LARGE)
    assert len(cupy.waited) == 1
    (buffer,) = cupy.made
    assert not buffer[: 4 * LARGE.arrivals].any()
    assert buffer[-LARGE.partial_bytes :].all()  # the rows are left as they are
    assert made.arrivals == buffer.data.ptr
    assert made.partials >= made.arrivals + 4 * LARGE.arrivals
    assert made.partials % 16 == 0
    assert made.partials + LARGE.partial_bytes <= buffer.data.ptr + buffer.nbytes


def test_a_stream_keeps_its_piece(cupy: Allocating) -> None:
    workspace.prepare_space(0, SMALL)
    first, second = Stream(16), Stream(32)
    found = [workspace.space_of(0, stream, SMALL) for stream in (first, second, first, Stream(32))]
    assert found[0] is found[2]
    assert found[1] is found[3]
    assert found[0] is not found[1]
    assert workspace.space_of(1, first, SMALL) is not found[0]


def test_a_larger_need_gets_a_larger_piece_and_the_old_one_stays(cupy: Allocating) -> None:
    stream = Stream(16)
    small = workspace.space_of(0, stream, SMALL)
    large = workspace.space_of(0, stream, LARGE)
    assert large is not small
    assert large.holds(LARGE)
    assert workspace.space_of(0, stream, SMALL) is large
    assert workspace._replaced == [small]


def test_a_captured_stream_finds_what_was_prepared(cupy: Allocating) -> None:
    workspace.prepare_space(0, LARGE)
    count = len(cupy.made)
    found = workspace.space_of(0, Captured(16), SMALL)
    assert found.holds(SMALL)
    assert len(cupy.made) == count  # nothing is allocated or waited for during a capture
    assert workspace.space_of(0, Captured(16), LARGE) is found


def test_a_captured_stream_refuses_what_was_not_prepared(cupy: Allocating) -> None:
    with pytest.raises(UnsupportedError) as error:
        workspace.space_of(0, Captured(16), SMALL)
    assert str(error.value) == (
        "mask: this call splits rows over several thread blocks and has no memory for that on this stream yet; "
        "call attention once on it before the capture"
    )
    assert cupy.made == []


def test_a_call_leaves_a_spare_for_the_next_stream(cupy: Allocating) -> None:
    workspace.space_of(0, Stream(16), LARGE)
    assert workspace.space_of(0, Captured(32), LARGE).holds(LARGE)
