"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omnicupy.tools import environment
from omnicupy.tools.cli import options as cli_options
from omnicupy.tools.cli.console import JSON, print_json, say
from omnicupy.tools.cli.options import (
    DTYPE,
    MASK_HELP,
    SIZES,
    picture_file,
    refuse_unused,
    sizes,
    take_sizes,
    words_of,
)
from omnicupy.tools.workloads import words

MEASURING = (
    "systems",
    "dtype",
    "timed",
    "samples",
    "seeds",
    "limit",
    "flush",
)  # parameters that suites of the host alone do not read


@click.command()
@click.argument("suites", nargs=-1)
@click.option(
    "--mask",
    "texts",
    multiple=True,
    metavar="SPEC",
    help=f"Instead of the suite's own workloads; may be repeated. {MASK_HELP}",
)
@sizes
@click.option("--workload", "workloads", multiple=True, hidden=True, help="As --mask.")
@click.option(
    "--system",
    "systems",
    multiple=True,
    help="This one instead of the suite's own, as `bench` alone lists them; may be repeated.",
)
@DTYPE
@click.option(
    "--pass",
    "timed",
    type=click.Choice(["fwd", "bwd", "fwd+bwd"], case_sensitive=False),
    default="fwd",
    show_default=True,
    help="The forward pass, the backward pass, or both as one call.",
)
@click.option(
    "--samples", type=click.IntRange(min=3), default=30, show_default=True, help="Timed calls of a system."
)
@click.option(
    "--seeds", type=click.IntRange(1, 8), default=8, show_default=True, help="Random masks per shape."
)
@click.option(
    "--flush",
    type=click.Choice(["write", "read"], case_sensitive=False),
    default="write",
    show_default=True,
    help="What empties the L2 cache before a sample last: writes, or reads of what nobody writes.",
)
@click.option("--limit", type=float, default=120.0, show_default=True, help="Seconds a rival may compile.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that prepare workloads beside each other; what is timed has the GPU to itself. For suites of calls "
    "on the device: host times are left out. Rivals may want a longer --limit.",
)
@click.option("--turns", type=click.Path(path_type=Path), hidden=True, help="Where these processes meet.")
@click.option("--part", metavar="I/N", help="Only share I of N of the problems of accuracy.")
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
def bench(record: Path | None, picture: Path | None, as_json: bool, jobs: int, **chosen: Any) -> None:
    """Measure SUITES; without one, list them."""
    from omnicupy.tools.bench import beside, records
    from omnicupy.tools.bench import run as bench_run
    from omnicupy.tools.report import plots

    picture = picture_file("--plot", picture)
    if record:
        refuse_unused("with --table", keep=("record", "picture", "as_json"))
        content = records.load(record)
        if picture:
            plots.drawn_of(content)
    elif not chosen["suites"] and not chosen["texts"] and not chosen["workloads"]:
        refuse_unused("without SUITES or --mask", keep=("as_json",))
        if as_json:
            print_json(bench_run.catalogue())
        else:
            click.echo(bench_run.listing())
        return
    else:
        options = _options(chosen)
        if picture:
            plots.check(options.suites, gpu=environment.has_gpu())
        if jobs > 1:
            beside.check(options)
            words = words_of(("jobs", "out", "picture", "as_json"))
            content = beside.run(options, words, jobs, say)
        else:
            content = bench_run.run(options, say)
    if as_json:
        print_json(content)
    else:
        click.echo(records.markdown(content), nl=False)
    for file in plots.plot(content, picture) if picture else []:
        say(f"saved {file}")


def _options(chosen: dict[str, Any]) -> Any:
    """The run that the options describe."""
    from omnicupy.tools.bench import run as bench_run
    from omnicupy.tools.bench.turns import NOBODY_ELSE, Turns
    from omnicupy.tools.verify.plan import WHOLE, Part

    given = take_sizes(chosen)
    texts, names = chosen.pop("texts"), chosen.pop("workloads")
    suites = tuple(name.lower() for name in chosen.pop("suites"))
    systems = tuple(name.lower() for name in chosen.pop("systems"))
    if not texts:
        refuse_unused("without --mask", drop=SIZES)
    if bench_run.ACCURACY not in suites:
        refuse_unused("without accuracy", drop=("part",))
    if texts or names:
        refuse_unused("with --mask", drop=("seeds",))
    elif bench_run.ACCURACY in suites and not bench_run.measures(suites):
        refuse_unused("with accuracy, which measures every result once", drop=("timed", "samples", "seeds"))
    elif not bench_run.measures(suites):
        refuse_unused(f"with {', '.join(suites)} here, which measure the host alone", drop=MEASURING)
    workloads = (*(words.problem_of(text, given) for text in texts), *(words.named(name) for name in names))
    part = Part.parse(chosen.pop("part") or str(WHOLE))
    chosen["turns"] = Turns(chosen["turns"]) if chosen["turns"] else NOBODY_ELSE
    chosen["part"] = part.number, part.count
    if any(one.name == "dtype" for one in cli_options.given()):
        chosen["accuracy_dtypes"] = (chosen["dtype"],)
    return bench_run.Options(suites, workloads, systems, **chosen)
