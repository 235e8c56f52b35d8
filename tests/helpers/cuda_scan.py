"""Finds the functions of a CUDA source: enough of a scanner for the style ceilings, no parser."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLANKED = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"', re.DOTALL)
_SCOPE = re.compile(
    r"^(?:template\s*<.*>\s*)?(?:namespace|struct|class|enum|union|extern)\b(?![^{]*\()", re.DOTALL
)
_CALLED = re.compile(r"(operator\s*(?:\(\s*\)|[^\s\w(]+)|[A-Za-z_]\w*)\s*\(")
_NO_NAMES = {
    "__launch_bounds__",
    "__align__",
    "__cluster_dims__",
    "alignas",
    "decltype",
    "noexcept",
    "sizeof",
}
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Function:
    """name; line: of its first token (template clause included); lines: up to its brace; parameters: how many."""

    name: str
    line: int
    lines: int
    parameters: int


def blanked(text: str) -> str:
    """The text with comments and strings overwritten by blanks, all line breaks kept."""
    return _BLANKED.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def functions(text: str) -> list[Function]:
    """The function definitions at namespace and struct level, in order."""
    # A directive has no semicolon; left in place it would belong to the declaration after it.
    code = re.sub(r"^[ \t]*#[^\n]*", lambda found: " " * len(found[0]), blanked(text), flags=re.MULTILINE)
    found: list[Function] = []
    start = at = 0
    while at < len(code):
        if code[at] in ";}":
            start = at + 1
        elif code[at] == "{":
            header = code[start:at].strip()
            if _SCOPE.search(header) or not header:
                start = at + 1
            elif _is_body(header):
                end = _match(code, at)
                found.append(_function(code, start, header, end))
                at, start = end, end + 1
            else:  # an initialiser, which leaves the declaration unfinished
                at = _match(code, at)
        at += 1
    return found


def _is_body(header: str) -> bool:
    ends = header.endswith((")", "const", "noexcept", "override"))
    return ends or (header.endswith("}") and re.search(r"\)\s*:[^:]", header) is not None)


def _function(code: str, start: int, header: str, end: int) -> Function:
    name, listed = _signature(header)
    begins = start + len(code[start:]) - len(code[start:].lstrip())
    line = code.count("\n", 0, begins) + 1
    return Function(name, line, code.count("\n", begins, end) + 1, _count(listed))


def _signature(header: str) -> tuple[str, str]:
    for found in _CALLED.finditer(header):
        if found[1] not in _NO_NAMES:
            at = found.end() - 1
            return re.sub(r"\s", "", found[1]), header[at + 1 : _match(header, at)]
    raise ValueError(f"no function name in {header!r}")


def _match(code: str, at: int) -> int:
    """Index of the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(code)):
        if code[i] in _OPEN:
            depth += 1
        elif code[i] in _CLOSE:
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"the bracket at {at} is never closed")


def _count(listed: str) -> int:
    """Number of parameters in a list: commas outside all brackets, and one."""
    if listed.strip() in ("", "void"):
        return 0
    depth, commas = 0, 0
    for character in listed:
        depth += character in "([{<"
        depth -= character in ")]}>"
        commas += character == "," and depth == 0
    return commas + 1
