"""Values that only look right, by kind of argument, each with the error and message that it gets.

In messages {where} stands for the function and {name} for the argument.
"""
# ruff: noqa: E501  (a message is one line, as the user reads it)

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

import omnicupy as oc

Bad = tuple[Any, type[Exception], str]

OBJECTS: list[Any] = [2.0, 2.5, "2", b"2", np.float64(2), np.array([1.0]), np.array([1, 2]), [2], 1j]
MASKED = np.ma.masked_array([1, 2], [0, 1])
OWN_RULES = "must be a plain NumPy array, got numpy.ma.MaskedArray, whose own rules would be ignored; pass numpy.asarray of it where its plain elements are meant"


def named(value: object) -> str:
    return f"{type(value).__name__} {value!r}"


def integer(*more: Any) -> list[Bad]:
    message = "{where}: {name} must be an integer, got {got}; pass a whole number"
    return [(v, TypeError, message.replace("{got}", named(v))) for v in [*OBJECTS, True, np.True_, *more]]


def a_list() -> list[Bad]:
    message = "{where}: {name} must be a list or an array, got {got}; make it a list"
    wrong = [
        (v, TypeError, message.replace("{got}", named(v))) for v in (5, 2.0, "12", b"12", {1: 2}, {1}, None)
    ]
    return [*wrong, (MASKED, TypeError, "{where}: {name} " + OWN_RULES)]


def numbers() -> list[Bad]:
    items = [
        (v, TypeError, "{where}: {name}[0] must be an integer, got " + named(v[0]) + "; pass a whole number")
        for v in ([2.0], ["2"], [None], [True], [[2]], [np.array([2, 3])])
    ]
    floats = "{where}: {name} must hold integers, got an array of float64; convert it"
    axes = "{where}: {name} must have one axis, got shape (1, 2); reshape it"
    return [*a_list(), *items, (np.array([2.0]), TypeError, floats), (np.array([[1, 2]]), ValueError, axes)]


def pairs(parts: str) -> list[Bad]:
    message = "{where}: {name}[0] must be a pair (" + parts + "), got {got}; give two integers"
    wrong = [
        (v, TypeError, message.replace("{got}", repr(v[0])))
        for v in ([3], ["12"], [(1,)], [(1, 2, 3)], [None], [np.array(1)])
    ]
    entry = "{where}: {name}[0] must be an integer, got float 1.0; pass a whole number"
    floats = "{where}: {name} must hold integers, got an array of float64; convert it"
    return [*a_list(), *wrong, ([(1.0, 2)], TypeError, entry), (np.ones((1, 2)), TypeError, floats)]


def choice(allowed: str) -> list[Bad]:
    message = "{where}: {name} must be one of " + allowed + ", got {got}; name one of these"
    return [
        (v, ValueError, message.replace("{got}", repr(v))) for v in (None, 1, "", "Left", b"left", ["left"])
    ]


def optional(bad: list[Bad]) -> list[Bad]:
    return [one for one in bad if one[0] is not None]


def tile(unit: str, multiple: int) -> list[Bad]:
    wanted = f"a positive multiple of {multiple}" if multiple > 1 else "a positive whole number"
    message = "blocks: {name} (" + unit + f") must be {wanted}, got " + "{got}; round it up"
    return [
        (v, ValueError, message.replace("{got}", repr(v))) for v in (None, True, 64.0, "64", -64, 2**31, [64])
    ]


def array(name: str) -> list[Bad]:
    convert = (
        f"{name} must be a CuPy or NumPy array, got " + "{got}; convert it with cupy.asarray or numpy.asarray"
    )
    masked = np.ma.masked_array(np.zeros((1, 1, 4, 8), np.float32), False)
    wrong: list[Bad] = [
        ([1], TypeError, convert.replace("{got}", "list")),
        (masked, TypeError, f"{name} " + OWN_RULES),
    ]
    matrix = np.zeros((4, 8), np.float32).view(np.matrix)
    wrong.append((matrix, TypeError, f"{name} " + OWN_RULES.replace("numpy.ma.MaskedArray", "numpy.matrix")))
    return wrong if name == "out" else [*wrong, (None, TypeError, convert.replace("{got}", "NoneType"))]


def scale() -> list[Bad]:
    limits = "scale must be finite and above 0 in float32, got {got}; pass None for 1/sqrt(head_dim)"
    values = [
        np.float32("inf"),
        np.float16("nan"),
        1e39,
        3e38,
        1e-46,
        1e-40,
        -1,
        0,
        np.int8(0),
        10**400,
        np.longdouble(1e300),
    ]
    wrong: list[Bad] = [(v, ValueError, limits.replace("{got}", f"{v}")) for v in values]
    kinds = "scale must be a number or None (1/sqrt(head_dim)), got {got}; pass float(scale)"
    types: list[tuple[Any, str]] = [
        ("1", "str"),
        (True, "bool"),
        (np.True_, "numpy.bool"),
        (1j, "complex"),
        ([1.0], "list"),
    ]
    types += [(np.array(1.0), "numpy.ndarray"), (np.array([1.0]), "numpy.ndarray")]
    return wrong + [(v, TypeError, kinds.replace("{got}", name)) for v, name in types]


def a_mask(where: str) -> list[Bad]:
    message = "mask must be a Mask, a list of one Mask per batch element, or None (full), got {got}"
    hint = "; a boolean array becomes one with from_dense"
    make = "; make one with a constructor, such as omnicupy.causal(q_len, k_len)"
    dense = np.ones((4, 4), bool)
    return [
        (dense, TypeError, message.replace("{got}", "numpy.ndarray") + hint),
        (np.ma.masked_array(dense, dense), TypeError, message.replace("{got}", "numpy.MaskedArray") + hint),
        ("causal", TypeError, message.replace("{got}", "str") + make),
        (True, TypeError, message.replace("{got}", "bool") + make),
        ([dense], TypeError, "mask[0] must be a Mask, got numpy.ndarray; use full(...) where all is visible"),
        ([None], TypeError, "mask[0] must be a Mask, got NoneType; use full(...) where all is visible"),
    ]


FLAG: list[Bad] = [
    (v, TypeError, "{where}: {name} must be True or False, got " + named(v) + "; pass a bool")
    for v in ("no", "", 0, 1, None, 1.0, [True], np.array(True), np.array([True]), np.int8(1))
]
SPANS = pairs("offset, length")
DENSE: list[Bad] = [
    ([[True]], TypeError, "from_dense: dense must be a NumPy array, got list; convert it"),
    (None, TypeError, "from_dense: dense must be a NumPy array, got NoneType; convert it"),
    (np.ones((2, 2), int), TypeError, "from_dense: dense must be boolean, got int64; pass dense != 0"),
    (np.ma.masked_array(np.ones((2, 2), bool), True), TypeError, "from_dense: dense " + OWN_RULES),
    (
        np.ones((2, 2), bool).view(np.matrix),
        TypeError,
        "from_dense: dense " + OWN_RULES.replace("numpy.ma.MaskedArray", "numpy.matrix"),
    ),
]
BOUNDS: list[Bad] = [
    ([1], TypeError, "intervals: {name} must be a NumPy array of integers, got list; convert it"),
    (np.ones(4), TypeError, "intervals: {name} must be a NumPy array of integers, got float64; convert it"),
    (
        np.ones(4, bool),
        TypeError,
        "intervals: {name} must be a NumPy array of integers, got bool; convert it",
    ),
    (np.ma.masked_array([1, 1, 1, 1]), TypeError, "intervals: {name} " + OWN_RULES),
]
RECTANGLES: list[Bad] = [
    *a_list(),
    (
        [3],
        ValueError,
        "ranges: rectangles[0] must be (q_start, q_stop, k_start, k_stop), got 3; give four numbers",
    ),
    (
        ["0123"],
        ValueError,
        "ranges: rectangles[0] must be (q_start, q_stop, k_start, k_stop), got '0123'; give four numbers",
    ),
    (
        [(0, 1, 0, 1.0)],
        TypeError,
        "ranges: rectangles[0] must be an integer, got float 1.0; pass a whole number",
    ),
    (
        np.ones((1, 4)),
        TypeError,
        "ranges: rectangles must hold integers, got an array of float64; convert it",
    ),
    (
        np.array([[0, 1, 0, 9]]),
        ValueError,
        "ranges: rectangles[0] must satisfy 0 <= q_start <= q_stop <= 8 and 0 <= k_start <= k_stop <= 8, got (0, 1, 0, 9); clip or drop it",
    ),
    (
        np.array([[0, 1, 0, 1], [-1, 1, 0, 1]]),
        ValueError,
        "ranges: rectangles[1] must satisfy 0 <= q_start <= q_stop <= 8 and 0 <= k_start <= k_stop <= 8, got (-1, 1, 0, 1); clip or drop it",
    ),
    (
        np.array([[0, 1, 2, 1]]),
        ValueError,
        "ranges: rectangles[0] must satisfy 0 <= q_start <= q_stop <= 8 and 0 <= k_start <= k_stop <= 8, got (0, 1, 2, 1); clip or drop it",
    ),
]
SLICES: list[Bad] = [
    *a_list(),
    ([3], ValueError, "slices: given[0] must be (q0, q1, k0, k1, type), got 3; give four numbers and a type"),
    (
        ["0101f"],
        ValueError,
        "slices: given[0] must be (q0, q1, k0, k1, type), got '0101f'; give four numbers and a type",
    ),
    (
        [(0, 1, 0, 1.0, "full")],
        TypeError,
        "slices: given[0] must be an integer, got float 1.0; pass a whole number",
    ),
    (
        [(0, 1, 0, 1, "Full")],
        ValueError,
        "slices: given[0] must have a type of full, causal, inverse_causal, both (0 to 3), got 'Full'; name one of these",
    ),
    (
        [(0, 1, 0, 1, 1.0)],
        ValueError,
        "slices: given[0] must have a type of full, causal, inverse_causal, both (0 to 3), got 1.0; name one of these",
    ),
]
ONE_OF: list[Bad] = [
    (v, ValueError, f"bd3lm: one of length and lengths must be given, got length=8 and lengths={v!r}; pass lengths for packed samples") for v in ([8], 8, "8")
]  # fmt: skip
LISTS: list[Bad] = [
    (v, TypeError, f"from_tiles: lists must be a list of lists or an array, got {named(v)}; give the key blocks of each row block")
    for v in (5, 2.0, None, "0", {0: [0]}, {0})
] + [(MASKED, TypeError, "from_tiles: lists " + OWN_RULES)]  # fmt: skip
DOCUMENTS: list[Bad] = [
    (
        v,
        TypeError,
        "{where}: {name} must be a list of (kind, length) or a list of such lists, got "
        + type(v).__name__
        + '; write for example [("text", 120), ("image", 729)]',
    )
    for v in ("text", 5, None, {"text": 3}, np.array([1, 2]), MASKED)
]
LOW_HIGH: list[Bad] = [
    (v, TypeError, "random: {name} must be (low, high), got " + repr(v) + "; pass two integers") for v in (3, [1], None, "a", {1, 2})
]  # fmt: skip
NOISE: list[Bad] = [
    (v, TypeError, "random: noise must be a number, got " + named(v) + "; pass a share of the images")
    for v in ("0.5", None, True, [0.5], np.array([0.5]), 0.5j)
]
PREDICATE: list[Bad] = [
    (
        v,
        TypeError,
        f"from_predicate: fn must be a function of (q, k), got {type(v).__name__}; pass a function",
    )
    for v in (None, 3, "causal", np.ones((8, 8), bool))
]
PROGRESS: list[Bad] = [
    (
        v,
        TypeError,
        f"from_predicate: progress must be a function of (rows done, rows in all) or None, got {type(v).__name__}; pass a function",
    )
    for v in (True, 3, "bar")
]
MODULE: list[Bad] = [
    (v, TypeError, f"from_predicate: xp must be numpy or cupy, got {v!r}; pass the module")
    for v in (None, "numpy", inspect)
]
CONFIG: list[Bad] = [
    (v, TypeError, f"config must be an AttnSpec or None (chosen by the table), got {type(v).__name__}") for v in ("sm80", {}, 3)
]  # fmt: skip
SPLIT: list[Bad] = [(v, TypeError, f"split must be a number of keys or None, got {type(v).__name__}; pass int(split)") for v in (1.5, "64", True)]  # fmt: skip
SPLIT += [(v, ValueError, f"split must be a multiple of 32 keys (on a GPU of its kernel's tile), got {v}; pass None for parts that fill the device") for v in (0, -32, 33)]  # fmt: skip
MODES: list[Bad] = [
    (v, TypeError, f"bagel: attn_modes must be a list of modes, got {named(v)}; make it a list") for v in ("full", None, 3, {"full"})
]  # fmt: skip
MODES += [
    (
        [1, "full"],
        ValueError,
        "bagel: attn_modes[0] must be one of causal, full, noise, got 1; name one of these",
    )
]
COND: list[Bad] = [
    (v, TypeError, f"janus_cfg: cond must be a bool or a list of bools, got {named(v)}; pass True for the conditional half")
    for v in ("no", 1, None, 1.0)
] + [
    (v, TypeError, "janus_cfg: cond[0] must be True or False, got " + named(v[0]) + "; pass a bool") for v in ([1], ["no"], [None])
]  # fmt: skip
BASE: list[Bad] = [
    (v, TypeError, f"padding: mask must be a Mask, got {type(v).__name__}; build one first") for v in (None, np.ones((4, 4), bool), [oc.causal(4)])
]  # fmt: skip
INTEGER, NUMBERS = integer(), numbers()
NEEDED = [
    *INTEGER,
    (None, TypeError, "{where}: {name} must be an integer, got NoneType None; pass a whole number"),
]
BOUND = [(v, kind, m.replace("{name}", "each bound")) for v, kind, m in NEEDED]
