"""Device copies of block lists: how they are shared, ordered between streams, and freed; on a fake device."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import fake_device
import pytest
from fake_device import Event, Stream

import omnicupy as oc
from omnicupy.errors import UnsupportedError
from omnicupy.gpu import device_blocks as gpu_device_blocks
from omnicupy.gpu import mask_cache
from omnicupy.gpu.device_blocks import DeviceBlocks
from omnicupy.gpu.mask_cache import cache_for, device_blocks, existing_cache
from omnicupy.gpu.stream_memory import memory_of
from omnicupy.masks.mask import Mask
from omnicupy.schedule.block_lists import ARRAYS
from omnicupy.schedule.parts import Workers

TILE = (64, 32)
WORKERS = Workers(heads=8, sm_count=132)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_device.Device]:
    fake = fake_device.install(monkeypatch)
    gc.disable()  # whatever dies in these tests dies by its last reference
    yield fake
    gc.enable()


def _copy(device: fake_device.Device, mask: Mask | None = None) -> DeviceBlocks:
    return device_blocks((oc.causal(100) if mask is None else mask,), TILE, WORKERS, device.current)


def _use(blocks: DeviceBlocks, stream: Stream) -> None:
    memory_of(blocks.device, stream).reads(blocks)


def test_one_copy_for_each_tile_crew_and_device(device: fake_device.Device) -> None:
    mask = oc.causal(100)
    first = device_blocks((mask,), TILE, WORKERS, 0)
    assert device_blocks((mask,), TILE, WORKERS, 0) is first
    assert device_blocks((mask,), (128, 32), WORKERS, 0) is not first
    assert device_blocks((mask,), TILE, Workers(4, 132), 0) is not first
    device.current = 1
    assert device_blocks((mask,), TILE, WORKERS, 1) is not first
    assert len(device.uploads) == 4
    assert device_blocks((oc.causal(100),), TILE, WORKERS, 1) is not device_blocks((mask,), TILE, WORKERS, 1)


def test_pointers_lie_in_one_buffer(device: fake_device.Device) -> None:
    blocks = _copy(device)
    base = blocks.pointers["row_offsets"]
    assert set(blocks.pointers) == set(ARRAYS)
    assert {name: at - base for name, at in blocks.pointers.items()} == blocks.sizes.offsets
    assert blocks.nbytes == device.uploads[0].nbytes
    assert blocks.sizes.buffer.nbytes == 0


def test_pointers_of_per_key_arrays_are_those_of_key_0(device: fake_device.Device) -> None:
    """A window at the end of a cache: there is memory of its last keys alone."""
    blocks = _copy(device, oc.sliding_window(1, 4096, left=99))
    sizes, base = blocks.sizes, blocks.pointers["row_offsets"] - blocks.sizes.offsets["row_offsets"]
    assert (sizes.k_first, sizes.k_padded) == (3840, 256)
    assert blocks.pointers["spans"] + 8 * 3840 == base + sizes.offsets["spans"]
    assert blocks.pointers["dead"] + 3840 // 8 == base + sizes.offsets["dead"]


def test_the_uploading_stream_waits_for_nothing(device: fake_device.Device) -> None:
    _use(_copy(device), device.streams[0])
    assert device.streams[0].waited == []


def test_another_stream_waits_once(device: fake_device.Device) -> None:
    blocks = _copy(device)
    (uploaded,) = Event.made
    assert uploaded.recorded is device.streams[0]
    other = Stream(8)
    _use(blocks, other)
    _use(blocks, other)
    assert other.waited == [uploaded]


def test_a_new_stream_with_the_handle_of_a_destroyed_one_waits_too(device: fake_device.Device) -> None:
    blocks, first, second = _copy(device), Stream(8), Stream(8)
    _use(blocks, first)
    device.driver.destroy(8)
    _use(blocks, second)
    assert first.waited == second.waited == Event.made[:1]
    assert list(blocks.users.values())[1:] == [first, second]


def test_the_allocating_stream_waits_for_the_others_at_the_end(device: fake_device.Device) -> None:
    mask = oc.causal(100)
    home, other, third = device.streams[0], Stream(8), Stream(16)
    for stream in (home, other, third, other):
        _use(_copy(device, mask), stream)
    made = len(Event.made)
    del mask
    ends = Event.made[made:]
    assert [event.recorded for event in ends] == [other, third]
    assert home.waited == ends


def test_a_copy_used_by_its_own_stream_ends_quietly(device: fake_device.Device) -> None:
    mask = oc.causal(100)
    _use(_copy(device, mask), device.streams[0])
    made = len(Event.made)
    del mask
    assert len(Event.made) == made


def test_many_streams_are_joined_early(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_device_blocks, "MAX_USERS", 2)
    blocks = _copy(device)
    for i in range(5):
        _use(blocks, Stream(100 + i))
    assert len(blocks.users) == 2
    assert len(device.streams[0].waited) == 4


def test_the_device_of_the_copy_is_current_at_its_end(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = oc.causal(100)
    device.current = 1
    _use(_copy(device, mask), Stream(8))
    device.current = 0
    seen = []
    monkeypatch.setattr(gpu_device_blocks, "_join", lambda streams: seen.append(device.current))
    del mask
    assert seen == [1]
    assert device.current == 0


def test_per_thread_streams_of_two_threads_are_two_streams(device: fake_device.Device) -> None:
    device.streams[0] = Stream(2)
    blocks = _copy(device)
    _use(blocks, device.streams[0])
    other = Stream(2)
    thread = threading.Thread(target=_use, args=(blocks, other))
    thread.start()
    thread.join()
    assert device.streams[0].waited == []
    assert len(other.waited) == 1
    _use(blocks, Stream(8))
    made = len(Event.made)
    gpu_device_blocks._join(list(blocks.users.values()))
    assert [event.recorded.ptr for event in Event.made[made:]] == [8, 1]


def test_another_thread_s_stream_is_joined_through_the_legacy_stream(device: fake_device.Device) -> None:
    blocks = _copy(device)
    _use(blocks, Stream(2))
    made = len(Event.made)
    gpu_device_blocks._join(list(blocks.users.values()))
    (end,) = Event.made[made:]
    assert end.recorded.ptr == 1
    assert device.streams[0].waited == [end]


def test_a_captured_stream_refuses_the_first_copy(device: fake_device.Device) -> None:
    device.streams[0] = Stream(8)
    device.driver.begin(device.streams[0])
    with pytest.raises(UnsupportedError) as error:
        _copy(device)
    assert str(error.value) == (
        "mask: its block lists are not on the device yet and cannot be copied while the stream is captured; "
        "call prepare or attention with these shapes and this mask before the capture, for gradients "
        "prepare(..., gradients=True) or attention_backward"
    )
    assert device.uploads == []


def test_a_batch_is_found_by_its_masks_in_order(device: fake_device.Device) -> None:
    a, b = oc.causal(100), oc.full(100)
    kept = cache_for((a, b))
    assert existing_cache([a, b]) is kept
    assert existing_cache((a, b)) is kept
    assert existing_cache([b, a]) is None
    assert existing_cache([a, oc.full(100)]) is None
    assert existing_cache(a) is None
    assert cache_for((a,)) is existing_cache(a)


@pytest.mark.parametrize("drop", [0, 1])
def test_a_batch_ends_with_any_of_its_masks(device: fake_device.Device, drop: int) -> None:
    masks = [oc.causal(100), oc.full(100)]
    _use(device_blocks(masks, TILE, WORKERS, 0), Stream(8))
    made = len(Event.made)
    del masks[drop]
    assert len(Event.made) == made + 1  # joined, hence freed
    assert masks[0]._device == {}


def test_a_batch_keeps_no_mask_alive(device: fake_device.Device) -> None:
    a = oc.causal(100)
    for _ in range(5):
        device_blocks((a, oc.full(100)), TILE, WORKERS, 0)
    assert a._device == {}


def test_batches_of_one_mask_are_bounded(device: fake_device.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_cache, "MAX_STACKS", 3)
    first, others = oc.causal(100), [oc.full(100) for _ in range(6)]
    cache_for((first,))
    for other in others:
        cache_for((first, other))
    assert len(first._device) == 4
    assert existing_cache([first, others[-1]]) is not None
    assert existing_cache(first) is not None


@pytest.mark.parametrize("captured", ["home", "reader"])
def test_a_mask_dropped_during_a_capture_waits_for_its_end(device: fake_device.Device, captured: str) -> None:
    """Else the order of streams would become part of the graph, or break the capture."""
    device.streams[0] = home = Stream(16)
    mask, reader = oc.causal(100), Stream(8)
    buffer = weakref.ref(_copy(device, mask)._buffer)
    _use(_copy(device, mask), reader)
    graph = device.driver.begin({"home": home, "reader": reader}[captured])
    made = len(Event.made)
    del mask
    gpu_device_blocks.free_waiting()
    assert (len(Event.made), home.waited) == (made, [])
    assert buffer() is not None, "another allocation could have got it"
    device.driver.end(graph)
    device.streams[0] = Stream(24)
    _copy(device)
    assert [event.recorded for event in home.waited] == [reader]
    assert buffer() is None


def test_the_legacy_stream_is_not_joined_while_a_blocking_stream_is_captured(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, reader = oc.causal(100), Stream(8)
    _use(_copy(device, mask), reader)

    def implicit() -> bool:
        raise fake_device.CUDARuntimeError(906)

    monkeypatch.setattr(device.streams[0], "is_capturing", implicit)
    del mask
    assert device.streams[0].waited == []
    monkeypatch.undo()


def test_a_reader_that_was_destroyed_is_waited_for_with_the_device(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, reader = oc.causal(100), Stream(8)
    _use(_copy(device, mask), reader)

    def invalid(*_: object) -> None:
        raise fake_device.CUDARuntimeError(400)

    monkeypatch.setattr(reader, "is_capturing", invalid)
    monkeypatch.setattr(Event, "record", invalid)
    del mask
    assert device.synchronized == [0]


def test_readers_are_not_forgotten_while_one_is_captured(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_device_blocks, "MAX_USERS", 2)
    blocks, readers = _copy(device), [Stream(100 + i) for i in range(5)]
    _use(blocks, readers[0])
    device.driver.begin(readers[0])
    for reader in readers[1:]:
        _use(blocks, reader)
    assert list(blocks.users.values())[1:] == readers


def test_copies_of_one_mask_are_bounded_and_plans_keep_no_others(
    device: fake_device.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long day of shapes: batches of all sizes under one mask."""
    monkeypatch.setattr(mask_cache, "MAX_COPIES", 4)
    mask, seen = oc.causal(300), []
    for heads in range(4, 44):
        oc.attention(*fake_device.inputs(heads=2 * heads), mask)
        kept = existing_cache(mask)
        assert kept is not None
        seen.append(weakref.ref(next(reversed(kept.blocks.values()))))
    alive = [copy() for copy in seen if copy() is not None]
    assert len({id(copy) for copy in alive}) == 4
    assert {id(plan.blocks) for plan in kept.plans.values()} == {id(copy) for copy in alive}
    before = len(device.kernels)
    oc.attention(*fake_device.inputs(heads=8), mask)
    assert len(device.kernels) == before + 1
