"""What a backward case is judged by: gradients within the budget, nothing more than was wanted, and the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omnicupy.api import attention, attention_backward
from omnicupy.call.check_backward import SINK
from omnicupy.masks.mask import Mask
from omnicupy.reference import gradient_budget
from omnicupy.tools.verify import backward_inputs
from omnicupy.tools.verify.backward_cases import ALL, BackwardCase
from omnicupy.tools.verify.changed_bits import ChangedBits

Forward = Callable[..., Any]  # what makes out and lse: attention, or attention with one kernel

FREE_REPEATS = 4  # where each call is compared with the reference


class GradientJudge:
    """A case with its inputs and its reference, which are made once. xp: the arrays' module.

    call: computes gradients as attention_backward does.  forward: computes out and lse as attention does.
    """

    def __init__(
        self,
        case: BackwardCase,
        masks: Sequence[Mask],
        xp: Any,
        *,
        call: Any = attention_backward,
        forward: Forward = attention,
    ) -> None:
        self.case, self.xp, self._call = case, xp, call
        self.mask = masks[0] if len(masks) == 1 else list(masks)
        self.made = backward_inputs.inputs_of(case, masks, xp, forward)
        dout, q, k, v, out, lse = self.made.arrays
        self._expected = gradient_budget.budget(
            dout, q, k, v, self.mask, out=out, lse=lse, dlse=self.made.dlse, **self.made.changes
        )

    def gradients(self, options: dict[str, Any] | None = None, mask: Any = None) -> Any:
        """What a call gives: a new one each time, into new arrays of NaN where the case gives arrays.

        options: of a variant, none for the CPU engine.  mask: in place of the case's.
        """
        given = backward_inputs.given_of(self.case, self.made, self.xp)
        found = self._call(
            *self.made.arrays,
            self.mask if mask is None else mask,
            dlse=self.made.dlse,
            wanted=self.case.wanted,
            out_grads=given,
            **self.made.changes,
            **(options or {}),
        )
        if given is not None:
            pairs = zip(found[:3], given, strict=True)
            assert all(one is array for one, array in pairs if array is not None), (
                "given arrays must be returned"
            )
        return found

    def judge(self, gradients: Any) -> tuple[float, str]:
        """Error over budget, and what is wrong or ""."""
        if (len(gradients) > len(ALL)) != (SINK in self.case.wanted):
            return 0.0, f"{len(gradients)} gradients came where {', '.join(self.case.wanted)} are wanted"
        for name, array in zip(ALL, gradients[:3], strict=True):
            if (array is None) != (name not in self.case.wanted):
                asked = "not " * (array is not None)
                return 0.0, f"d{name} is {'None' if array is None else 'an array'}, though {asked}wanted"
        found = gradient_budget.compare(gradients, self._expected)
        return found.ratio, "" if found.ok else str(found)

    def repeated(self, first: Any, repeats: int, options: dict[str, Any] | None = None) -> str:
        """What is wrong with more calls: "" where each gives the bits of the first, or where sums may have any order
        is within the budget, too.
        """
        if options and not options.get("deterministic", True):
            found = (self.judge(self.gradients(options))[1] for _ in range(min(repeats, FREE_REPEATS) - 1))
            return next((problem for problem in found if problem), "")
        again = ChangedBits(first)
        for _ in range(repeats - 1):
            again.add(self.gradients(options))
        return again.problem(repeats)


def different_bits(these: Any, those: Any) -> int:
    """How many elements of the gradients of two calls differ in their bits."""
    changed = ChangedBits(these)
    changed.add(those)
    return changed.count()
