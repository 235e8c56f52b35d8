"""Commands of the studies: `tune` searches tiles for a problem, `explain` says where its time goes, `report` writes
docs/report.md anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from omnicupy import maskspec
from omnicupy.console import JSON, print_json, say, track
from omnicupy.workloads import Workload

MASK = click.option(
    "--mask", "text", default="full", show_default=True, metavar="SPEC", help=f"One of: {maskspec.FORMS}."
)


def _sizes(command: Callable[..., Any]) -> Callable[..., Any]:
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


def _problem(text: str, options: dict[str, Any]) -> Workload:
    names = maskspec.Sizes.__dataclass_fields__
    return maskspec.problem_of(text, maskspec.Sizes(**{name: options.pop(name) for name in names}))


@click.command()
@_sizes
@DTYPE
@click.option(
    "--kernel", "kernels", multiple=True, type=click.Choice(["sm80", "sm90"]), help="Only these kernels."
)
@click.option("--samples", type=click.IntRange(min=3), default=20, show_default=True, help="Samples a round.")
@click.option(
    "--finalists", type=click.IntRange(min=2), default=8, show_default=True, help="Entries of rounds."
)
@click.option("--dry-run", is_flag=True, help="Print the ranking, keep nothing.")
@click.option("--export", is_flag=True, help="Also print the winner as a row for the built-in table.")
@JSON
def tune(text: str, dtype: str, dry_run: bool, export: bool, as_json: bool, **options: Any) -> None:
    """Search the fastest kernel variant for a problem on this GPU, and keep it for later calls.

    Every legal variant is compiled, held against the reference and timed. One that beats the table's choice in
    two rounds is kept in a file beside the kernel cache; calls of the same class of problem then use it.
    """
    from omnicupy.bench import search, tuning

    workload = _problem(text, options)
    settings = search.Settings(samples=options["samples"], finalists=options["finalists"])
    result = tuning.run(workload, dtype, options["kernels"], settings, track)
    kept = "Nothing was kept." if dry_run else tuning.keep(result)
    if as_json:
        row = {"row": tuning.proposed_row(result)} if export else {}
        print_json({**result.as_json(), **row})
        click.echo(kept, err=True)
        return
    click.echo(f"{result.machine.device}: {tuning.describe(result)}")
    click.echo(tuning.table(result))
    click.echo(kept)
    if export:
        click.echo(tuning.proposed_row(result))


@click.command()
@_sizes
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
def explain(
    text: str, dtype: str, variant: str | None, records: tuple[Path, ...], out: Path | None, **options: Any
) -> None:
    """Say where the time of a call goes: tiles, balance, launch, and what each waste comes from.

    The time is predicted from measured ceilings; with a GPU it is measured, too.
    """
    from omnicupy import explain as explaining
    from omnicupy.bench import fitting

    as_json = options.pop("as_json")
    if records:
        fitted = fitting.from_files(records, out)
        if as_json:
            print_json(fitted.ceilings.as_json())
        else:
            click.echo(str(fitted))
        return
    found = explaining.run(_problem(text, options), dtype, variant)
    if as_json:
        print_json(found.as_json())
    else:
        click.echo(str(found))


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
    """Make the tables and pictures of docs/report.md and README.md anew from docs/results, without a GPU."""
    from omnicupy import report as reporting

    if check:
        if stale := reporting.stale(docs):
            names = " and ".join(str(path) for path in stale)
            raise ValueError(f"report: the tables of {names} are not those of the records; run `report`")
        click.echo("The tables are those of the records.")
        return
    for file in reporting.update(docs, with_pictures=not no_pictures):
        say(f"wrote {file}")
