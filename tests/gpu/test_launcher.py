"""gpu/launcher.py: what the driver is asked for, without a driver."""

from __future__ import annotations

import ctypes
import struct
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import driver

from omnicupy.gpu import bindings, launcher, modules
from omnicupy.gpu.launcher import COOPERATIVE, OVERLAPPING, Launcher
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.few_rows_spec import FewRowsSpec
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.jit.ragged_spec import RaggedSpec
from omnicupy.jit.spec import AttnSpec, KernelSpec

GRID, BLOCK, SMEM = (132, 1, 1), (384, 1, 1), 200_000


class Asked:
    """cuLaunchKernelEx that keeps the configuration and the bytes of the one argument; the rest is the driver's."""

    def __init__(self, status: int = 0) -> None:
        self.status = driver.CUresult(status)
        self.launches: list[tuple[Any, int, bytes]] = []
        self.length = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(driver, name)

    def cuLaunchKernelEx(self, config: Any, function: Any, parameters: bytes, extra: int) -> tuple[Any]:  # noqa: N802
        (address,) = struct.unpack("@P", parameters)
        self.launches.append((config, int(function), ctypes.string_at(address, self.length)))
        assert extra == 0
        return (self.status,)


def _made(asked: Asked, *attributes: str) -> Launcher:
    found = Launcher(SimpleNamespace(ptr=77), attributes)
    found._driver = asked
    return found


def _argument(asked: Asked, content: bytes) -> bytearray:
    asked.length = len(content)
    return bytearray(content)


def test_a_launch_says_that_it_may_begin_early() -> None:
    asked = Asked()
    launch = _made(asked, OVERLAPPING)
    launch(GRID, BLOCK, (_argument(asked, b"the parameters"),), SMEM, SimpleNamespace(ptr=5))
    ((config, function, content),) = asked.launches
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == GRID
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == BLOCK
    assert (config.sharedMemBytes, int(config.hStream), function) == (SMEM, 5, 77)
    assert content == b"the parameters"
    (attribute,) = config.attrs
    assert config.numAttrs == 1
    assert attribute.id == driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert attribute.value.programmaticStreamSerializationAllowed == 1


def test_a_bound_launch_takes_what_its_struct_holds_then(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, argument = Asked(), bytearray(b"the parameters")
    asked.length = len(argument)
    launch = _made(asked, OVERLAPPING)
    start = launch.bind(GRID, BLOCK, argument, SMEM, SimpleNamespace(ptr=5))
    start()
    argument[:3] = b"our"
    start()
    launch(GRID, BLOCK, (argument,), SMEM, SimpleNamespace(ptr=5))
    assert [content for _, _, content in asked.launches] == [b"the parameters", *2 * [b"our parameters"]]
    assert len({(id(config), function) for config, function, _ in asked.launches}) == 1
    with pytest.raises(BufferError):
        argument.append(0)  # which might move it
    asked.status = driver.CUresult(launcher.INVALID_CONTEXT)

    def set_device(device: int) -> None:
        asked.status = driver.CUresult(0)

    runtime = SimpleNamespace(getDevice=lambda: 3, setDevice=set_device)
    monkeypatch.setattr(launcher, "_runtime", runtime)
    start()
    assert len(asked.launches) == 5


def test_other_launches_wait_for_the_kernel_ahead() -> None:
    asked = Asked()
    launch = _made(asked)
    launch(GRID, BLOCK, (_argument(asked, b"the parameters"),), SMEM, SimpleNamespace(ptr=5))
    ((config, function, content),) = asked.launches
    assert (config.gridDimX, config.blockDimX, config.sharedMemBytes, int(config.hStream)) == (
        132,
        384,
        SMEM,
        5,
    )
    assert (function, content) == (77, b"the parameters")
    assert (config.numAttrs, config.attrs) == (0, [])


def test_a_launch_may_ask_for_all_its_thread_blocks_at_once() -> None:
    asked = Asked()
    _made(asked, COOPERATIVE)(GRID, BLOCK, (_argument(asked, b"x"),), SMEM, SimpleNamespace(ptr=5))
    (attribute,) = asked.launches[0][0].attrs
    assert attribute.id == driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    assert attribute.value.cooperative == 1


def test_a_thread_without_a_context_gets_that_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new thread, whose first call of CUDA this may be."""
    asked, devices = Asked(status=launcher.INVALID_CONTEXT), []

    def set_device(device: int) -> None:
        devices.append(device)
        asked.status = driver.CUresult(0)

    runtime = SimpleNamespace(getDevice=lambda: 3, setDevice=set_device)
    monkeypatch.setattr(launcher, "_runtime", runtime)
    _made(asked)(GRID, BLOCK, (_argument(asked, b"x"),), SMEM, SimpleNamespace(ptr=0))
    assert (devices, len(asked.launches)) == ([3], 2)


def test_configurations_are_kept_a_grid_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "MAX_CONFIGS", 2)
    asked = Asked()
    launch = _made(asked)
    argument = (_argument(asked, b"x"),)
    for grid, stream in ((GRID, 5), (GRID, 5), (GRID, 6), ((7, 1, 1), 5), (GRID, 5)):
        launch(grid, BLOCK, argument, SMEM, SimpleNamespace(ptr=stream))
    configs = [config for config, _, _ in asked.launches]
    assert configs[0] is configs[1]
    assert len({id(config) for config in configs}) == 4  # the oldest were forgotten
    assert [int(config.hStream) for config in configs] == [5, 5, 6, 5, 5]
    assert [config.gridDimX for config in configs] == [132, 132, 132, 7, 132]


def test_the_drivers_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class CUDADriverError(Exception):
        pass

    fake = SimpleNamespace(cuda=SimpleNamespace(driver=SimpleNamespace(CUDADriverError=CUDADriverError)))
    monkeypatch.setattr(bindings, "cupy", fake)
    asked = Asked(status=1)
    with pytest.raises(CUDADriverError, match="1"):
        _made(asked)(GRID, BLOCK, (_argument(asked, b"x"),), SMEM, SimpleNamespace(ptr=0))


def _attributes(monkeypatch: pytest.MonkeyPatch, spec: KernelSpec, version: int) -> tuple[str, ...]:
    """Of a kernel's launches, by the version of the driver."""
    runtime = SimpleNamespace(driverGetVersion=lambda: version)
    monkeypatch.setattr(modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    found: tuple[str, ...] = modules._launcher(spec, SimpleNamespace(ptr=3))._attributes
    return found


@pytest.mark.parametrize(
    ("kernel", "version", "early"), [("sm90", 12030, True), ("sm90", 12020, False), ("sm80", 13000, False)]
)
def test_who_may_begin_early(monkeypatch: pytest.MonkeyPatch, kernel: str, version: int, early: bool) -> None:
    size = {"br": 128, "bc": 64, "warps": 12 if kernel == "sm90" else 4}
    spec = AttnSpec(
        arch="sm_90a" if kernel == "sm90" else "sm_90", kernel=kernel, dtype="float16", head_dim=64, **size
    )
    assert _attributes(monkeypatch, spec, version) == ((OVERLAPPING,) if early else ())


PACKED = AttnSpec(
    arch="sm_90a", kernel="sm90", dtype="bfloat16", head_dim=128, br=64, bc=128, warps=8, pack=True
)


@pytest.mark.parametrize(("in_pages", "ragged"), list(product((False, True), repeat=2)))
def test_on_caches_of_e4m3_and_of_few_rows_any_may(
    monkeypatch: pytest.MonkeyPatch, in_pages: bool, ragged: bool
) -> None:
    few = FewRowsSpec.of(PACKED)
    specs = [few.for_caches(e4m3=e4m3, in_pages=in_pages, ragged=ragged) for e4m3 in (False, True)]
    specs += [Fp8Spec.of_e4m3(PACKED, in_pages=in_pages, ragged=ragged)]
    for spec in specs:
        assert _attributes(monkeypatch, spec, 12030) == (OVERLAPPING,)
        assert _attributes(monkeypatch, spec, 12020) == ()


def test_on_caches_others_wait_but_those_of_16_bits_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    portable = AttnSpec(arch="sm_90", kernel="sm80", dtype="bfloat16", head_dim=64, br=64, bc=64, warps=4)
    assert _attributes(monkeypatch, CachedSpec.of(PACKED), 12030) == (OVERLAPPING,)
    of_e4m3 = Fp8Spec.of_e4m3(portable, in_pages=False)
    for spec in (PagedSpec.with_pages(PACKED, 16), RaggedSpec.of(PACKED), of_e4m3):
        assert _attributes(monkeypatch, spec, 13000) == ()
