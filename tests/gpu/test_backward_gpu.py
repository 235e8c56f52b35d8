"""Gradients on a device: poison, layouts, streams, work memory, dropped masks; of numerics only a look."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from busy_gpu import spinner
from gradients_gpu import (
    Gradients,
    bits,
    config_of,
    counters_of,
    one_or_two_kernels,
    poison_work_memory,
)

import omnicupy as oc
from omnicupy.gpu.mask_cache import existing_cache

pytestmark = pytest.mark.gpu
cp: Any = pytest.importorskip("cupy")

SHAPE = (2, 4, 700, 64)
KERNELS = ("naive", "sm80", "sm90")


@pytest.fixture(params=[1, 2], ids=["one kernel", "two kernels"])
def config(request: pytest.FixtureRequest) -> Any:
    """What makes all gradients of SHAPE: one kernel, which calls get where there is one, or two, of which each reads
    lists of its own.
    """
    found = one_or_two_kernels(cp, request.param, SHAPE[3])
    return found or pytest.skip("no kernel makes all gradients in one order on this device")


@pytest.fixture(scope="module")
def spin() -> Callable[[], None]:
    return spinner(cp)


def _mask(rows: int = SHAPE[2]) -> Any:
    return oc.random(rows, 1, text=(20, 90), image=(60, 200))


def _holes() -> Any:
    """Rows and keys that take no part: at the ends, inside, and a whole tile of each."""
    return oc.ranges([(30, 250, 0, 200), (400, 660, 410, 690)], SHAPE[2], SHAPE[2])


def _stream() -> Any:
    return cp.cuda.Stream(non_blocking=True)


@pytest.mark.parametrize("head_dim", [64, 72, 128, 256])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_kind_runs_and_repeats_bit_for_bit(kernel: str, head_dim: int) -> None:
    config = config_of(cp, kernel, head_dim)
    if config is None:
        pytest.skip(f"no row of kernel {kernel} serves this device")
    call = Gradients(cp, _mask(), (2, 4, 700, head_dim), kv_heads=2)
    first = call.run(config=config)
    call.check(first)
    assert bits(cp, call.run(config=config)) == bits(cp, first)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_takes_no_part_may_hold_nan(kernel: str) -> None:
    config = config_of(cp, kernel, SHAPE[3])
    if config is None:
        pytest.skip(f"no row of kernel {kernel} serves this device")
    call = Gradients(cp, _holes(), SHAPE, kv_heads=2)
    clean = call.run(config=config)
    dense = call.mask.to_dense()
    rows, keys = cp.asarray(~dense.any(axis=1)), cp.asarray(~dense.any(axis=0))
    for array in (call.q, call.dout, call.out):
        array[:, :, rows] = np.nan
    call.lse[:, :, rows] = np.nan
    for array in (call.k, call.v):
        array[:, :, keys] = np.nan
    made = call.run(config=config, out_grads=call.targets())
    assert bits(cp, made) == bits(cp, clean)
    assert not bool(made[0][:, :, rows].any())
    assert not bool(made[1][:, :, keys].any())
    assert not bool(made[2][:, :, keys].any())


@pytest.mark.parametrize("wanted", [("q",), ("k",), ("v",), ("k", "v"), ("q", "v")])
def test_every_element_of_what_is_wanted_is_written(wanted: tuple[str, ...]) -> None:
    call = Gradients(cp, [_mask(), _holes()], SHAPE, kv_heads=2)
    whole, right = call.run(), call.run(wanted=wanted)
    call.check(whole)
    targets = tuple(to if name in wanted else None for name, to in zip("qkv", call.targets(), strict=True))
    made = call.run(wanted=wanted, out_grads=targets)
    for name, array, same, near in zip("qkv", made, right, whole, strict=True):
        assert (array is None) == (same is None) == (name not in wanted)
        if array is not None:
            assert bits(cp, [array]) == bits(cp, [same])
            # Other kernels may make it: the bits are those of calls that want the same.
            off = cp.linalg.norm((array.astype(np.float32) - near.astype(np.float32)).ravel())
            assert float(off) < 2e-3 * float(cp.linalg.norm(near.astype(np.float32).ravel()))


def _layouts() -> dict[str, Callable[[Any], Any]]:
    def transposed(dout: Any) -> Any:
        return cp.ascontiguousarray(dout.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)

    def sliced(dout: Any) -> Any:
        wide = cp.full((*dout.shape[:3], dout.shape[3] + 8), np.nan, dout.dtype)
        wide[..., 4:-4] = dout
        return wide[..., 4:-4]  # 8 bytes off

    def strided(dout: Any) -> Any:
        wide = cp.full((*dout.shape[:3], 2 * dout.shape[3]), np.nan, dout.dtype)
        wide[..., ::2] = dout
        return wide[..., ::2]

    def reversed_rows(dout: Any) -> Any:
        return cp.ascontiguousarray(dout[:, :, ::-1])[:, :, ::-1]

    return {one.__name__: one for one in (transposed, sliced, strided, reversed_rows)}


@pytest.mark.parametrize("layout", _layouts())
def test_dout_may_lie_in_any_layout(layout: str) -> None:
    call = Gradients(cp, _mask(), SHAPE)
    wanted = bits(cp, call.run())
    call.dout = _layouts()[layout](call.dout)
    assert bits(cp, call.run()) == wanted


def test_a_broadcast_dout_is_the_one_it_stands_for() -> None:
    call = Gradients(cp, _mask(), SHAPE)
    call.dout = cp.ones(SHAPE, np.float16)
    wanted = bits(cp, call.run())
    call.dout = cp.broadcast_to(cp.ones((), np.float16), SHAPE)
    assert not any(call.dout.strides)
    assert bits(cp, call.run()) == wanted


def test_broadcast_keys_get_their_own_gradients() -> None:
    """K and V of one batch element for both: no tensor map holds them, so they are copied."""
    call = Gradients(cp, _mask(), SHAPE)
    call.k, call.v = (cp.broadcast_to(x[:1], x.shape) for x in (call.k, call.v))
    call.out, call.lse = oc.attention(call.q, call.k, call.v, call.mask, return_lse=True)
    made = call.run()
    call.check(made)


@pytest.mark.parametrize("mask", [_mask, _holes])
def test_work_memory_may_hold_anything(mask: Callable[[], Any], config: Any) -> None:
    call, stream = Gradients(cp, mask(), SHAPE, kv_heads=2), _stream()
    with stream:
        wanted = bits(cp, call.run(config=config))
        for _ in range(3):
            poison_work_memory(cp, call.mask)
            assert bits(cp, call.run(config=config, out_grads=call.targets())) == wanted
            assert not any(counters_of(cp, stream))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_sums_in_any_order_are_near_and_dk_and_dv_the_same(head_dim: int) -> None:
    call, stream = Gradients(cp, [_mask(), _holes()], (2, 4, 700, head_dim), kv_heads=2), _stream()
    with stream:
        first = call.run(deterministic=False)
        call.check(first)
        wanted = bits(cp, first[1:])
        for _ in range(10):
            poison_work_memory(cp, call.mask)
            made = call.run(deterministic=False, out_grads=call.targets())
            assert bits(cp, made[1:]) == wanted
            call.check(made)


@pytest.mark.parametrize("deterministic", [True, False])
def test_split_blocks_of_keys_have_the_same_bits(deterministic: bool) -> None:
    """Few keys that many queries see: several thread blocks make dK and dV of each block of keys."""
    call = Gradients(cp, oc.full(6000, 200), (1, 2, 6000, 128), kv_heads=1)
    first = call.run(deterministic=deterministic)
    call.check(first)
    for _ in range(50):
        made = call.run(deterministic=deterministic, out_grads=call.targets())
        assert bits(cp, made[1:]) == bits(cp, first[1:])
    call.check(made)


def test_counters_are_zero_after_launches_in_a_row() -> None:
    """Forward and backward passes of many shapes take turns at a stream's counters."""
    calls = [
        Gradients(cp, _mask(rows), (1, heads, rows, head_dim))
        for rows, heads, head_dim in ((700, 4, 64), (100, 2, 128), (1500, 16, 256), (300, 40, 128))
    ]
    wanted = [bits(cp, call.run()) for call in calls]
    stream = _stream()
    cp.cuda.Device().synchronize()
    with stream:
        for _ in range(20):
            for call in calls:
                oc.attention(call.q, call.k, call.v, call.mask)
                call.run()
        made = [call.run() for call in calls]
    stream.synchronize()
    assert [bits(cp, one) for one in made] == wanted
    assert not any(counters_of(cp, stream))


def test_lists_uploaded_on_one_stream_are_waited_for_on_another(
    spin: Callable[[], None], config: Any
) -> None:
    call = Gradients(cp, _mask(), SHAPE)
    call.run(config=config)  # compiled and loaded
    call.mask = _mask()
    cp.cuda.Device().synchronize()
    first, second = _stream(), _stream()
    with first:
        spin()
        busy = first.record()
        call.run(config=config)
    with second:
        made = call.run(config=config)
    second.synchronize()
    assert busy.done, "the second stream ran before the lists had arrived"
    call.check(made)


def test_a_mask_may_be_dropped_while_kernels_read_its_lists(spin: Callable[[], None], config: Any) -> None:
    lists = 1 if config.ordered else 2
    call, home, reader = Gradients(cp, _mask(), SHAPE), _stream(), _stream()
    call.mask = _mask()
    with home:
        wanted = bits(cp, call.run(config=config))
    cp.full(1, 255, np.uint8)  # compiled before it has to be quick
    cp.cuda.Device().synchronize()
    copies = list(existing_cache(call.mask).blocks.values())
    assert len(copies) == lists
    sizes = [blocks.nbytes for blocks in copies]
    gc.collect()
    with reader:
        spin()
        made = call.run(config=config)
    del copies
    call.mask = None
    with home:
        taken = [cp.full(size, 255, np.uint8) for size in sizes]  # the pool hands the lists' memory out again
    assert not reader.done
    cp.cuda.Device().synchronize()
    assert bits(cp, made) == wanted
    assert len(taken) == lists


def test_threads_with_streams_of_their_own_share_a_mask(config: Any) -> None:
    mask = _mask()
    calls = [Gradients(cp, mask, SHAPE, seed=seed) for seed in range(6)]
    wanted = [bits(cp, call.run(config=config)) for call in calls]
    found: dict[int, set[bytes]] = {}

    def run(i: int) -> None:
        stream = _stream()
        with stream:
            found[i] = {bits(cp, calls[i].run(config=config)) for _ in range(15)}

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(calls))] == [{one} for one in wanted]


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_same_bits_whatever_runs_beside(head_dim: int) -> None:
    """A hundred times, beside matrix products of random sizes, which move thread blocks to other multiprocessors."""
    call, noise = Gradients(cp, _mask(1500), (1, 8, 1500, head_dim), kv_heads=2), _stream()
    wanted = bits(cp, call.run())
    rng = np.random.default_rng(0)
    matrix = cp.ones((2048, 2048), np.float32)
    cp.cuda.Device().synchronize()
    for _ in range(100):
        with noise:
            for _ in range(int(rng.integers(1, 4))):
                size = int(rng.integers(64, 2048))
                matrix[:size, :size] @ matrix[:size, :size]
        assert bits(cp, call.run(out_grads=call.targets())) == wanted
    noise.synchronize()
