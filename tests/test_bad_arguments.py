"""Every parameter of every public function with values that only look right, and the message that each gets.

ARGUMENTS gives each parameter a kind, whose bad values stand in bad_values.py, and a good value. A public
function or parameter that stands in no row fails the first test.
"""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import odd_values
import pytest
from bad_gradient_values import BACKWARD_CONFIG, LSE, OUT, OUT_GRADS, WANTED
from bad_score_values import sink_logits, softcap
from bad_values import (
    BASE,
    BOUND,
    BOUNDS,
    COND,
    CONFIG,
    DENSE,
    DOCUMENTS,
    FLAG,
    INTEGER,
    LISTS,
    LOW_HIGH,
    MASKED,
    MODES,
    MODULE,
    NEEDED,
    NOISE,
    NUMBERS,
    ONE_OF,
    PREDICATE,
    PROGRESS,
    RECTANGLES,
    SLICES,
    SPANS,
    SPLIT,
    Bad,
    a_mask,
    array,
    choice,
    optional,
    pairs,
    scale,
    tile,
)

import omnicupy as oc
from omnicupy import presets

Q, ROWS = np.zeros((1, 1, 4, 8), np.float32), np.zeros((1, 1, 4), np.float32)
QKV: dict[str, tuple[list[Bad], Any]] = {name: (array(name), Q) for name in ("q", "k", "v")}
SCORES = {"sink_logits": (sink_logits(), None), "softcap": (softcap(), None)}
CALL = QKV | SCORES | {"mask": (a_mask("attention"), None), "scale": (scale(), None), "out": (array("out"), None), "config": (CONFIG, None), "split": (SPLIT, None)}  # fmt: skip
WITHOUT_CACHE: list[Bad] = [
    (value, ValueError, f"prepare: max_length goes with a CachedKV, got {value!r} without one; drop it")
    for value in (4, 2.5, "4", True)
]
ROWS_ARE_OF_CACHES: list[Bad] = [
    (
        value,
        ValueError,
        "rows and max_rows go with a CachedKV or PagedKV; leave them out, and pass oc.documents as the mask of packed "
        "sequences",
    )
    for value in (4, 2.5, "4", True)
]
CALL |= {"rows": (ROWS_ARE_OF_CACHES, None), "max_rows": (ROWS_ARE_OF_CACHES, None)}
LENGTH = {"length": (NEEDED, 8)}
SHAPE = {"q_len": (NEEDED, 8), "k_len": (INTEGER, 8)}

# Of each function the kind of each parameter and a value that is right.
TILE = {"br": (tile("query rows", 1), 32), "bc": (tile("keys", 32), 32)}
ARGUMENTS: dict[str, dict[str, tuple[list[Bad], Any]]] = {
    "attention": CALL | {"return_lse": (FLAG, False)},
    "attention_backward": QKV | {name: CALL[name] for name in ("mask", "scale")} | {
        "dout": (array("dout"), Q), "out": (OUT, Q), "lse": (LSE, ROWS), "dlse": (optional(LSE), None),
        "wanted": (WANTED, ["q", "k", "v"]), "out_grads": (OUT_GRADS, (None,) * 3), "deterministic": (FLAG, False),
        **SCORES, "config": (BACKWARD_CONFIG, None),
    },
    "prepare": CALL | {"return_lse": (FLAG, False), "gradients": (FLAG, True), "max_length": (WITHOUT_CACHE, None)},
    "full": SHAPE,
    "causal": SHAPE,
    "sliding_window": SHAPE | {"left": (NEEDED, 2), "right": (NEEDED, 1)},
    "sink": {"n": (NEEDED, 8), "k": (NEEDED, 2), "k_len": (INTEGER, 8)},
    "prefix": {"n": (NEEDED, 8), "p": (NEEDED, 2)},
    "ranges": {"rectangles": (RECTANGLES, [(0, 1, 0, 1)]), **SHAPE},
    "intervals": {"start": (BOUNDS, np.zeros(4, int)), "stop": (BOUNDS, np.ones(4, int)), "q_len": (NEEDED, 8)},
    "from_dense": {"dense": (DENSE, np.ones((2, 2), bool))},
    "from_predicate": {
        "fn": (PREDICATE, lambda b, h, q, k: q >= k), **SHAPE, "batch": (INTEGER, 2), "threads": (NEEDED, 1),
        "progress": (PROGRESS, None), "xp": (MODULE, np),
    },
    "from_tiles": {
        "lists": (LISTS, [[0]]), **SHAPE, "br": (NEEDED, 8), "bc": (NEEDED, 8),
    },
    "segments": {"documents": (DOCUMENTS, [("text", 3)])},
    "documents": {"lengths": (NUMBERS, [3, 4]), "causal": (FLAG, True)},
    "random": {
        "length": (NEEDED, 64), "seed": (NEEDED, 1), "text": (LOW_HIGH, (1, 4)), "image": (LOW_HIGH, (1, 4)),
        "noise": (NOISE, 0.5), "documents": (INTEGER, 2),
    },
    "presets.bagel": {"sample_lens": (NUMBERS, [4]), "split_lens": (NUMBERS, [2, 2]), "attn_modes": (MODES, ["causal", "full"])},
    "presets.transfusion": LENGTH | {"spans": (SPANS, [(1, 2)])},
    "presets.show_o2": LENGTH | {"spans": (SPANS, [(1, 2)])},
    "presets.hunyuan_image3": LENGTH | {"spans": (SPANS, [(1, 2)])},
    "presets.gemma3": LENGTH | {
        "image_spans": (SPANS, [(1, 2)]), "window": (INTEGER, 3), "compose": (choice("window_over_all, window_over_causal"), "window_over_all"),
    },
    "presets.paligemma": LENGTH | {"prefix": (NEEDED, 2)},
    "presets.janus_cfg": LENGTH | {"prompt": (NEEDED, 2), "cond": (COND, True)},
    "presets.packed": {"lengths": (NUMBERS, [3]), "causal": (FLAG, True)},
    "presets.varlen": {"cu_seqlens": (NUMBERS, [0, 3]), "causal": (FLAG, True), "cu_seqlens_k": (optional(NUMBERS), [0, 4])},
    "presets.padding": {
        "mask": (BASE, oc.causal(4)), "query_lengths": (NUMBERS, [3]), "key_lengths": (NUMBERS, [3]), "side": (choice("right, left"), "left"),
    },
    "presets.streaming": LENGTH | {"sink": (NEEDED, 1), "window": (NEEDED, 2)},
    "presets.mllama": {
        "query_length": (NEEDED, 8), "images": (pairs("position, tiles"), [(1, 1)]), "tile_tokens": (NEEDED, 2), "max_tiles": (NEEDED, 2),
    },
    "presets.tree": {"context": (NEEDED, 2), "parents": (NUMBERS, [-1, 0])},
    "presets.self_forcing": {
        "frames": (NEEDED, 4), "frame_tokens": (NEEDED, 2), "frames_per_block": (NEEDED, 2), "teacher_forcing": (FLAG, False),
        "layout": (choice("split, interleaved, ranked"), "split"), "ranks": (INTEGER, None), "first_frames": (INTEGER, 1),
        "local_frames": (INTEGER, 2), "sink_frames": (NEEDED, 1), "key_frame_tokens": (INTEGER, 2),
    },
    "presets.bd3lm": {
        "length": (INTEGER, 8), "block": (NEEDED, 2), "layout": (choice("split, interleaved"), "split"), "lengths": (ONE_OF, None),
    },
    "presets.block_causal": LENGTH | {"block": (NEEDED, 2), "prompt": (NEEDED, 2), "causal_prompt": (FLAG, True)},
    "presets.chunks": LENGTH | {"chunk": (NEEDED, 2), "left": (INTEGER, 2)},
    "presets.gemma4": LENGTH | {"image_spans": (SPANS, [(1, 2)]), "window": (INTEGER, 3)},
    "presets.one_label": LENGTH | {"spans": (SPANS, [(1, 2)])},
    "presets.slices": {"given": (SLICES, [(0, 2, 0, 2, "full")]), **SHAPE},
    "presets.magi": {"chunks": (NEEDED, 3), "chunk_tokens": (NEEDED, 2), "reach": (NUMBERS[7:], [1, 1, 2])},
    "presets.show_o": LENGTH | {
        "task": (choice("t2i, lm, mmu, lvg"), "t2i"), "pad_end": (NEEDED, 1), "prefix": (NEEDED, 0), "images": (SPANS, [(2, 3)]),
    },
    "Mask.rows": {"start": (NEEDED, 0), "stop": (NEEDED, 2), "keys": (INTEGER, 3)},
    "Mask.extend": {"added": ([one for one in DOCUMENTS if one[0] is not MASKED], [("text", 1)]), "new_document": (FLAG, False)},
    "Mask.blocks": TILE, "Mask.key_blocks": TILE, "Mask.stats": TILE,
    "Mask.dense": {"q0": (BOUND, 0), "q1": (BOUND, 1), "k0": (BOUND, 0), "k1": (BOUND, 1)},
}  # fmt: skip
# Classes whose own tests have such tables, modules, `plot`, whose path is matplotlib's, and what drawing alone calls.
ELSEWHERE = {
    "AttnSpec",
    "BackwardSpec",
    "BlockMask",
    "CachedKV",
    "CachedRule",
    "CachedStep",
    "CompileError",
    "Mask",
    "PagedKV",
    "TileShape",
    "UnsupportedError",
    "append",
    "cached",
    "plan",
    "presets",
}
ELSEWHERE |= {"Mask.plot", "Mask.key_counts_of"}
WITHOUT_ARGUMENTS = {"Mask.to_dense", "Mask.key_counts", "Mask.dead_keys", "Mask.packed_bits"}


def function(name: str) -> Callable[..., Any]:
    if name.startswith("Mask."):
        return getattr(oc.documents([4, 4]), name.removeprefix("Mask."))  # type: ignore[no-any-return]
    module, name = (presets, name.removeprefix("presets.")) if name.startswith("presets.") else (oc, name)
    return getattr(module, name)  # type: ignore[no-any-return]


def test_every_parameter_of_every_public_function_is_here() -> None:
    methods = [
        f"Mask.{name}" for name, _ in inspect.getmembers(oc.Mask, inspect.isfunction) if name[0] != "_"
    ]
    public = {*oc.__all__, *(f"presets.{name}" for name in presets.__all__), *methods}
    assert set(ARGUMENTS) == public - ELSEWHERE - WITHOUT_ARGUMENTS
    for name, arguments in ARGUMENTS.items():
        assert set(arguments) == set(inspect.signature(function(name)).parameters), name


class Case(NamedTuple):
    """One bad value of one argument."""

    function: str
    argument: str
    value: Any
    kind: type[Exception]
    message: str


def cases() -> Iterator[Case]:
    for name, arguments in ARGUMENTS.items():
        where = name.rpartition(".")[2]
        for argument, (bad, _) in arguments.items():
            for value, kind, message in bad:
                words = message.replace("{where}", where).replace("{name}", argument)
                yield Case(name, argument, value, kind, words)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_values_are_refused_by_name(name: str) -> None:
    arguments = {argument: good for argument, (_, good) in ARGUMENTS[name].items()}
    function(name)(**arguments)
    mine = [case for case in cases() if case.function == name]
    assert {case.argument for case in mine} == set(arguments)
    for case in mine:
        with pytest.raises((TypeError, ValueError, oc.UnsupportedError)) as caught:
            function(name)(**(arguments | {case.argument: case.value}))
        assert (caught.type, str(caught.value)) == (case.kind, case.message), (
            case.argument,
            repr(case.value),
        )


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_odd_values_never_fail_inside(name: str) -> None:
    of_user = ("fn", "progress", "xp")  # code that is called, whose errors are its own
    good = {argument: good for argument, (_, good) in ARGUMENTS[name].items() if argument not in of_user}
    rest = {argument: good for argument, (_, good) in ARGUMENTS[name].items() if argument in of_user}
    assert not odd_values.raw_errors(partial(function(name), **rest), good, odd_values.in_lists)


@pytest.mark.parametrize("other", [np.ones((4, 4), bool), np.float64(1), np.ones((4, 4)).view(np.matrix)])
def test_a_mask_and_an_array_are_neither_compared_nor_joined_element_by_element(other: Any) -> None:
    mask = oc.causal(4)
    for call in (lambda: mask == other, lambda: other == mask, lambda: mask != other, lambda: other != mask):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == (
            f"mask == array: a mask equals masks alone, got {type(other).__name__}; compare mask.to_dense() with it, "
            "or from_dense of it with the mask"
        )
    signs = {
        "&": (lambda: mask & other, lambda: other & mask),
        "|": (lambda: mask | other, lambda: other | mask),
    }
    for sign, calls in signs.items():
        for call in calls:
            with pytest.raises(TypeError) as caught:
                call()
            assert str(caught.value) == (
                f"mask {sign} mask: both must be masks, got {type(other).__name__}; a boolean array becomes one with from_dense"
            )
    assert mask != "causal"
    assert mask is not None


def test_slices_with_other_bounds_are_refused_by_name() -> None:
    with pytest.raises(TypeError) as caught:
        oc.causal(4)[0.5:2, :]  # type: ignore[misc]
    assert str(caught.value) == (
        "mask[...]: bounds must be integers, got (slice(0.5, 2, None), slice(None, None, None)); pass whole numbers"
    )


def test_float64_takes_any_scale_that_float64_holds() -> None:
    wide = Q.astype(np.float64)
    for factor in (1e39, 1e-46, 1e300):
        oc.attention(wide, wide, wide, scale=factor)
    with pytest.raises(ValueError, match=r"^scale must be finite and above 0 in float64, got 1.7e\+308"):
        oc.attention(wide, wide, wide, scale=1.7e308)


def test_arrays_of_a_plain_derived_class_and_tensors_of_others_pass(tmp_path: Any) -> None:
    kept = np.memmap(tmp_path / "q", np.float32, "w+", shape=Q.shape)
    assert (oc.attention(kept, Q, Q) == 0).all()

    class Tensor:  # of another library, on the CPU
        def __init__(self, values: Any) -> None:
            self.values = np.array(values)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **options: Any) -> Any:
            return self.values.__dlpack__(**options)

    class OnDevice(Tensor):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    assert presets.varlen(Tensor([0, 3, 5])) == presets.varlen([0, 3, 5])  # type: ignore[arg-type]
    with pytest.raises(TypeError) as caught:
        presets.varlen(OnDevice([0, 3, 5]))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "varlen: cu_seqlens must be in the memory of the CPU, got OnDevice on another device; move it there first, "
        "which waits for the device"
    )
    with pytest.raises(TypeError, match=r"^varlen: cu_seqlens must hold integers, got an array of float64"):
        presets.varlen(Tensor([0.0, 3.0]))  # type: ignore[arg-type]
