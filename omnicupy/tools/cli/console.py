"""What the commands share: progress on stderr, figures as JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")


def track(items: Iterable[Any], label: str, length: int) -> Iterable[Any]:
    """The items behind a progress bar on stderr; a plain line where that is no terminal."""
    if not sys.stderr.isatty():
        click.echo(f"{label}: {length}", err=True)
        return items
    return bar(items, label, length)


def bar(items: Iterable[Any], label: str, length: int) -> Iterable[Any]:
    """The items behind a progress bar on stderr."""
    with click.progressbar(items, length=length, label=label.ljust(12), file=sys.stderr) as shown:
        yield from shown


def say(line: str) -> None:
    """A line of progress on stderr."""
    click.echo(line, err=True)


def print_json(content: Any) -> None:
    """A value as JSON on stdout."""
    click.echo(json.dumps(content, indent=1))
