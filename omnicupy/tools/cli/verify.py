"""The command `verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from omnicupy.tools.cli.console import JSON, print_json, track


@click.command()
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
@click.option("--all-specs", is_flag=True, help="Compile every row of the table at every head_dim.")
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
    from omnicupy.tools.verify import run as verify_run
    from omnicupy.tools.verify.report import MOST_FAILURES, table

    settings = verify_run.Settings(timing=not no_timing, **chosen)
    if build:
        count = verify_run.build_cubins(build, arch, settings, track)
        click.echo(f"{count} kernels for {arch} in {build}")
        return
    found = verify_run.verify(settings, track)
    if as_json:
        print_json(found.as_json())
    else:
        click.echo(table(found.lines()))
        for failure in found.failures[:MOST_FAILURES]:
            click.echo(f"FAIL  {failure}")
        click.echo(verify_run.summary(found))
    sys.exit(0 if found.passed else 1)
