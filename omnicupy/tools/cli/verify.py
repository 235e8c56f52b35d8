"""The command `verify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from omnicupy.tools import environment
from omnicupy.tools.cli.console import JSON, print_json, track
from omnicupy.tools.cli.options import refuse_unused

BUILDING = ("build", "arch", "sweep", "kernels", "sources", "part", "cases", "as_json")
LISTING = ("listing", "sweep", "cases", "as_json")
ON_A_GPU = ("sweep", "repeats", "no_timing", "beside")  # parameters of a run that nothing reads without one


@click.command()
@click.option("--sweep", type=click.IntRange(min=0), help="Random cases on a GPU (default: 1200).")
@click.option(
    "--kernel", "kernels", multiple=True, help="Only kernels whose name holds this; may be repeated."
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    help="Only cases whose id, or group as the table prints it, holds this; may be repeated.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="FILE",
    help="Only kernels compiled of this file in kernels/, such as attention_naive.cu; may be repeated.",
)
@click.option(
    "--part", metavar="I/N", help="Only part I of N of the cases, which are dealt out in turn; a GPU run's."
)
@click.option("--list", "listing", is_flag=True, help="Print the group and id of each case, and stop.")
@click.option(
    "--cubins", type=click.Path(path_type=Path), help="Folder of kernels compiled elsewhere (--build)."
)
@click.option(
    "--also-cubins",
    type=click.Path(path_type=Path),
    help="Folder of kernels of another NVRTC, attested in the same run.",
)
@click.option("--beside", is_flag=True, help="Leave out the few cases that need most of the GPU's memory.")
@click.option(
    "--attest", type=click.Path(path_type=Path), help="Add to the attestation in this file what passes."
)
@click.option("--resume", is_flag=True, help="Leave out the cases that the file of --attest holds already.")
@click.option("--commit", metavar="SHA", help="The commit that --attest names, where there is no git.")
@click.option("--all-specs", is_flag=True, help="Compile every row of the table at every head_dim.")
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Calls per case.")
@click.option("--no-timing", is_flag=True, help="Leave the speed part out.")
@click.option(
    "--build", type=click.Path(path_type=Path), help="Compile for --cubins into this folder, and stop."
)
@click.option("--arch", default="sm_90", show_default=True, help="Architecture of --build.")
@JSON
def verify(build: Path | None, listing: bool, no_timing: bool, as_json: bool, **chosen: Any) -> None:
    """Hold every kernel against the float64 reference, on this GPU.

    Without a GPU the CPU engine is held against it, and all kernels are compiled for every architecture.
    """
    from omnicupy.tools.verify import run as verify_run
    from omnicupy.tools.verify.plan import Part
    from omnicupy.tools.verify.report import MOST_FAILURES, table

    arch = chosen.pop("arch").lower()
    part = chosen.pop("part")
    settings = verify_run.Settings(timing=not no_timing, part=Part.parse(part) if part else None, **chosen)
    _refuse_sources(settings.sources)
    _refuse(settings, build, listing)
    if listing:
        cases = [(case.group, case.id) for case in verify_run.listed(settings)]
        _print_cases([*cases, *(("timed", one.name) for one in verify_run.timed(settings))], as_json)
        return
    if build:
        count = verify_run.build_cubins(build, arch, settings, track)
        if as_json:
            print_json({"kernels": count, "arch": arch, "folder": str(build)})
        else:
            click.echo(f"{count} kernels for {arch} in {build}")
        return
    found = verify_run.verify(settings, track)
    if as_json:
        print_json(found.as_json())
    else:
        click.echo(table(found.lines()))
        for failure in found.failures[:MOST_FAILURES]:
            click.echo(f"FAIL  {failure}")
        for note in found.notes:
            click.echo(f"note: {note}")
        click.echo(verify_run.summary(found))
    sys.exit(0 if found.passed else 1)


def _refuse(settings: Any, build: Path | None, listing: bool) -> None:
    """Refuse options that do nothing in the mode that the others choose."""
    gpu = environment.has_gpu()
    if listing:
        refuse_unused("with --list", keep=LISTING)
    elif build:
        refuse_unused("with --build", keep=BUILDING)
        return
    refuse_unused("without --build", drop=("arch",))
    if not settings.attest:
        refuse_unused("without --attest", drop=("commit", "resume", "also_cubins"))
    if not gpu:
        refuse_unused("without a GPU", drop=ON_A_GPU)
    if settings.cases and not gpu:
        refuse_unused("with --case where no kernel is compiled", drop=("all_specs",))
    if settings.cubins:
        refuse_unused("with --cubins", drop=("all_specs",))


def _refuse_sources(names: Sequence[str]) -> None:
    """Refuse names that no kernel source has."""
    from omnicupy.tools.verify.source_digest import SOURCES

    for name in names:
        if name not in SOURCES:
            raise click.UsageError(f"--source: expected one of {', '.join(SOURCES)}, got {name!r}")


def _print_cases(cases: Sequence[tuple[str, str]], as_json: bool) -> None:
    from omnicupy.tools.verify.plan import planned
    from omnicupy.tools.verify.source_digest import SOURCES

    if as_json:
        print_json([{"group": group, "id": name} for group, name in cases])
        return
    for group, name in cases:
        click.echo(f"{group:16}  {name}")
    click.echo("cases of a complete run on a GPU, by source:", err=True)
    for source in SOURCES:
        click.echo(f"  {source:32}{len(planned(source)):6}", err=True)
