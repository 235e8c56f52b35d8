"""Options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from omnicupy.tools.cli import mask_words
from omnicupy.tools.workloads.workload import Workload

MASK = click.option(
    "--mask", "text", default="full", show_default=True, metavar="SPEC", help=f"One of: {mask_words.FORMS}."
)


def sizes(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that give a problem's sizes; a workload as the mask brings its own."""
    helps = {
        "--heads": "Query heads.",
        "--kv-heads": "Heads of keys (default: as many as query heads).",
        "--head-dim": "Columns of a head.",
        "--length": "Query rows, in tokens.",
        "--kv-length": "Keys, in tokens (default: the length).",
        "--batch": "Batch elements (default: 1).",
    }
    for name, text in reversed(helps.items()):
        command = click.option(name, type=int, help=text)(command)
    return MASK(command)


DTYPE = click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16"]), default="bfloat16", show_default=True
)


def problem_options(text: str, options: dict[str, Any]) -> Workload:
    """The workload that --mask and the options of `sizes` name; takes them out of `options`."""
    names = mask_words.Sizes.__dataclass_fields__
    return mask_words.problem_of(text, mask_words.Sizes(**{name: options.pop(name) for name in names}))
