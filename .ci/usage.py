"""The words of a script's command line; `--help`, and a call that cannot be meant, print the script's docstring."""

from __future__ import annotations

import sys
from collections.abc import Collection


def words(doc: str | None, least: int = 0, *, known: Collection[str] | None = None) -> list[str]:
    """What stands behind the script's name. doc: its docstring.  least: how many words it needs.  known: the words that
    it takes beside numbers; None is any.

    Raises SystemExit: with status 0 for -h and --help, with 1 and a message where words are missing or not known.
    """
    given, usage = sys.argv[1:], (doc or "").strip()
    if given and given[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0)
    if len(given) < least:
        raise SystemExit(f"{usage}\n\nexpected at least {least} arguments, got {len(given)}")
    if known is not None and (unknown := [one for one in given if not one.isdigit() and one not in known]):
        raise SystemExit(f"{usage}\n\nexpected {', '.join((*known, 'numbers'))}, got {unknown[0]!r}")
    return given
