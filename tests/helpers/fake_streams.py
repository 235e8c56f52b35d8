"""Streams of the fake device, and which of them is current, by the rules of CuPy's own."""

from __future__ import annotations

from typing import Any


class CurrentStreams:
    """Whom calls are given to, a stream a device, as CuPy keeps it for a thread.

    A with statement of a stream ends with the stream of the with statement around it, the default one where there is
    none: it forgets what `use` chose meanwhile. fake: says which device is current.
    """

    def __init__(self, fake: Any, streams: dict[int, Any]) -> None:
        self.fake = fake
        self.streams = streams
        self._entered = {device: [stream] for device, stream in streams.items()}
        self._devices: list[int] = []

    def use(self, stream: Any) -> None:
        if stream.device_id not in (-1, self.fake.current):
            raise RuntimeError(
                f"The device that the stream is created on ({stream.device_id}) does not match"
            )
        self.streams[self.fake.current] = stream

    def enter(self, stream: Any) -> None:
        self.use(stream)
        self._devices.append(self.fake.current)
        self._entered[self.fake.current].append(stream)

    def leave(self) -> None:
        device = self._devices.pop()
        self._entered[device].pop()
        self.streams[device] = self._entered[device][-1]


class Stream:
    """current: that of the newest fake, whose driver knows who is captured.  device_id: -1 for any.

    used: how often it was made current.
    """

    current: CurrentStreams

    def __init__(self, ptr: int = 0, device_id: int = -1) -> None:
        self.ptr, self.device_id = ptr, device_id
        self.waited: list[Any] = []
        self.used = 0

    def is_capturing(self) -> bool:
        return self.ptr in self.current.fake.driver.captured

    def wait_event(self, event: Any) -> None:
        self.waited.append(event)

    def use(self) -> Stream:
        self.current.use(self)
        self.used += 1
        return self

    def __enter__(self) -> Stream:
        self.current.enter(self)
        self.used += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.current.leave()
