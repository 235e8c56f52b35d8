"""The command line: the group, its errors, and `env`. Each command parses, makes one call and prints."""

from __future__ import annotations

from typing import Any

import click

from omnicupy.errors import CompileError, UnsupportedError
from omnicupy.tools import environment
from omnicupy.tools.cli.bench import bench
from omnicupy.tools.cli.console import JSON, print_json, signs_of_life
from omnicupy.tools.cli.explain import explain
from omnicupy.tools.cli.plan import plan
from omnicupy.tools.cli.report import report
from omnicupy.tools.cli.show import show
from omnicupy.tools.cli.tune import tune
from omnicupy.tools.cli.verify import verify

EXPECTED = (
    *(ValueError, TypeError, OSError, ImportError, MemoryError, OverflowError),
    *(UnsupportedError, CompileError),
)
EXTRAS = ("torch", "transformers")  # libraries that are imported where they are used, by their extras


class _Group(click.Group):
    """Commands whose expected errors are one line on stderr and exit status 1, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with signs_of_life(lambda: ctx.invoked_subcommand or "omnicupy"):
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise click.ClickException(_missing(error)) from error
        except BrokenPipeError:  # whoever read the output has had enough: click ends without a word
            raise
        except EXPECTED as error:
            raise click.ClickException(str(error)) from error


def _missing(error: ModuleNotFoundError) -> str:
    """What to install for a library that some commands need."""
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS:
        return str(error)
    return f"{library} is needed, but cannot be imported; in the checkout: pip install '.[{library}]'"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="omnicupy", message="%(prog)s %(version)s")
def main() -> None:
    """Exact attention for irregular, interleaved masks: check it, measure it, look at masks."""


@click.command()
@JSON
def env(as_json: bool) -> None:
    """Print versions, devices and the kernel cache."""
    found = environment.environment()
    if as_json:
        print_json(found)
        return
    notes = found.pop("notes")
    for name, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, part in parts:
            click.echo(f"{name if not key else f'{name}.{key}':32} {'none' if part is None else part}")
    for note in notes:
        click.echo(f"note: {note}")


for command in (verify, bench, show, tune, explain, plan, report, env):
    main.add_command(command)
