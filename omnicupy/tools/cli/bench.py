"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omnicupy.tools import environment
from omnicupy.tools.cli.console import JSON, print_json, say


@click.command()
@click.argument("suites", nargs=-1)
@click.option("--workload", "workloads", multiple=True, help="These workloads instead of the suite's own.")
@click.option("--system", "systems", multiple=True, help="These systems instead of the suite's own.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16"]), default="bfloat16", show_default=True)
@click.option(
    "--samples", type=click.IntRange(min=3), default=30, show_default=True, help="Samples per system."
)
@click.option(
    "--seeds", type=click.IntRange(1, 8), default=8, show_default=True, help="Random masks per shape."
)
@click.option("--limit", type=float, default=120.0, show_default=True, help="Seconds a rival may compile.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON record here, row by row.")
@click.option(
    "--table", "record", type=click.Path(path_type=Path), help="Print the tables of a record, and stop."
)
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path),
    help="Save a picture of each suite (with --table: of it).",
)
@JSON
def bench(record: Path | None, picture: Path | None, out: Path | None, as_json: bool, **chosen: Any) -> None:
    """Measure SUITES; without one, list them."""
    from omnicupy.tools.bench import records
    from omnicupy.tools.bench import run as bench_run
    from omnicupy.tools.report import plots

    if record:
        loaded = records.load(record)
        click.echo(records.markdown(loaded), nl=False)
        _name_files(plots.plot(loaded, picture) if picture else [])
        return
    if not chosen["suites"] and not chosen["workloads"]:
        click.echo(bench_run.listing())
        return
    if picture:
        plots.check(chosen["suites"], gpu=environment.has_gpu())
    content = bench_run.run(bench_run.Options(out=out, **chosen), say)
    if as_json:
        print_json(content)
    else:
        click.echo(records.markdown(content), nl=False)
    _name_files(plots.plot(content, picture) if picture else [])


def _name_files(files: list[Path]) -> None:
    for file in files:
        say(f"saved {file}")
