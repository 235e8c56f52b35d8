"""The command `report`."""

from __future__ import annotations

from pathlib import Path

import click

from omnicupy.tools.cli.console import say


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
def report(docs: Path, check: bool, no_pictures: bool) -> None:
    """Make the tables and pictures of docs/report.md and both README.md anew from docs/results, without a GPU."""
    from omnicupy.tools.report import run as report_run

    if check:
        if stale := report_run.stale(docs):
            names = " and ".join(str(path) for path in stale)
            raise ValueError(f"report: the tables of {names} are not those of the records; run `report`")
        click.echo("The tables are those of the records.")
        return
    for file in report_run.update(docs, with_pictures=not no_pictures):
        say(f"wrote {file}")
