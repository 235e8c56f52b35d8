"""The command line. Each command parses, makes one call and prints; the work is done elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from omnicupy import environment as surroundings
from omnicupy import maskspec
from omnicupy.console import JSON, print_json, say, track
from omnicupy.errors import CompileError, UnsupportedError
from omnicupy.layouts import random, segments
from omnicupy.masks import Mask
from omnicupy.plot import file_of
from omnicupy.study_commands import explain, report, tune

EXPECTED = (
    *(ValueError, TypeError, OSError, ImportError, MemoryError, OverflowError),
    *(UnsupportedError, CompileError),
)


class _Group(click.Group):
    """Commands whose expected errors are one line on stderr and exit status 1, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="omnicupy", message="%(prog)s %(version)s")
def main() -> None:
    """Exact attention for irregular, interleaved masks: check it, measure it, look at masks."""


@main.command()
@click.option("--sweep", type=click.IntRange(min=0), help="Random cases on a GPU (default: 1200).")
@click.option(
    "--kernel", "kernels", multiple=True, help="Only kernels whose name holds this; may be repeated."
)
@click.option("--case", "cases", multiple=True, help="Only cases whose id holds this; may be repeated.")
@click.option(
    "--cubins", type=click.Path(path_type=Path), help="Folder of kernels compiled elsewhere (--build)."
)
@click.option(
    "--attest", type=click.Path(path_type=Path), help="Write the attestation to this file if all passes."
)
@click.option("--all-specs", is_flag=True, help="Compile every row of tune.py at every head_dim.")
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Calls per case.")
@click.option("--no-timing", is_flag=True, help="Leave the speed part out.")
@click.option(
    "--build", type=click.Path(path_type=Path), help="Compile for --cubins into this folder, and stop."
)
@click.option("--arch", default="sm_90", show_default=True, help="Architecture of --build.")
@JSON
def verify(build: Path | None, arch: str, no_timing: bool, as_json: bool, **chosen: Any) -> None:
    """Hold every kernel against the float64 reference; without a GPU the CPU engine, and compile all
    kernels.
    """
    from omnicupy.verify import run
    from omnicupy.verify.report import MOST_FAILURES, table

    settings = run.Settings(timing=not no_timing, **chosen)
    if build:
        count = run.build_cubins(build, arch, settings, track)
        click.echo(f"{count} kernels for {arch} in {build}")
        return
    found = run.verify(settings, track)
    if as_json:
        print_json(found.as_json())
    else:
        click.echo(table(found.lines()))
        for failure in found.failures[:MOST_FAILURES]:
            click.echo(f"FAIL  {failure}")
        click.echo(run.summary(found))
    sys.exit(0 if found.passed else 1)


@main.command()
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
    from omnicupy.bench import plots, records, suites

    if record:
        loaded = records.load(record)
        click.echo(records.markdown(loaded), nl=False)
        _name_files(plots.plot(loaded, picture) if picture else [])
        return
    if not chosen["suites"] and not chosen["workloads"]:
        click.echo(suites.listing())
        return
    if picture:
        plots.check(chosen["suites"], gpu=surroundings.has_gpu())
    content = suites.run(suites.Options(out=out, **chosen), say)
    if as_json:
        print_json(content)
    else:
        click.echo(records.markdown(content), nl=False)
    _name_files(plots.plot(content, picture) if picture else [])


def _name_files(files: list[Path]) -> None:
    for file in files:
        say(f"saved {file}")


@main.command()
@click.option("--random", "length", type=int, help="Tokens of a random interleaved layout.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random layout."
)
@click.option("--documents", type=int, help="Packed samples of the random layout.")
@click.option(
    "--segments", "layout", help='Segments, as in "text:120,image:729,noise:64"; / starts a document.'
)
@click.option("--workload", help="A named workload, such as W4.")
@click.option("--br", type=int, default=128, show_default=True, help="Query rows of a tile.")
@click.option("--bc", type=int, default=128, show_default=True, help="Keys of a tile.")
@click.option(
    "--png", type=click.Path(dir_okay=False), help="Save a picture too; the suffix names its format."
)
@JSON
def show(br: int, bc: int, png: str | None, as_json: bool, **chosen: Any) -> None:
    """Draw a mask as text, with its statistics at a tile size."""
    mask = _chosen_mask(**chosen)
    stats = mask.stats(br, bc)
    if as_json:
        names = (*stats.__dataclass_fields__, "density", "tiles", "empty", "executed", "waste")
        print_json({name: getattr(stats, name) for name in names})
    else:
        click.echo(str(mask))
        click.echo(str(stats))
    if png:
        picture = file_of(png)
        mask.plot(picture, br=br, bc=bc)
        click.echo(f"saved {picture}", err=True)


def _chosen_mask(
    length: int | None, seed: int, documents: int | None, layout: str | None, workload: str | None
) -> Mask:
    if sum(value is not None for value in (length, layout, workload)) != 1:
        raise click.UsageError("choose one mask: --random LENGTH, --segments LIST or --workload NAME")
    if workload is not None:
        from omnicupy.workloads import by_name

        return by_name(workload).mask()
    if layout is not None:
        return segments(maskspec.layout(layout, "--segments"))
    assert length is not None
    return random(length, seed, documents=documents)


@main.command()
@JSON
def env(as_json: bool) -> None:
    """Print versions, devices and the kernel cache."""
    found = surroundings.environment()
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, part in parts:
            click.echo(f"{name if not key else f'{name}.{key}':32} {'none' if part is None else part}")


for command in (tune, explain, report):
    main.add_command(command)
