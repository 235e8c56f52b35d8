"""The launch ABI: each kernel's parameter struct as a NumPy dtype, field by field as omni/params.cuh,
omni/backward_params.cuh, omni/cached/params.cuh and omni/exchange/params.cuh have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnicupy.jit.exchange_spec import MOST_RANKS
from omnicupy.jit.spec import round_up

_POINTERS = (
    "q",
    "k",
    "v",
    "out",
    "lse",
    "row_offsets",
    "entries",
    "parts",
    "bit_tiles",
    "spans",
    "dead",
)
_STRIDES = ("q_strides", "k_strides", "v_strides", "out_strides")
_FLOATS = ("scale", "scale_log2")
_INTS = (
    *("q_len", "k_len", "head_dim", "batch", "q_heads", "group", "q_blocks", "mask_batch", "diagonal"),
    *("n_spans", "k_padded", "section"),
)
TIERS = 4  # of parts: see schedule/parts.py
_PACKED = ("pack_heads", "pack_tokens", "packs", "part_rows")


_BACKWARD_POINTERS = (
    *("dout", "dlse", "lse2", "delta", "dq", "dk", "dv"),
    *("q_copy", "dout_copy", "k_copy", "v_copy", "dead_rows"),
)
_BACKWARD_STRIDES = ("dout_strides", "dq_strides", "dk_strides", "dv_strides")

_MAPS = ("q_map", "k_map", "v_map")
_BACKWARD_MAPS = ("q_map", "dout_map", "k_map", "v_map")
MAP_BYTES, _MAP_ALIGN = 128, 64  # of one tensor map


def _fields() -> list[tuple[str, str, tuple[int, ...]]]:
    """ForwardParams: pointers first, then 64-bit, then 32-bit fields, so that C adds no padding inside; and behind them
    what changes scores.
    """
    return [
        *((name, "<u8", ()) for name in _POINTERS),
        *((name, "<i8", (3,)) for name in _STRIDES),
        *((name, "<f4", ()) for name in _FLOATS),
        *((name, "<i4", ()) for name in _INTS),
        ("tiers", "<i4", (TIERS,)),
        *((name, "<i4", ()) for name in _PACKED),
        ("sink_logits", "<u8", ()),
        ("tanh_scale", "<f4", ()),
        ("value_dim", "<i4", ()),
    ]


def _backward_fields() -> list[tuple[str, str, tuple[int, ...]]]:
    """BackwardParams: ForwardParams, then its own fields in the same order."""
    return [
        *_fields(),
        *((name, "<u8", ()) for name in _BACKWARD_POINTERS),
        *((name, "<i8", (3,)) for name in _BACKWARD_STRIDES),
        ("dout_column", "<i8", ()),
        ("q_padded", "<i4", ()),
        ("kv_heads", "<i4", ()),
        ("sink_sums", "<u8", ()),
        ("dsink_logits", "<u8", ()),
        ("zeroes_dead_rows", "<i4", ()),
    ]


def _with_pages(base: np.dtype[np.void]) -> np.dtype[np.void]:
    """A forward kernel's struct, and behind it where pages are: PageTable."""
    table = [("page_table", "<u8", ()), *((name, "<i4", ()) for name in ("page_next", "pages", "page_size"))]
    return _behind(base, base.itemsize, table)


def _with_tails(base: np.dtype[np.void]) -> np.dtype[np.void]:
    """A Hopper kernel's struct, and behind it the maps of narrow panels: TailMaps."""
    maps = [(name, "<u8", (MAP_BYTES // 8,)) for name in ("q_tail_map", "k_tail_map", "v_tail_map")]
    return _behind(base, base.itemsize, maps)


def _with_scales(base: np.dtype[np.void]) -> np.dtype[np.void]:
    """A struct with pages, and behind it KvScales. C++ begins there, before the padding of a struct that has a base."""
    end = max(offset + of.itemsize for of, offset, *_ in (base.fields or {}).values())
    scales = [
        *((name, "<u8", ()) for name in ("k_scale", "v_scale")),
        *((name, "<i8", (3,)) for name in ("k_scale_strides", "v_scale_strides")),
        *((name, "<f4", ()) for name in ("k_factor", "v_factor")),
    ]
    return _behind(base, round_up(end, 8), scales)


def _behind(
    base: np.dtype[np.void], at: int, added: Sequence[tuple[str, str, tuple[int, ...]]]
) -> np.dtype[np.void]:
    """A struct, and from an offset on more fields without a gap."""
    fields: dict[str, tuple[np.dtype[Any], int]] = {
        name: (field[0], field[1]) for name, field in (base.fields or {}).items()
    }
    for name, kind, shape in added:
        of = np.dtype((kind, shape))
        fields[name] = (of, at)
        at += of.itemsize
    return np.dtype(
        {
            "names": list(fields),
            "formats": [field[0] for field in fields.values()],
            "offsets": [field[1] for field in fields.values()],
            "itemsize": round_up(at, _MAP_ALIGN if "q_map" in fields else 8),
        }
    )


def _with_rows(base: np.dtype[np.void]) -> np.dtype[np.void]:
    """A struct with pages, and behind it where the rows of each sequence are."""
    fields = {name: field[:2] for name, field in (base.fields or {}).items()}
    last, at = fields["page_size"]
    fields["row_ranges"] = (np.dtype("<u8"), round_up(at + last.itemsize, 8))
    return np.dtype(
        {
            "names": list(fields),
            "formats": [field[0] for field in fields.values()],
            "offsets": [field[1] for field in fields.values()],
            "itemsize": round_up(fields["row_ranges"][1] + 8, _MAP_ALIGN if "q_map" in fields else 8),
        }
    )


def _with_maps(
    names: tuple[str, ...],
    fields_between: list[tuple[str, str, tuple[int, ...]]],
    work: list[tuple[str, str]],
) -> np.dtype[np.void]:
    """Tensor maps, a struct, and fields for the work of persistent kernels. The maps' alignment rounds the size up."""
    maps = [(name, "<u8", (MAP_BYTES // 8,)) for name in names]
    tight = np.dtype([*maps, *fields_between, *((name, kind, ()) for name, kind in work)], align=True)
    fields = dict(tight.fields or {})
    return np.dtype(
        {
            "names": list(fields),
            "formats": [field[0] for field in fields.values()],
            "offsets": [field[1] for field in fields.values()],
            "itemsize": round_up(tight.itemsize, _MAP_ALIGN),
        }
    )


_WORK = [(name, "<u8") for name in ("counter", "partials", "arrivals", "splits")]
_WORK += [(name, "<i4") for name in ("work_items", "n_slots", "n_split_rows", "most_entries")]
_WORK += [("n_parts", "<u8")]
_BACKWARD_WORK = [(name, "<u8") for name in ("counter", "dq_sums", "partials", "arrivals", "turns", "splits")]
_BACKWARD_WORK += [(name, "<i4") for name in ("work_items", "n_slots", "n_split_rows", "head_ranks")]
_BACKWARD_WORK += [("ranks", "<u8")]
_BACKWARD_WORK += [
    (name, "<i4") for name in ("head_sums", "kv_sums", "batch_sums", "places", "turn_heads", "early_heads")
]

_PLAN_POINTERS = (
    *("lengths", "tail", "tail_any", "tail_all"),
    *("row_offsets", "entries", "parts", "splits", "bit_tiles", "dead", "n_parts"),
)
_PLAN_INTS = (
    *("batch", "q_len", "q_blocks", "capacity", "br", "bc", "k_padded", "window", "sink"),
    *("tail_masks", "tail_words", "most_entries", "most_partial", "in_order", "heads"),
    *("sm_count", "split_slots", "split_tiles", "most_cuts", "least_tiles"),
)

ATTN_PARAMS = np.dtype(_fields(), align=True)
ATTN_PARAMS_SM90 = _with_maps(_MAPS, _fields(), _WORK)  # ForwardParamsSm90
BACKWARD_PARAMS = np.dtype(_backward_fields(), align=True)
BACKWARD_PARAMS_SM90 = _with_maps(_BACKWARD_MAPS, _backward_fields(), _BACKWARD_WORK)  # BackwardParamsSm90

_PLAN_FIELDS = [
    *((name, "<u8") for name in _PLAN_POINTERS),
    *((name, "<f4") for name in ("item", "leave", "of_key")),
    *((name, "<i4") for name in _PLAN_INTS),
]
PLAN_PARAMS = np.dtype(_PLAN_FIELDS, align=True)  # PlanParams
RAGGED_PLAN_PARAMS = np.dtype(  # RaggedPlanParams
    [*_PLAN_FIELDS, ("row_starts", "<u8"), ("row_ranges", "<u8"), ("total", "<i4")], align=True
)

APPEND_PARAMS = np.dtype(  # AppendParams
    [
        *((name, "<u8") for name in ("k_new", "v_new", "k", "v", "lengths", "page_table", "slots")),
        *((f"{name}_strides", "<i8", (3,)) for name in ("k_new", "v_new", "k", "v")),
        *((name, "<i4") for name in ("batch", "kv_heads", "tokens", "head_dim", "value_dim")),
        *((name, "<i4") for name in ("page_next", "pages", "page_size", "capacity", "wide_slots")),
    ],
    align=True,
)

EXCHANGE_PARAMS = np.dtype(  # ExchangeParams
    [
        ("given", "<u8", (2,)),
        *((f"{name}_strides", "<i8", (3,)) for name in ("first", "second")),
        *((name, "<u8") for name in ("places", "out")),
        ("memory", "<u8", (MOST_RANKS,)),
        *((name, "<u8") for name in ("slot_bytes", "limit_ns", "late")),
        ("chunks", "<i4", (2,)),
        *((name, "<i4") for name in ("batch", "heads", "first_row", "own_first", "own_rows")),
        *((name, "<i4", (MOST_RANKS,)) for name in ("sent", "received", "there")),
        *((name, "<i4") for name in ("rank", "ranks", "part_rows", "blocks")),
    ],
    align=True,
)

EXCHANGE_ADD_PARAMS = np.dtype(  # ExchangeAddParams
    [
        ("grads", "<u8", (2,)),
        *((f"{name}_strides", "<i8", (3,)) for name in ("first", "second")),
        *((name, "<u8") for name in ("returned", "keys", "begins", "rows")),
        ("chunks", "<i4", (2,)),
        *((name, "<i4") for name in ("batch", "heads", "count")),
    ],
    align=True,
)

# The struct that each kernel kind takes, by value, as its only argument.
PARAMS: dict[str, np.dtype[np.void]] = {
    "naive": ATTN_PARAMS,
    "sm80": ATTN_PARAMS,
    "sm90": ATTN_PARAMS_SM90,
    "sm90_narrow": _with_tails(ATTN_PARAMS_SM90),  # TailParamsSm90
    "naive_paged": (ATTN_PARAMS_PAGED := _with_pages(ATTN_PARAMS)),  # PagedParams
    "sm80_paged": ATTN_PARAMS_PAGED,
    "sm90_paged": (ATTN_PARAMS_SM90_PAGED := _with_pages(ATTN_PARAMS_SM90)),  # PagedParamsSm90
    "naive_ragged": (ATTN_PARAMS_RAGGED := _with_rows(ATTN_PARAMS_PAGED)),  # RaggedParams
    "sm80_ragged": ATTN_PARAMS_RAGGED,
    "sm90_ragged": (ATTN_PARAMS_SM90_RAGGED := _with_rows(ATTN_PARAMS_SM90_PAGED)),  # RaggedParamsSm90
    "naive_fp8": (ATTN_PARAMS_FP8 := _with_scales(ATTN_PARAMS_RAGGED)),  # Fp8Params
    "sm80_fp8": ATTN_PARAMS_FP8,
    "sm90_fp8": _with_scales(ATTN_PARAMS_SM90_RAGGED),  # Fp8ParamsSm90
    "bwd": BACKWARD_PARAMS,
    "bwd_sm90": BACKWARD_PARAMS_SM90,
    "plan": PLAN_PARAMS,
    "plan_ragged": RAGGED_PLAN_PARAMS,
    "append": APPEND_PARAMS,
    "append_fp8": _with_scales(APPEND_PARAMS),  # Fp8AppendParams
    "exchange": EXCHANGE_PARAMS,
    "exchange_add": EXCHANGE_ADD_PARAMS,
    "bwd_sums": np.dtype([*_backward_fields(), ("dq_sums", "<u8", ())], align=True),
}


def params_bytes(kind: str) -> int:
    """Size of the parameter struct of a kernel kind, in bytes; the entry file compares it with its own."""
    return PARAMS[kind].itemsize
