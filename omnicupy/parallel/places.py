"""Where in a rank's shard the keys lie that travel, on a device; made once, and kept with the plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from omnicupy.errors import UnsupportedError
from omnicupy.parallel.exchange import Exchange
from omnicupy.parallel.runs import Whole
from omnicupy.torch.state import captures

Run: TypeAlias = Any  # slice or index tensor


class Places:
    """Of one exchange. found: where they are kept."""

    def __init__(self, exchange: Exchange, found: dict[Any, Any]) -> None:
        self._exchange, self._found = exchange, found

    def sent(self, device: Any) -> Run:
        """Of the keys that are sent, by target: a slice where they are one run, else on this device."""

        def made() -> Run:
            every = np.concatenate(self._exchange.send)
            if not len(every):
                return slice(0, 0)
            if (np.diff(every) == 1).all():
                return slice(int(every[0]), int(every[-1]) + 1)
            return _on(device, every)

        return self._kept("places", device, made)

    def touched(self, device: Any) -> tuple[Any, ...]:
        """Of the keys that any rank is sent, ascending; then for each rank where among them its own are."""

        def made() -> tuple[Any, ...]:
            every = np.unique(np.concatenate(self._exchange.send))
            return tuple(
                _on(device, one)
                for one in (every, *(np.searchsorted(every, one) for one in self._exchange.send))
            )

        found: tuple[Any, ...] = self._kept("touched", device, made)
        return found

    def summed(self, device: Any) -> tuple[Any, ...]:
        """Of the keys that any rank is sent, ascending; for each of them where its rows begin in the third, and how
        many there are; rows of what comes back, by key and rank. All int32.
        """

        def made() -> tuple[Any, ...]:
            sent = np.concatenate(self._exchange.send)
            rows = np.argsort(sent, kind="stable")
            every, begins = np.unique(sent[rows], return_index=True)
            found = every, np.append(begins, len(sent)), rows
            return tuple(_on(device, one.astype(np.int32)) for one in found)

        found: tuple[Any, ...] = self._kept("summed", device, made)
        return found

    def are_apart(self) -> bool:
        """Whether no key is sent to two ranks."""

        def made() -> bool:
            every = np.concatenate(self._exchange.send)
            return len(np.unique(every)) == len(every)

        return bool(self._kept("apart", None, made))

    def _kept(self, name: str, device: Any, made: Callable[[], Any]) -> Any:
        key = (name, id(self._exchange), device)
        if key not in self._found:
            self._found[key] = made()
        return self._found[key]


def check_captured(device: Any) -> None:
    """For what the first of equal calls does: raises UnsupportedError in a capture."""
    if captures(device):
        raise UnsupportedError(
            "attention of several ranks: the first call of its kind cannot be captured into a CUDA graph, since ranks "
            "compare their plans in it and copy to the device which keys travel; make it once on every rank before the "
            "capture, its backward pass too where that is captured"
        )


def _on(device: Any, places: Whole) -> Any:
    check_captured(device)
    return torch.from_numpy(places).to(device)
