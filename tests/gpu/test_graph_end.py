"""graph_end.py: a graph tells of its end without the interpreter, and without a CUDA call."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import fake_device
import pytest
from fake_driver import Driver, Graph

from omnicupy.gpu import bindings, graph_end
from omnicupy.gpu.graph_end import GraphEnd


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setattr(graph_end, "_spare_locks", [])
    return fake_device.install(monkeypatch).driver


def test_the_end_comes_once_and_stays(driver: Driver) -> None:
    graph, other = Graph(1), Graph(2)
    end, other_end = GraphEnd(graph), GraphEnd(other)
    assert not end.has_come()
    graph.end()
    assert (end.has_come(), end.has_come(), other_end.has_come()) == (True, True, False)
    other.end()
    assert other_end.has_come()


def test_locks_are_used_again(driver: Driver) -> None:
    for number in range(5):
        graph = Graph(number)
        end = GraphEnd(graph)
        assert not end.has_come()
        graph.end()
        assert end.has_come()
    assert len(graph_end._spare_locks) == 1


def test_an_end_does_not_take_that_of_a_later_graph(driver: Driver) -> None:
    """Which has got the same lock."""
    first, second = Graph(1), Graph(2)
    end = GraphEnd(first)
    first.end()
    assert end.has_come()
    later = GraphEnd(second)
    assert not later.has_come()
    second.end()
    assert end.has_come()
    assert later.has_come()


def test_what_is_called_back_is_a_function_of_the_interpreter(driver: Driver) -> None:
    """A Python function would wait for the interpreter, on a thread that the whole of CUDA shares."""
    graph = Graph(1)
    GraphEnd(graph)
    ((function, _),) = graph.user_objects
    assert function == ctypes.cast(ctypes.pythonapi.PyThread_release_lock, ctypes.c_void_p).value


def test_a_graph_that_takes_no_reference_is_an_error(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    driver.retain_fails = True
    monkeypatch.setattr(cupy.cuda.driver, "CUDADriverError", ValueError)
    with pytest.raises(ValueError, match="801"):
        GraphEnd(Graph(1))
    assert driver._objects == {}


def test_the_arguments_are_what_cuda_bindings_takes() -> None:
    real = bindings.driver()
    address = ctypes.cast(ctypes.pythonapi.PyThread_release_lock, ctypes.c_void_p).value
    assert int(real.CUhostFn(address)) == address
    assert int(real.CUuserObject_flags.CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) == 1
    for name in ("cuStreamGetId", "cuStreamGetCaptureInfo", "cuUserObjectCreate", "cuGraphRetainUserObject"):
        assert callable(getattr(real, name))
