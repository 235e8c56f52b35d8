"""The command `tune`."""

from __future__ import annotations

from typing import Any

import click

from omnicupy.tools.cli.console import JSON, print_json, track
from omnicupy.tools.cli.options import DTYPE, MASK, problem_options, refuse_unused, sizes


@click.command()
@MASK
@sizes
@DTYPE
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(["sm80", "sm90"], case_sensitive=False),
    help="Only these kernels.",
)
@click.option(
    "--pass",
    "passed",
    type=click.Choice(["fwd", "bwd"], case_sensitive=False),
    default="fwd",
    show_default=True,
    help="Tune the forward pass or the backward pass.",
)
@click.option(
    "--cache",
    type=click.Choice(["contiguous", "pages"], case_sensitive=False),
    help="For calls on a CachedKV, or a PagedKV.",
)
@click.option(
    "--page", type=click.IntRange(1, 256), help="With --cache pages: tokens of a page.  [default: 16]"
)
@click.option("--any-order", is_flag=True, help="With --pass bwd: for calls with deterministic=False.")
@click.option(
    "--samples",
    type=click.IntRange(min=3),
    default=20,
    show_default=True,
    help="Timed calls of a variant in a round.",
)
@click.option(
    "--finalists",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    help="Variants, the quickest of all, that rounds are run with.",
)
@click.option("--dry-run", is_flag=True, help="Print the ranking, keep nothing.")
@click.option("--export", is_flag=True, help="Also print the winner as a row for the built-in table.")
@JSON
def tune(text: str, dtype: str, dry_run: bool, export: bool, as_json: bool, **options: Any) -> None:
    """Search the fastest kernel variant for a problem, on this GPU.

    Every legal variant (of a backward pass: every tile of each of its kernels) is compiled, held against the reference
    and timed. One that beats the table's choice in two rounds is kept in a file beside the kernel cache; calls of the
    same class of problem then use it.
    """
    forward = options["passed"].lower() == "fwd"
    if forward:
        refuse_unused("without --pass bwd", drop=("any_order",))
    else:
        refuse_unused("with --pass bwd", drop=("cache",))
    if (options["cache"] or "").lower() != "pages":
        refuse_unused("without --cache pages", drop=("page",))
    from omnicupy.tools.bench.gradients import PASSES
    from omnicupy.tools.tune import run as tune_run
    from omnicupy.tools.tune import search
    from omnicupy.tools.tune.caches import Cache

    workload = problem_options(text, options)
    settings = search.Settings(samples=options["samples"], finalists=options["finalists"])
    of_pass: dict[str, Any] = {"passed": PASSES[options["passed"].lower()].name}
    of_pass["deterministic"] = not options["any_order"]
    if options["cache"]:
        in_pages = options["cache"].lower() == "pages"
        of_pass["cache"] = Cache((options["page"] or 16) if in_pages else None)
    result = tune_run.run(workload, dtype, options["kernels"], settings, track, **of_pass)
    kept = "Nothing was kept." if dry_run else tune_run.keep(result)
    if as_json:
        row = {"row": tune_run.proposed_row(result)} if export else {}
        print_json({**result.as_json(), **row})
        click.echo(kept, err=True)
        return
    click.echo(f"{result.machine.device}: {tune_run.describe(result)}")
    click.echo(tune_run.table(result))
    click.echo(kept)
    if export:
        click.echo(tune_run.proposed_row(result))
