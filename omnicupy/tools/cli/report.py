"""The command `report`."""

from __future__ import annotations

from pathlib import Path

import click

from omnicupy.tools.cli.console import JSON, print_json, say, track
from omnicupy.tools.cli.options import refuse_unused


@click.command()
@click.option(
    "--docs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("docs"),
    show_default=True,
    help="Folder of report.md and results, beside README.md.",
)
@click.option(
    "--check", is_flag=True, help="Change nothing; exit status 1 if the tables are not the records'."
)
@click.option("--no-pictures", is_flag=True, help="Make the tables alone.")
@JSON
def report(docs: Path, check: bool, no_pictures: bool, as_json: bool) -> None:
    """Make the documents' tables and pictures anew from docs/results.

    These are the generated blocks of docs/report.md and both README.md, and docs/plots. Needs no GPU, and some minutes.
    """
    from omnicupy.tools.report import run as report_run

    if not check:
        written = report_run.update(docs, track, with_pictures=not no_pictures)
        for file in written:
            say(f"wrote {file}")
        if as_json:
            print_json({"written": [str(file) for file in written]})
        return
    refuse_unused("with --check", drop=("no_pictures",))
    stale = [str(path) for path in report_run.stale(docs, track)]
    if as_json:
        print_json({"stale": stale})
    elif not stale:
        click.echo("The tables are those of the records.")
    if stale:
        names = " and ".join(stale)
        raise ValueError(f"report: the tables of {names} are not those of the records; run `report`")
