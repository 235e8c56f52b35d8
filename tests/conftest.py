"""Options and fixtures of all tests: where a GPU is needed, and a kernel cache that is not the user's."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import turns
from small_kernels import Compiler

from omnicupy.choose import backward_additions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="tests marked gpu fail where there is no CUDA device"
    )
    parser.addoption("--every-case", action="store_true", help="run all cases that take turns otherwise")
    parser.addoption(
        "--turn", type=int, help="which of these cases run: any integer; by default the number of commits"
    )
    parser.addoption(
        "--one-in", type=int, default=1, help="let all tests take turns: one in so many runs, by default each"
    )
    parser.addoption(
        "--files-one-in", type=int, default=1, help="let all test files take turns: one in so many runs"
    )
    parser.addoption(
        "--require-vllm", action="store_true", help="fail where vLLM cannot be imported, in place of skipping"
    )


def pytest_configure(config: pytest.Config) -> None:
    """One thread a worker (-n): threads of several workers would wait for each other on the same cores.

    Workers inherit options, and so the turn.
    """
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers are started later and inherit it
    if config.option.turn is None:
        config.option.turn = turns.of_commit()
    if config.getoption("require_vllm"):
        import_module("vllm.v1.attention.backend")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    turns.leave_out(config, items)


@functools.cache
def gpu_problem() -> str | None:
    """Why the tests marked gpu cannot run here, or None when they can."""
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except Exception as error:  # a missing driver shows in as many ways as there are CuPy versions
        return f"no CUDA device ({type(error).__name__})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or (problem := gpu_problem()) is None:
        return
    if item.config.getoption("--require-gpu"):
        pytest.fail(f"--require-gpu: {problem}")
    pytest.skip(problem)


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels of a test run go to a folder of its own, which its workers share, unless OMNICUPY_CACHE_DIR names one."""
    if "OMNICUPY_CACHE_DIR" in os.environ:
        yield
        return
    base = tmp_path_factory.getbasetemp()
    of_run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["OMNICUPY_CACHE_DIR"] = str(of_run / "kernels")
    yield
    del os.environ["OMNICUPY_CACHE_DIR"]


@pytest.fixture(autouse=True)
def _unattested_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests on a GPU come before the attestation: they may use every kernel."""
    from omnicupy.choose import pick

    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    with pick.serve_every_kernel():
        yield


@pytest.fixture
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty kernel cache for one test: its folder, not made yet. Warnings shown once are forgotten."""
    from omnicupy.choose import saved
    from omnicupy.jit import cache

    folder = tmp_path / "cache"
    monkeypatch.setenv("OMNICUPY_CACHE_DIR", str(folder))
    cache._warn_once.cache_clear()
    saved.forget()
    yield folder
    cache.compiled_elsewhere(None)
    saved.forget()


@pytest.fixture
def compiler() -> Compiler:
    """A stand-in for NVRTC that counts its calls."""
    return Compiler()


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel makes all gradients, also where sums have so few additions that two are faster."""
    for name in ("SPLIT_BELOW", "SPLIT_BELOW_SHARED"):
        monkeypatch.setattr(backward_additions, name, 0.0)
