"""Problems that share a tuned choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnicupy.call.problem import Problem
from omnicupy.jit.widths import kernel_widths
from omnicupy.masks.constructors import causal
from omnicupy.masks.mask import Mask

# Upper ends of the classes, in rows a span of a key has on average, and in query rows, waves and keys.
SPAN_ROWS = (64, 256, 1024, 4096)
QUERY_ROWS = (64, 128)
WAVES = (1, 2, 4, 8)
KEYS = (512, 2048, 8192)

FORWARD, BACKWARD = "forward", "backward"
# Kinds of caches: none; keys one behind the other; in pages that boxes of the copy engine fill, and in others.
NONE, WHOLE, PAGES, OTHER_PAGES = CACHES = ("", "contiguous", "pages", "other pages")

_ROWS_OF_A_BLOCK = 128  # of the query blocks that waves are counted in


@dataclass(frozen=True)
class ProblemClass:
    """Problems that share a choice. head_dim: the kernel's.  mask, shape: as mask_class and shape_class say.
    value_dim: columns of V, of the kernel.  passed: FORWARD or BACKWARD, the pass whose kernels are chosen.
    deterministic: False where sums of gradients may have any order.  softcap: are scores capped?  cache: one of CACHES;
    the keys in `shape` are then those that a sequence may have.

    Raises ValueError for another pass, and for a forward pass that is not deterministic: there is none.
    """

    dtype: str
    head_dim: int
    mask: str
    shape: str
    value_dim: int
    passed: str = FORWARD
    deterministic: bool = True
    softcap: bool = False
    cache: str = NONE

    def __post_init__(self) -> None:
        if self.passed not in (FORWARD, BACKWARD):
            raise ValueError(f"passed: expected {FORWARD} or {BACKWARD}, got {self.passed!r}")
        if self.cache not in CACHES or (self.cache and self.passed != FORWARD):
            raise ValueError(f"cache: expected one of {CACHES}, for {BACKWARD} none, got {self.cache!r}")
        if type(self.softcap) is not bool:
            raise ValueError(f"softcap: expected a bool, got {self.softcap!r}")
        if type(self.deterministic) is not bool or not (self.deterministic or self.passed == BACKWARD):
            raise ValueError(
                f"deterministic: expected a bool, for {FORWARD} True, got {self.deterministic!r}"
            )


def class_of(
    problem: Problem,
    masks: Sequence[Mask],
    sm_count: int,
    passed: str = FORWARD,
    *,
    deterministic: bool = True,
    cache: str = NONE,
) -> ProblemClass:
    """The class of a pass of a call's problem; O(k_len) for masks held as intervals.

    passed, deterministic, cache: as in ProblemClass.  Raises UnsupportedError for widths that no kernel serves.
    """
    head_dim, value_dim = kernel_widths(problem.head_dim, problem.value_dim)
    return ProblemClass(
        problem.dtype,
        head_dim,
        mask_class(masks),
        shape_class(problem, sm_count),
        value_dim=value_dim,
        passed=passed,
        deterministic=deterministic,
        softcap=problem.softcap,
        cache=cache,
    )


def mask_class(masks: Sequence[Mask]) -> str:
    """ "full", "causal", "bits" (a mask held as bits), or how many rows see a key in one go, on average.

    The last decides how much of a tile is wasted at its edges: "spans<=64", up to "spans>4096"; "spans<=64"
    too where nothing is allowed.
    """
    q_len, k_len = masks[0].shape
    if all(mask.pairs == q_len * k_len for mask in masks):
        return "full"
    plain = causal(q_len, k_len)
    if all(mask.pairs == plain.pairs and mask == plain for mask in masks):
        return "causal"
    if any(mask.intervals is None for mask in masks):
        return "bits"
    spans = sum(int((m.intervals[0] < m.intervals[1]).sum()) for m in masks if m.intervals is not None)
    return _bucket("spans", sum(mask.pairs for mask in masks) / max(1, spans), SPAN_ROWS)


def shape_class(problem: Problem, sm_count: int) -> str:
    """What decides how well tiles fill the device: rows, blocks of 128 rows a multiprocessor, and keys; for few rows
    also whether two heads of a group can share a tile.
    """
    blocks = problem.batch * problem.q_heads * -(-problem.q_len // _ROWS_OF_A_BLOCK)
    found = [
        _bucket("rows", problem.q_len, QUERY_ROWS),
        _bucket("waves", blocks / sm_count, WAVES),
        _bucket("keys", problem.k_len, KEYS),
    ]
    if problem.q_len <= QUERY_ROWS[0] and problem.group % 2 == 0:
        found.append("heads in twos")
    return ", ".join(found)


def _bucket(name: str, value: float, ends: Sequence[int]) -> str:
    for end in ends:
        if value <= end:
            return f"{name}<={end}"
    return f"{name}>{ends[-1]}"
