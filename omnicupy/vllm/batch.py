"""What a step of vLLM is: its requests, and the calls of attention that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omnicupy.schedule.cached_lists import MOST_SEQUENCES
from omnicupy.serving.rule import CachedRule, cached
from omnicupy.vllm.images import Spans, rule_of, spans_of

MOST_PADDED_ROWS = 1 << 16  # of a call, were each of its requests as long as the longest


@dataclass(frozen=True)
class Part:
    """Requests [first, stop), served by one call. rule: which keys they see.  rows: of each where `images`, else the
    most of one.  begin: the first row in q.  keys: no request has more.
    """

    first: int
    stop: int
    rule: CachedRule
    rows: int
    begin: int
    keys: int
    images: bool


@dataclass
class Batch:
    """A step's metadata: one for layers that share a table of pages.

    num_actual_tokens: rows of q that count.  query_start_loc, seq_lens, block_table: int32, on the device of q: where
    each request begins in q, how many keys it has, its pages.  starts: query_start_loc on the host.  most_keys: bounds
    of seq_lens on the host; exact for requests that have rows in images.  mm_prefix_range: first and last positions of
    images, both included, by request; None: no layer sees any. (Its name is vLLM's, whose Gemma 4 sets it to None for
    layers that are causal.)
    """

    num_actual_tokens: int
    query_start_loc: Any
    seq_lens: Any
    block_table: Any
    starts: list[int]
    most_keys: list[int]
    mm_prefix_range: dict[int, list[tuple[int, int]]] | None = None
    steps: dict[Any, Any] = field(default_factory=dict)  # plans that layers of one kind share
    _parts: dict[Any, tuple[Part, ...]] = field(default_factory=dict)

    def parts(self, window: int | None, clamped: bool) -> tuple[Part, ...]:
        """The calls for a layer. window: None for all keys.  clamped: the window hides keys of images, too.

        Raises UnsupportedError as `spans_of`.
        """
        key = window, clamped, self.mm_prefix_range is None
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = tuple(self._cut(window, clamped))
        return found

    def _cut(self, window: int | None, clamped: bool) -> list[Part]:
        counts = [stop - first for first, stop in zip(self.starts, self.starts[1:], strict=False)]
        seen = [self._spans(i, count, None if clamped else window) for i, count in enumerate(counts)]
        parts, first = [], 0
        while first < len(counts):
            stop = _together(counts, seen, first)
            most = max(counts[first:stop])
            if most:
                images = bool(seen[first])
                rule = rule_of(most, tuple(seen[first:stop]), window, clamped) if images else cached(window)
                keys = max(1, *self.most_keys[first:stop])
                parts.append(Part(first, stop, rule, most, self.starts[first], keys, images))
            first = stop
        return parts

    def _spans(self, request: int, rows: int, window: int | None) -> Spans:
        ranges = (self.mm_prefix_range or {}).get(request)
        if not ranges or not rows:
            return ()
        return spans_of(ranges, self.most_keys[request] - rows, rows, window)


def _together(counts: Sequence[int], seen: Sequence[Spans], first: int) -> int:
    """Where the requests end that one call serves with request `first`.

    With images in their rows: equally many rows. Without: single rows or more, since lists are made for the longest.
    """
    images, most = bool(seen[first]), counts[first]
    for stop in range(first + 1, len(counts)):
        count, longest = counts[stop], max(most, counts[stop])
        alike = count == most if images else (count <= 1) == (most <= 1)
        size = stop - first + 1
        if (
            bool(seen[stop]) != images
            or not alike
            or size > MOST_SEQUENCES
            or (size * longest > MOST_PADDED_ROWS)
        ):
            return stop
        most = longest
    return len(counts)
