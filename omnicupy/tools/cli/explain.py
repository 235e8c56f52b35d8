"""The command `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omnicupy.tools.cli.console import JSON, print_json
from omnicupy.tools.cli.options import DTYPE, MASK, problem_options, refuse_unused, sizes
from omnicupy.tools.workloads.workload import Workload


@click.command()
@MASK
@sizes
@DTYPE
@click.option(
    "--variant",
    metavar="WORD",
    help="This variant of the forward pass, such as sm90-128x128-s2-w12 (default: the one that the call gets).",
)
@click.option(
    "--pass",
    "passed",
    type=click.Choice(["fwd", "bwd", "fwd+bwd"], case_sensitive=False),
    default="fwd",
    show_default=True,
    help="The forward pass, the backward pass, or one after the other.",
)
@click.option("--any-order", is_flag=True, help="Of the backward pass: of calls with deterministic=False.")
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
    text: str, dtype: str, passed: str, records: tuple[Path, ...], out: Path | None, **options: Any
) -> None:
    """Say where the time of a call goes, and why.

    The time of tiles, imbalance, launch and memory is predicted from measured ceilings; with a GPU it is measured, too.
    Waste is shown by the segments that it comes from.
    """
    as_json, variant, any_order = (options.pop(name) for name in ("as_json", "variant", "any_order"))
    passed = passed.lower()
    if records:
        refuse_unused("with --fit", keep=("records", "out", "as_json", "passed"))
        _fit(records, out, passed, as_json=as_json)
        return
    refuse_unused("without --fit", drop=("out",))
    if passed == "fwd":
        refuse_unused("without --pass bwd", drop=("any_order",))
    if passed == "bwd":
        refuse_unused("with --pass bwd", drop=("variant",))
    found = _explained(problem_options(text, options), dtype, passed, variant, deterministic=not any_order)
    if as_json:
        content = [one.as_json() for one in found]
        print_json(
            content[0] if len(content) == 1 else dict(zip(("forward", "backward"), content, strict=True))
        )
    else:
        click.echo("\n\n".join(map(str, found)))


def _fit(records: tuple[Path, ...], out: Path | None, passed: str, *, as_json: bool) -> None:
    """Fit the ceilings of one pass and print them."""
    from omnicupy.tools.explain import backward_fitting, fitting

    if passed == "fwd+bwd":
        raise click.UsageError("--fit is of one pass: give --pass fwd or --pass bwd")
    fit = backward_fitting.from_files if passed == "bwd" else fitting.from_files
    fitted = fit(records, out)
    if as_json:
        print_json(fitted.ceilings.as_json())
    else:
        click.echo(str(fitted))


def _explained(
    workload: Workload, dtype: str, passed: str, variant: str | None, *, deterministic: bool
) -> list[Any]:
    """The explanation of each pass."""
    from omnicupy.tools.explain import backward
    from omnicupy.tools.explain import run as explain_run

    found: list[Any] = []
    if passed != "bwd":
        found.append(explain_run.run(workload, dtype, variant and variant.lower()))
    if passed != "fwd":
        found.append(backward.run(workload, dtype, deterministic=deterministic))
    return found
