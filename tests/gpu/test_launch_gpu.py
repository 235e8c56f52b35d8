"""The GPU path on a device: streams, lifetimes, threads, layouts, graphs; of numerics only a look."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from busy_gpu import spinner

import omnicupy as oc
from omnicupy.call.arrays import widen
from omnicupy.gpu import stream_memory, workspace
from omnicupy.gpu.mask_cache import existing_cache
from omnicupy.jit import archs
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.mask import Mask

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")

SHAPE = (2, 4, 700, 64)
KERNELS = ("naive", "sm80", "sm90")


@pytest.fixture(scope="module")
def spin() -> Callable[[], None]:
    return spinner(cp)


@pytest.fixture(params=["float16", "bfloat16"])
def arrays(request: pytest.FixtureRequest) -> list[Any]:
    return _arrays(np.float16 if request.param == "float16" else ml_dtypes.bfloat16)


def _arrays(dtype: Any = np.float16, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [cp.asarray(rng.standard_normal(shape, np.float32).astype(dtype)) for _ in range(3)]


def _mask() -> Mask:
    return oc.random(SHAPE[2], 1, text=(20, 90), image=(60, 200))


def _close(out: Any, arrays: list[Any], mask: Any, lse: Any = None) -> None:
    """Near the CPU engine's result; the error budget proper has tests of its own."""
    wanted, wanted_lse = oc.attention(*(cp.asnumpy(x) for x in arrays), mask, return_lse=True)
    np.testing.assert_allclose(widen(cp.asnumpy(out), np.float32), widen(wanted, np.float32), atol=0.03)
    if lse is not None:
        np.testing.assert_allclose(cp.asnumpy(lse), wanted_lse, atol=0.01)


def _config(kernel: str, array: Any) -> AttnSpec:
    capability = cp.cuda.Device(array.data.device_id).compute_capability
    arch = archs.arch_of(int(capability[:-1]), int(capability[-1]))
    if kernel == "sm90":
        if capability != "90":
            pytest.skip(f"kernel sm90 needs compute capability 9.0, this device has {capability}")
        arch = "sm_90a"
    dtype = "float16" if array.dtype == np.float16 else "bfloat16"
    warps = 8 if kernel == "sm90" else 4
    return AttnSpec(arch=arch, kernel=kernel, dtype=dtype, head_dim=array.shape[3], br=64, bc=64, warps=warps)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_kind_runs(arrays: list[Any], kernel: str) -> None:
    mask = _mask()
    out, lse = oc.attention(*arrays, mask, return_lse=True, config=_config(kernel, arrays[0]))
    _close(out, arrays, mask, lse)


def test_the_tuned_kernel_runs_and_repeats_bit_for_bit(arrays: list[Any]) -> None:
    mask = _mask()
    first = oc.attention(*arrays, mask)
    _close(first, arrays, mask)
    second = oc.attention(*arrays, mask)
    assert cp.asnumpy(first).tobytes() == cp.asnumpy(second).tobytes()


def test_work_counters_are_zero_after_launches_in_a_row() -> None:
    calls = [_arrays(shape=shape) for shape in (SHAPE, (1, 2, 100, 64), (2, 16, 700, 64), (1, 40, 700, 128))]
    configs = [_config("sm90", arrays[0]) for arrays in calls]
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        for _ in range(20):
            for arrays, config in zip(calls, configs, strict=True):
                oc.attention(*arrays, config=config)
    stream.synchronize()
    address = stream_memory.memory_of(cp.cuda.Device().id, stream).counters
    memory = cp.cuda.UnownedMemory(address, workspace.COUNTER_BYTES, None)
    found = cp.ndarray((workspace.COUNTER_BYTES // 4,), np.int32, cp.cuda.MemoryPointer(memory, 0))
    assert cp.asnumpy(found).tolist() == [0] * len(found)


def test_masks_of_a_batch(arrays: list[Any]) -> None:
    masks = [_mask(), oc.causal(SHAPE[2])]
    _close(oc.attention(*arrays, masks), arrays, masks)


def test_batch_elements_with_their_own_diagonals(arrays: list[Any]) -> None:
    long = oc.causal(2 * SHAPE[2])
    masks = [long.rows(start, start + SHAPE[2], SHAPE[2]) for start in (0, 300)]
    _close(oc.attention(*arrays, masks), arrays, masks)


def test_transposed_views_and_out_need_no_copy() -> None:
    batch, heads, tokens, dim = SHAPE
    stored = _arrays(shape=(batch, tokens, heads, dim))
    views = [x.transpose(0, 2, 1, 3) for x in stored]
    target = cp.full((batch, tokens, heads, dim), np.nan, np.float16)
    mask = _mask()
    got = oc.attention(*views, mask, out=target.transpose(0, 2, 1, 3))
    assert got.data.ptr == target.data.ptr
    _close(got, views, mask)


def test_other_arrays_of_one_shape_are_other_results() -> None:
    mask = _mask()
    for seed in range(4):
        arrays = _arrays(seed=seed)
        _close(oc.attention(*arrays, mask), arrays, mask)


def test_a_mask_uploaded_on_one_stream_is_waited_for_on_another(spin: Callable[[], None]) -> None:
    arrays, mask = _arrays(), _mask()
    oc.attention(*arrays, _mask())  # compiled and loaded
    cp.cuda.Device().synchronize()
    first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    with first:
        spin()
        busy = first.record()
        oc.attention(*arrays, mask)
    with second:
        out = oc.attention(*arrays, mask)
    second.synchronize()
    assert busy.done, "the second stream ran before the mask had arrived"
    _close(out, arrays, mask)


def test_a_mask_may_be_dropped_while_a_kernel_reads_it(spin: Callable[[], None]) -> None:
    arrays, mask = _arrays(), _mask()
    home, reader = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    with home:
        wanted = oc.attention(*arrays, mask)
    cp.full(1, 255, np.uint8)  # compiled before it has to be quick
    cp.cuda.Device().synchronize()
    (blocks,) = existing_cache(mask).blocks.values()
    address, size = blocks.pointers["row_offsets"], blocks.nbytes
    with reader:
        spin()
        out = oc.attention(*arrays, mask)
    del blocks, mask
    with home:
        taken = cp.full(size, 255, np.uint8)  # the pool hands the mask's memory out again
    assert taken.data.ptr == address
    assert not reader.done
    cp.cuda.Device().synchronize()
    assert cp.asnumpy(out).tobytes() == cp.asnumpy(wanted).tobytes()


def test_device_memory_goes_back_with_the_mask() -> None:
    arrays, mask = _arrays(), _mask()
    oc.attention(*arrays, _mask())
    pool = cp.get_default_memory_pool()
    before = pool.used_bytes()
    oc.attention(*arrays, mask)
    assert pool.used_bytes() > before
    del mask
    assert pool.used_bytes() == before


def test_threads_share_a_mask() -> None:
    mask = _mask()
    calls = [_arrays(seed=seed) for seed in range(8)]
    outs: dict[int, Any] = {}

    def run(i: int) -> None:
        stream = cp.cuda.Stream(non_blocking=True)
        with stream:
            for _ in range(20):
                outs[i] = oc.attention(*calls[i], mask)
        stream.synchronize()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, call in enumerate(calls):
        _close(outs[i], call, mask)


@pytest.mark.parametrize("first", ["attention", "prepare"])
def test_a_graph_replays_on_new_inputs(first: str) -> None:
    arrays, mask = _arrays(), _mask()
    out = cp.empty(SHAPE, np.float16)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        getattr(oc, first)(*arrays, mask, out=out)
        stream.synchronize()
        stream.begin_capture()
        oc.attention(*arrays, mask, out=out)
        graph = stream.end_capture()
        for array, fresh in zip(arrays, _arrays(seed=5), strict=True):
            array[...] = fresh
        graph.launch(stream)
    stream.synchronize()
    _close(out, arrays, mask)


def test_the_first_call_with_a_mask_cannot_be_captured() -> None:
    arrays, out = _arrays(), cp.empty(SHAPE, np.float16)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        oc.attention(*arrays, _mask())
        stream.begin_capture()
        with pytest.raises(oc.UnsupportedError, match="cannot be copied while the stream is captured"):
            oc.attention(*arrays, _mask(), out=out)
        stream.end_capture()


def test_arrays_run_on_their_own_device() -> None:
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    mask = _mask()
    with cp.cuda.Device(1):
        arrays = _arrays()
    out = oc.attention(*arrays, mask)
    assert out.data.device_id == 1
    assert cp.cuda.runtime.getDevice() == 0
    _close(out, arrays, mask)
