"""What the commands share: progress on stderr, figures as JSON on stdout."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
QUIET_S = 3.0  # without any sign, after which a command says that it still runs
AGAIN_S = 30.0  # between such lines where stderr is no terminal
CLEAR = "\r\033[K"

_sign = time.monotonic()  # when progress was shown last
_bars = 0  # that are on the screen


def track(items: Iterable[Any], label: str, length: int) -> Iterable[Any]:
    """The items behind a progress bar on stderr; a plain line where that is no terminal."""
    if not sys.stderr.isatty():
        say(f"{label}: {length}")
        return items
    return bar(items, label, length)


def bar(items: Iterable[Any], label: str, length: int) -> Iterable[Any]:
    """The items behind a progress bar on stderr."""
    global _bars
    _clear()
    _bars += 1
    try:
        with click.progressbar(items, length=length, label=label.ljust(12), file=sys.stderr) as shown:
            yield from shown
    finally:
        _bars -= 1
        _note_sign()


def say(line: str) -> None:
    """A line of progress on stderr."""
    _clear()
    click.echo(line, err=True)
    _note_sign()


def print_json(content: Any) -> None:
    """A value as JSON on stdout."""
    click.echo(json.dumps(content, indent=1))


@contextmanager
def signs_of_life(label: Callable[[], str]) -> Iterator[None]:
    """While entered, stderr shows for how long the command has run whenever no other progress was shown for a while.

    label: what runs.  On a terminal that is a line which is written over and goes away at the end.
    """
    done = threading.Event()
    _note_sign()
    thread = threading.Thread(target=_watch, args=(label, done, time.monotonic()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _clear()


def _watch(label: Callable[[], str], done: threading.Event, begin: float) -> None:
    shown = False
    while not done.wait(min(0.5, QUIET_S / 2)):
        now = time.monotonic()
        if _bars or now - _sign < (AGAIN_S if shown and not sys.stderr.isatty() else QUIET_S):
            continue
        text = f"{label()}: {now - begin:.0f} s so far"
        if sys.stderr.isatty():
            click.echo(f"{CLEAR}{text}", nl=False, err=True)
        else:
            say(text)
            shown = True


def _clear() -> None:
    """Take the line of `signs_of_life` off a terminal."""
    if sys.stderr.isatty() and not _bars:
        click.echo(CLEAR, nl=False, err=True)


def _note_sign() -> None:
    global _sign
    _sign = time.monotonic()
