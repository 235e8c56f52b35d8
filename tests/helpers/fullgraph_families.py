"""Compiles model families of the installed transformers as one graph, torch.compile(fullgraph=True); prints a table.

    python tests/helpers/fullgraph_families.py             # every family that omnicupy serves; half an hour
    python tests/helpers/fullgraph_families.py llama bert  # these alone

Each family is made tiny and compiled with omnicupy, with the backend "eager", so that the capture alone counts, once
with a row that is padded and once without a mask. Where it is no graph, `sdpa` is tried: what is none with that either
is broken by the model's own code.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import transformers_families as families

import omnicupy as oc
import omnicupy.transformers

ONE_GRAPH, OURS, THEIRS, WRONG = "one graph", "breaks with omnicupy", "breaks with sdpa, too", "wrong"
PADDED, BARE = INPUTS = ("padded", "no mask")


@dataclass(frozen=True)
class Found:
    """Whether a family is one graph with such inputs: one of the verdicts, and why."""

    family: str
    inputs: str
    verdict: str
    why: str = ""


def compiled(kind: Any, config: Any, attention: str, given: dict[str, Any]) -> Any:
    """What the model returns as one graph. Raises what the compiler raises where it is none."""
    torch.compiler.reset()
    model = families.made(kind, config, attention)
    model.compile(fullgraph=True, backend="eager")
    return families.result(model, given)


def compared(family: str, name: str, attention: str, inputs: str) -> Found:
    """The verdict on a family."""
    kind, config = families.kind_and_config(family, name)
    eager = families.made(kind, config, "eager")
    given, wanted = families.first_that_runs(eager)
    if inputs == BARE:
        given.pop("attention_mask", None)
        wanted = families.result(eager, given)
    try:
        found = compiled(kind, config, attention, given)
    except Exception as error:  # whatever a compiler makes of a model
        try:
            compiled(kind, config, "sdpa", given)
        except Exception as other:
            return Found(family, inputs, THEIRS, _told(other))
        return Found(family, inputs, OURS, _told(error))
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    good = worst <= 1e-4 and bool(found.isfinite().all())
    return Found(family, inputs, ONE_GRAPH if good else WRONG, "" if good else f"differs by {worst:.1e}")


def _told(error: Exception) -> str:
    """The first lines of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def main(chosen: list[str]) -> int:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    attention = oc.transformers.register()
    counts: Counter[tuple[str, str]] = Counter()
    with torch.no_grad():
        for family, name in families.families():
            if chosen and family not in chosen:
                continue
            if families.compared(family, name, attention).verdict != families.RIGHT:
                continue
            for inputs in INPUTS:
                one = compared(family, name, attention, inputs)
                counts[inputs, one.verdict] += 1
                print(f"{family:32} {inputs:8} {one.verdict:22} {one.why}", flush=True)
    for (inputs, verdict), count in sorted(counts.items()):
        print(f"{inputs:8} {verdict:22} {count}")
    return sum(count for (_, verdict), count in counts.items() if verdict in (OURS, WRONG))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
