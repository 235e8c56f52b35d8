"""The exchange of a call by a kernel that writes to other GPUs of the host: what is launched, and where it goes.

kernels/exchange_keys.cu is the kernel. Own keys are copied in the same launch, and nothing is packed or unpacked.
kernels/exchange_add.cu adds gradients that come back to those of own keys, of k and v in one launch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from omnicupy.jit.exchange_spec import ADD_THREADS, CHANNELS, CHUNK, MOST_PARTS
from omnicupy.jit.params import EXCHANGE_ADD_PARAMS, EXCHANGE_PARAMS
from omnicupy.parallel.peer_memory import PeerMemory
from omnicupy.parallel.places import Places
from omnicupy.parallel.ranks import Ranks
from omnicupy.torch.eager import raw_stream

MOST_TEMPLATES = 64  # kept of one trip
BESIDE = 64  # thread blocks of an exchange beside other work
PART_BYTES = 1 << 16  # that a channel sends before its next flag
OWN_BYTES = 1 << 16  # of own keys, at least, that a thread block copies
_GIVEN = struct.Struct("<2Q")  # the first fields of EXCHANGE_PARAMS, and of EXCHANGE_ADD_PARAMS
_OUT = struct.Struct("<Q")
_OUT_AT = EXCHANGE_PARAMS.fields["out"][1]  # type: ignore[index]
_RETURNED_AT = EXCHANGE_ADD_PARAMS.fields["returned"][1]  # type: ignore[index]
_ADDED = {torch.float16: "float16", torch.bfloat16: "bfloat16"}  # dtypes of gradients, as a spec names them


# Keys from each rank to each other one, whether on a stream of its own, whether by few thread blocks, and the limit.
How: TypeAlias = tuple[Any, bool, bool, float]


class PeerPending:
    """An exchange that runs on a stream of its own, or on the current one. tensors: kept until it is waited for."""

    def __init__(self, event: Any = None, tensors: tuple[Any, ...] = ()) -> None:
        self._event, self._tensors = event, tensors

    def wait(self) -> None:
        """Until what came may be read, on the current stream; once. The host does not wait."""
        event, self._event, self._tensors = self._event, None, ()
        if event is not None:
            event.wait()


class PeerTrip:
    """What the exchanges of calls under one plan need. traffic: keys from each rank (first axis) to each other one."""

    def __init__(self, ranks: Ranks, memory: PeerMemory, places: Places, traffic: Any) -> None:
        self._ranks, self._memory, self._places = ranks, memory, places
        self._traffic = np.asarray(traffic, np.int64)
        self._templates: dict[Any, tuple[bytes, int]] = {}
        self._indices: dict[Any, Any] = {}

    def there(
        self, arrays: Sequence[Any], heads: slice, own: tuple[int, int], hides: bool, limit: float
    ) -> tuple[Any, PeerPending]:
        """As `Trip.there`, on the current stream or, where it hides, beside what that does next."""
        every = arrays[0].shape[1]
        first, stop, _ = heads.indices(every)
        if stop - first != every:
            arrays = [one[:, first:stop] for one in arrays]
        places = self._places.sent(arrays[0].device)
        # Beside the first of several groups of heads nothing runs.
        few = hides and (first > 0 or stop == every)
        return self._moved(arrays, places, own, (self._traffic, hides, few, limit))

    def back(self, grads: Sequence[Any], own: int, hides: bool, limit: float) -> tuple[Any, PeerPending]:
        """As `Trip.back`. own: keys in front of those that are sent."""
        coming = int(self._traffic[:, self._ranks.rank].sum())
        return self._moved(grads, slice(own, own + coming), (0, 0), (self._traffic.T, hides, hides, limit))

    def adds(self, grads: Sequence[Any]) -> bool:
        """Whether `add` serves these gradients."""
        return grads[0].dtype in _ADDED and all(_is_aligned(one) for one in grads)

    def add(self, grads: Sequence[Any], returned: Any) -> None:
        """As `Trip.add`, on the current stream. returned: what came of `back`."""
        first = grads[0]
        key = ("add", *((one.shape, one.stride()) for one in grads), first.dtype, first.device)
        found = self._templates.get(key)
        if found is None:
            found = self._keep(key, self._sums(grads))
        params, blocks = bytearray(found[0]), found[1]
        _GIVEN.pack_into(params, 0, first.data_ptr(), grads[-1].data_ptr())
        _OUT.pack_into(params, _RETURNED_AT, returned.data_ptr())
        stream = raw_stream(first.device.index) if first.is_cuda else 0
        self._memory.device.add(params, blocks, stream, _ADDED[first.dtype])

    def _sums(self, grads: Sequence[Any]) -> tuple[bytes, int]:
        """All that stays of a launch of `add`, and its thread blocks."""
        keys, begins, rows = self._places.summed(grads[0].device)
        record = np.zeros(1, EXCHANGE_ADD_PARAMS)[0]
        columns = _set_layout(record, grads)
        for name, one in (("keys", keys), ("begins", begins), ("rows", rows)):
            record[name] = one.data_ptr()
        record["count"] = len(keys)
        chunks = len(keys) * int(record["batch"]) * int(record["heads"]) * sum(columns)
        return record.tobytes(), -(-chunks // ADD_THREADS)

    def _moved(
        self, arrays: Sequence[Any], places: Any, own: tuple[int, int], how: How
    ) -> tuple[Any, PeerPending]:
        self._memory.check()
        traffic, hides, *_ = how
        arrays = [one if _is_aligned(one) else one.contiguous() for one in arrays]
        first = arrays[0]
        count = own[1] - own[0] + int(traffic[:, self._ranks.rank].sum())
        columns = sum(one.shape[3] for one in arrays)
        out = first.new_empty((count, first.shape[0], first.shape[1], columns))
        if not first.shape[0] * first.shape[1] * columns:
            return out, PeerPending()
        params, blocks = self._params(arrays, places, own, how)
        given = [one.data_ptr() for one in arrays]
        _GIVEN.pack_into(params, 0, given[0], given[-1])
        _OUT.pack_into(params, _OUT_AT, out.data_ptr())
        memory = self._memory
        if not first.is_cuda:
            memory.device.launch(params, blocks, 0)
            return out, PeerPending()
        if not hides:
            handle = raw_stream(first.device.index)
            if handle != memory.last_handle or torch.cuda.is_current_stream_capturing():
                _order(memory, torch.cuda.current_stream(first.device))
            memory.device.launch(params, blocks, handle)
            return out, PeerPending()
        if memory.stream is None:
            memory.stream = torch.cuda.Stream(first.device, priority=-1)
        stream = memory.stream
        stream.wait_stream(torch.cuda.current_stream(first.device))
        _order(memory, stream)
        memory.device.launch(params, blocks, stream.cuda_stream)
        return out, PeerPending(stream.record_event(), (*arrays, out))

    def _params(
        self, arrays: Sequence[Any], places: Any, own: tuple[int, int], how: How
    ) -> tuple[bytearray, int]:
        """All that stays of a launch, and its thread blocks."""
        traffic, *rest = how
        layout = tuple((one.shape, one.stride()) for one in arrays)
        first = arrays[0]
        addresses = self._memory.addresses
        key = (layout, first.dtype, first.device, own, traffic is self._traffic, *rest, addresses)
        found = self._templates.get(key)
        if found is None:
            found = self._keep(key, self._template(arrays, places, own, how))
        return bytearray(found[0]), found[1]

    def _keep(self, key: Any, made: tuple[bytes, int]) -> tuple[bytes, int]:
        if len(self._templates) >= MOST_TEMPLATES:
            self._templates.clear()
        self._templates[key] = made
        return made

    def _template(
        self, arrays: Sequence[Any], places: Any, own: tuple[int, int], how: How
    ) -> tuple[bytes, int]:
        traffic, _, few, limit = how
        rank, ranks, memory = self._ranks.rank, self._ranks.size, self._memory
        record = np.zeros(1, EXCHANGE_PARAMS)[0]
        columns = _set_layout(record, arrays)
        row_bytes = int(record["batch"]) * int(record["heads"]) * sum(columns) * CHUNK
        if isinstance(places, slice):
            record["first_row"] = places.start
        else:
            record["places"] = self._index(places).data_ptr()
        record["memory"][:ranks] = memory.addresses
        record["slot_bytes"], record["late"] = memory.slot_bytes, memory.device.late_address
        record["limit_ns"] = int(limit * 1e9)
        record["own_first"], record["own_rows"] = own[0], own[1] - own[0]
        record["sent"][:ranks], record["received"][:ranks] = traffic[rank], traffic[:, rank]
        record["there"][:ranks] = traffic[:rank].sum(axis=0)
        record["rank"], record["ranks"] = rank, ranks
        share = -(-int(traffic.max()) // CHANNELS)
        record["part_rows"] = max(1, PART_BYTES // row_bytes, -(-share // MOST_PARTS))
        record["blocks"] = blocks = BESIDE // 4 if few else CHANNELS
        most = (BESIDE if few else 2 * memory.device.sm_count) - 2 * blocks
        copies = min(max(1, most), -(-int(record["own_rows"]) * row_bytes // OWN_BYTES))
        return record.tobytes(), 2 * blocks + copies

    def _index(self, places: Any) -> Any:
        """As the kernel reads them; kept."""
        key = places.device
        if key not in self._indices:
            self._indices[key] = places.to(torch.int32)
            if places.is_cuda:
                torch.cuda.current_stream(key).synchronize()  # calls on other streams read them, too
        return self._indices[key]


def _set_layout(record: Any, arrays: Sequence[Any]) -> list[int]:
    """How arrays (batch, heads, keys, columns) lie, as fields of either struct. Returns chunks of a row of each."""
    size = arrays[0].element_size()
    for name, one in zip(("first_strides", "second_strides"), arrays, strict=False):
        record[name] = [step * size // CHUNK for step in one.stride()[:3]]
    columns = [one.shape[3] * size // CHUNK for one in arrays]
    record["chunks"][: len(columns)] = columns
    record["batch"], record["heads"] = arrays[0].shape[:2]
    return columns


def _order(memory: PeerMemory, stream: Any) -> None:
    """Exchanges of a rank follow each other, on whichever streams they are: those that are captured follow the others
    of their capture, which do not run now, and no others.
    """
    if torch.cuda.is_current_stream_capturing():
        (of, last), capture = memory.captured, memory.device.capture(stream.cuda_stream)
        memory.captured = capture, stream
        last = last if of == capture else None
    else:
        last = memory.last
        memory.last, memory.last_handle = stream, stream.cuda_stream
    if last is not None and last != stream:
        stream.wait_stream(last)


def slot_bytes(traffic: Any, row_bytes: int) -> int:
    """That the fullest slot of any rank takes, there or back."""
    sums = np.asarray(traffic, np.int64)
    return int(max(sums.sum(axis=0).max(), sums.sum(axis=1).max())) * row_bytes


def why_not(k: Any, v: Any) -> str:
    """Why the kernel does not move rows of such arrays; "" where it does. The same on every rank."""
    for name, one in (("k", k), ("v", v)):
        if one.shape[3] * one.element_size() % CHUNK:
            return f"rows of {name} have {one.shape[3] * one.element_size()} bytes, no multiple of {CHUNK}"
    return ""


def _is_aligned(one: Any) -> bool:
    size = one.element_size()
    *steps, last = one.stride()
    odd = one.data_ptr()
    for step in steps:
        odd |= step * size
    return bool(last == 1 and odd % CHUNK == 0)
