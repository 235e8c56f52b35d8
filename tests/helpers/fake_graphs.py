"""CUDA graphs of continuous batching, played on the CPU: what a step does is recorded once and done again in the same
memory, whatever has been written into its inputs meanwhile.

Numbers that the host took from a tensor would be stale then, so a recording refuses to give any: item, tolist, numpy,
and operators whose shapes depend on elements. Calls on caches are recorded as they are: what they read, the device
would read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers.generation.continuous_batching import initialization, model_runner

from omnicupy.transformers import graphs

_aten = torch.ops.aten
READS = (
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten.unique_consecutive,
    _aten._unique2,
)
READERS = ("item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__")


class HostReadError(RuntimeError):
    """A number went from a tensor to the host while a graph was captured."""


class Graph:
    """What was done in a recording. steps: each does one thing again.  hits: replays."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []
        self.hits = 0

    def replay(self) -> None:
        self.hits += 1
        for step in self.steps:
            step()

    def reset(self) -> None:
        self.steps.clear()


class Recording(TorchDispatchMode):
    """Runs operators and has them in `graph`. A capture runs nothing, so `restore` undoes what they wrote."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._before: dict[int, tuple[Any, Any]] = {}

    def restore(self) -> None:
        """Memory as it was: a step that is done twice reads its own keys from a window's ring."""
        for storage, before in self._before.values():
            storage.copy_(before)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket in READS:
            raise HostReadError(str(function))
        for one, given in zip(function._schema.arguments, args, strict=False):
            if one.alias_info is not None and one.alias_info.is_write:
                storage = given.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        found = function(*args, **kwargs)

        def again() -> None:
            _write(found, function(*args, **kwargs))

        self.graph.steps.append(again)
        return found


def _write(old: Any, new: Any) -> None:
    """The results of an operator into the memory of the first ones; views are of memory that is written elsewhere."""
    if isinstance(old, torch.Tensor):
        if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
            old.copy_(new)
    elif isinstance(old, (tuple, list)):
        for one, other in zip(old, new, strict=True):
            _write(one, other)


class Player:
    """Records steps of transformers' runner. made: the graphs so far.  plans, calls: how many of each are in them.
    replayed: rows and keys of the sequences of each plan that was made again.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[Graph] = []
        self.plans = self.calls = 0
        self.replayed: list[tuple[list[int], list[int]]] = []
        self._graph: Graph | None = None
        self._real = {name: getattr(graphs.front, name) for name in ("attention", "plan")}
        patch.setattr(graphs, "front", self)
        patch.setattr(graphs, "captures", lambda _: self._graph is not None)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self._graph is not None)
        for name in READERS:
            patch.setattr(torch.Tensor, name, self._refusing(getattr(torch.Tensor, name)))
        patch.setattr(initialization, "decide_use_cuda_graphs", lambda **_: None)
        patch.setattr(model_runner.ModelRunner, "_capture_graph", self._capturing())
        for name in ("get_cuda_pools", "get_memory_pools"):
            patch.setattr(model_runner, name, lambda: (None, None), raising=False)

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """As outside of a recording: what the device does."""
        graph, self._graph = self._graph, None
        try:
            with _disable_current_modes():
                yield
        finally:
            self._graph = graph

    def attention(self, *args: Any, **options: Any) -> Any:
        """That of omnicupy.torch, which writes `out`."""

        def call() -> None:
            with self._plain():
                self._real["attention"](*args, **options)

        call()
        if self._graph is not None:
            self.calls += 1
            self._graph.steps.append(call)

    def plan(self, *args: Any, **options: Any) -> Any:
        """That of omnicupy.torch. On a device it is a launch, which a replay does again."""

        def call() -> Any:
            with self._plain():
                return self._real["plan"](*args, **options)

        step = call()

        def again() -> None:
            step.lists = call().lists
            self.replayed.append((step.rows.diff().tolist(), step.lengths.tolist()))

        if self._graph is not None:
            self.plans += 1
            self._graph.steps.append(again)
        return step

    def _refusing(self, reader: Any) -> Any:
        def read(tensor: Any, *args: Any, **options: Any) -> Any:
            if self._graph is not None:
                raise HostReadError(reader.__name__)
            return reader(tensor, *args, **options)

        return read

    def _capturing(self) -> Any:
        def capture(runner: Any, forward: Callable[..., None], stream: Any, *args: Any) -> None:
            forward(*args)
            graph = self._graph = Graph()
            try:
                with Recording(graph) as recording:
                    forward(*args)
            finally:
                self._graph = None
            recording.restore()
            self.made.append(graph)
            runner.inputs_and_outputs.set_graph(graph)

        return capture
