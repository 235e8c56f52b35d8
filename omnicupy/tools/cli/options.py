"""Options that commands share, and the rule that an option which does nothing is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from omnicupy.masks.picture import checked_file
from omnicupy.tools.workloads import words
from omnicupy.tools.workloads.workload import Workload

MASK_HELP = f"One of: {words.FORMS}."
MASK = click.option("--mask", "text", default="full", show_default=True, metavar="SPEC", help=MASK_HELP)
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16"], case_sensitive=False),
    default="bfloat16",
    show_default=True,
    help="Of queries, keys and values.",
)
PNG = click.option(
    "--png", type=click.Path(dir_okay=False), help="Save a picture too; the suffix names its format."
)
SIZES = tuple(words.Sizes.__dataclass_fields__)


def sizes(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that give a problem's sizes; a workload as the mask brings its own."""
    helps = {
        "--heads": "Query heads (default: those of a workload; other masks need a number).",
        "--kv-heads": "Heads of keys (default: those of a workload, else as many as query heads).",
        "--head-dim": "Columns of a head (default: those of a workload; other masks need a number).",
        "--length": "Query rows, in tokens; full, causal and random masks need it.",
        "--kv-length": "Keys, in tokens (default: the length).",
        "--batch": "Batch elements (default: those of a workload, else 1).",
    }
    for name, text in reversed(helps.items()):
        command = click.option(name, type=int, help=text)(command)
    return command


def take_sizes(options: dict[str, Any]) -> words.Sizes:
    """The values of the options of `sizes`; takes them out of `options`."""
    return words.Sizes(**{name: options.pop(name) for name in SIZES})


def problem_options(text: str, options: dict[str, Any]) -> Workload:
    """The workload that --mask and the options of `sizes` name; takes them out of `options`."""
    return words.problem_of(text, take_sizes(options))


def picture_file(option: str, path: str | PathLike[str] | None) -> Path | None:
    """Where the option saves a picture, looked at before anything is done; None where it was left out.

    Raises what `checked_file` raises, in the option's name.
    """
    return None if path is None else checked_file(path, option)


def given() -> list[click.Parameter]:
    """The parameters of the running command that were given, not left at their defaults."""
    context = click.get_current_context()
    sources = context.get_parameter_source
    return [
        one
        for one in context.command.params
        if one.name
        and sources(one.name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)
        and context.params.get(one.name) not in ((), None)  # click before 8.3 calls an absent argument given
    ]


def words_of(leave_out: Collection[str]) -> list[str]:
    """The words of a command line that give the running command what it was given, but for these parameters."""
    values, found, behind = click.get_current_context().params, [], []
    for one in given():
        value = values[one.name or ""]
        if one.name in leave_out:
            continue
        if isinstance(one, click.Argument):
            behind += list(value)
        elif isinstance(one, click.Option) and one.is_flag:
            found.append(one.opts[0])
        else:
            of = value if one.multiple else [value]
            found += [word for each in of for word in (max(one.opts, key=len), str(each))]
    return [*found, "--", *behind]


def refuse_unused(why: str, *, keep: Collection[str] = (), drop: Collection[str] = ()) -> None:
    """Refuse given parameters that would do nothing. why: goes on "does nothing ...", such as "with --fit".

    keep: the names of the parameters that do something, all others are refused; or drop: those that are refused.
    Raises click.UsageError.
    """
    for one in given():
        if (one.name in drop) if drop else (one.name not in keep):
            said = max(one.opts, key=len) if isinstance(one, click.Option) else (one.name or "").upper()
            raise click.UsageError(f"{said} does nothing {why}; leave it out")
