"""The mask functions of transformers as rules: their closures are read, not called.

A function is known by its code object, so one of the same name but another body is not taken for it. Each
known function is compared once with what transformers itself makes of it, so a version that changes what one
means costs time and a warning, never exactness.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from types import CodeType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import masking_utils as library

from omnicupy.masks.intervals import BoolArray
from omnicupy.transformers import rules
from omnicupy.transformers.rules import Band, Chunks, Documents, Evaluated, Joined, Keys, Labels, Rule, View

MaskFunction = Callable[..., Any]
Cells = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A mask function of transformers. read: its rule from its closure, None where the closure is unusual.
    examples: make functions of its kind, for 2 batch elements and 12 positions.
    """

    name: str
    read: Callable[[Reader, Cells], Rule | None]
    examples: tuple[Callable[[], MaskFunction], ...]


@dataclass(frozen=True)
class Reader:
    """Reads the mask functions of one call. device, use_vmap: how transformers would evaluate them. labels: of packed
    sequences that the function before keeps apart, (batch, positions).
    """

    view: View
    table: Mapping[CodeType, Known]
    device: Any = "cpu"
    use_vmap: bool = False
    labels: Any = None

    def rule(self, function: MaskFunction) -> Rule:
        """The rule of a function (batch, head, row, key) -> bool: Evaluated where it is not known."""
        known = self.table.get(code_of(function))
        found = None if known is None else known.read(self, cells_of(function))
        return self.evaluated(function) if found is None else found

    def joined(self, cells: Cells, join: Callable[[Any, Any], Any]) -> Rule:
        """The rule of what and_masks or or_masks made."""
        functions = cells["mask_functions"]
        reader = self
        if join is operator.and_:
            for function in functions:
                known = self.table.get(code_of(function))
                if known is not None and known.name == "packed":
                    reader = replace(self, labels=array(cells_of(function)["packed_sequence_mask"]))
        return Joined([reader.rule(function) for function in functions], join)

    def documents(self, cells: Cells) -> Rule | None:
        """The rule of remap_positions_for_packed_sequence among sequences that are kept apart, where Documents holds:
        of pairs in one document alone, as no others are left. None elsewhere: tokens at one position need not be
        neighbours.
        """
        labels, positions = self.labels, array(cells["position_ids"])
        if (
            labels is None
            or positions.shape != labels.shape
            or self.view != (0, length := labels.shape[1], 0, length)
        ):
            return None
        rule = replace(self, labels=None).rule(cells["mask_function"])
        return (
            None if _asks(rule) or not rules.packed(labels, positions) else Documents(labels, positions, rule)
        )

    def evaluated(self, function: MaskFunction) -> Rule:
        """The rule that asks the function itself about all pairs, some rows at a time."""
        how = {"device": self.device, "use_vmap": self.use_vmap, "allow_is_causal_skip": False}

        def rows(element: int, r0: int, r1: int, view: View) -> BoolArray:
            def of_element(batch: Any, head: Any, row: Any, key: Any) -> Any:
                return function(batch + element, head, row, key)

            pairs = library.sdpa_mask(1, r1 - r0, view.k_len, r0, view.k0, of_element, **how)
            return array(pairs[0, 0], np.bool_)

        return Evaluated(rows)


def array(tensor: Any, dtype: Any = np.int64) -> NDArray[Any]:
    """The elements of a tensor on the host; waits for its device."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype)


@cache  # the installed version determines it, and a process has one
def known() -> Mapping[CodeType, Known]:
    """The functions that this version of transformers has and that mean what their rules say."""
    found: dict[CodeType, Known] = {}
    for one in _table():
        for example in one.examples:
            with suppress(AttributeError):  # no version has all of them
                found.setdefault(code_of(example()), one)
    for code, one in list(found.items()):
        if not all(_agrees(example, one, found) for example in one.examples):
            del found[code]
            warnings.warn(
                f"transformers' {code.co_qualname} is not what omnicupy knows by that name; masks that use it "
                "stay exact, but look at every pair",
                stacklevel=2,
            )
    return found


def _agrees(example: Callable[[], MaskFunction], one: Known, table: Mapping[CodeType, Known]) -> bool:
    try:
        function = example()
    except AttributeError:
        return True
    for view in (View(0, 12, 0, 12), View(5, 7, 2, 10)):
        reader = Reader(view, table)
        asked = reader.evaluated(function)
        try:
            read = one.read(reader, cells_of(function)) or asked
        except (KeyError, TypeError):  # another closure
            return False
        if any(read.mask(view, element) != asked.mask(view, element) for element in (0, 1)):
            return False
    return True


def _table() -> tuple[Known, ...]:
    ids = _tensor([[-1, 0, 0, 1, 1, -1, -1, 0, 2, 2, 2, -1], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    documents, places = _tensor([[0] * 5 + [1] * 7] * 2), _tensor([[*range(5), *range(7)]] * 2)
    left, visible = _tensor([0, 5]), _tensor([range(12)]) >= _tensor([[0], [5]])
    causal = library.causal_mask_function
    window = library.sliding_window_overlay
    both_sides = library.sliding_window_bidirectional_overlay
    packed, together = library.packed_sequence_mask_function, library.and_masks

    def remapped(function: MaskFunction, positions: Any) -> MaskFunction:
        made: MaskFunction = library.remap_positions_for_packed_sequence(function, positions)
        return made

    return (
        Known("causal", lambda *_: Band(low=0), (lambda: causal,)),
        Known("all", lambda *_: Band(), (lambda: library.bidirectional_mask_function,)),
        Known("window", lambda _, cells: Band(high=_size(cells) - 1), (lambda: window(3),)),
        Known("both sides", lambda _, cells: Band(-_size(cells), _size(cells)), (lambda: both_sides(3),)),
        Known(
            "chunks",
            lambda _, cells: Chunks(operator.index(cells["chunk_size"]), array(cells["left_padding"])),
            (lambda: library.chunked_overlay(4, left),),
        ),
        Known(
            "blocks",
            lambda _, cells: Labels(array(cells["block_sequence_ids"]), least=0),
            (lambda: library.blockwise_overlay(ids),),
        ),
        Known(
            "keys",
            lambda _, cells: Keys(array(cells["padding_mask"], np.bool_)),
            (lambda: library.padding_mask_function(visible),),
        ),
        Known(
            "packed", lambda _, cells: Labels(array(cells["packed_sequence_mask"])), (lambda: packed(ids),)
        ),
        Known(
            "positions",
            Reader.documents,
            (lambda: remapped(causal, places),),
        ),
        Known(
            "or",
            lambda reader, cells: reader.joined(cells, operator.or_),
            (lambda: library.or_masks(causal, library.blockwise_overlay(ids)),),
        ),
        Known(
            "and",
            lambda reader, cells: reader.joined(cells, operator.and_),
            (
                lambda: together(causal, window(3)),
                lambda: together(packed(documents), remapped(causal, places)),
                lambda: together(remapped(library.chunked_overlay(4, left), places), packed(documents)),
                lambda: together(
                    library.or_masks(remapped(window(3), places), library.blockwise_overlay(ids)),
                    packed(documents),
                ),
            ),
        ),
    )


def _tensor(numbers: Any) -> Any:
    return torch.tensor(numbers, device="cpu")  # whatever torch's default device is


def _size(cells: Cells) -> int:
    return operator.index(cells["sliding_window"])


def code_of(function: MaskFunction) -> CodeType:
    """The code of a function, that of nothing for callables without one."""
    code: CodeType = getattr(function, "__code__", _NO_CODE)
    return code


_NO_CODE = (lambda: None).__code__  # of callables without code


def cells_of(function: MaskFunction) -> Cells:
    """What a function closes over, by name."""
    values = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return dict(zip(code_of(function).co_freevars, values, strict=True))


def _asks(rule: Rule) -> bool:
    return isinstance(rule, Evaluated) or (isinstance(rule, Joined) and any(map(_asks, rule.parts)))
