"""The command `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omnicupy.tools.cli.console import JSON, print_json
from omnicupy.tools.cli.options import DTYPE, MASK, problem_options, refuse_unused, sizes


@click.command()
@MASK
@sizes
@DTYPE
@click.option(
    "--variant", metavar="WORD", help="This variant, such as sm90-128x128-s2-w12, instead of the choice."
)
@click.option(
    "--fit",
    "records",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Fit the ceilings on this record instead, and stop; may be repeated.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where --fit writes them (default: the library's own)."
)
@JSON
def explain(text: str, dtype: str, records: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Say where the time of a call goes: tiles, balance, launch, and what each waste comes from.

    The time is predicted from measured ceilings; with a GPU it is measured, too.
    """
    from omnicupy.tools.explain import fitting
    from omnicupy.tools.explain import run as explain_run

    as_json, variant = options.pop("as_json"), options.pop("variant")
    if records:
        refuse_unused("with --fit", keep=("records", "out", "as_json"))
        fitted = fitting.from_files(records, out)
        if as_json:
            print_json(fitted.ceilings.as_json())
        else:
            click.echo(str(fitted))
        return
    refuse_unused("without --fit", drop=("out",))
    found = explain_run.run(problem_options(text, options), dtype, variant and variant.lower())
    if as_json:
        print_json(found.as_json())
    else:
        click.echo(str(found))
