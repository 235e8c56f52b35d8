"""The JSON record of a benchmark run, written after every row, and the Markdown tables made from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnicupy.call.problem import Problem
from omnicupy.jit import trust
from omnicupy.jit.files import replace_file
from omnicupy.tools.bench import accuracy_table

Row = dict[str, Any]

SCHEMA = 1
OURS = "omnicupy"
FORWARD = "forward"
_OF_A_RUN = {"started", "rows"}  # what records of one thing differ in
# How the workloads of host suites begin: rows of older records do not name their suite.
_BEGINNINGS = {"warm call": "host", "first call": "cold", "mask build": "build", "CPU engine": "cpu"}


class Record:
    """A run being written. rows: one dictionary a measurement, with "workload", "system", "pass" and
    figures. suite: named in each row that is added; "" for none.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        if path is not None and path.is_dir():
            raise ValueError(f"--out: expected a file, got the folder {path}; name a file in it")
        self.path = path
        self.suite = ""
        self.content: dict[str, Any] = {"schema": SCHEMA, **header, "rows": []}
        self._write()

    @property
    def rows(self) -> list[Row]:
        """The rows so far."""
        found: list[Row] = self.content["rows"]
        return found

    def add(self, **row: Any) -> Row:
        """Append a row and write the file, so that a run that is cut short keeps it."""
        row = {"suite": self.suite, **row} if self.suite else row
        self.rows.append(row)
        self._write()
        return row

    def set(self, **header: Any) -> None:
        """Set fields of the header, such as gemm_tflops."""
        rows = self.content.pop("rows")
        self.content.update(header)
        self.content["rows"] = rows
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        write(self.path, self.content)


def write(path: Path, content: dict[str, Any]) -> None:
    """A record to its file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def load(path: str | Path) -> dict[str, Any]:
    """A record from its file. Raises ValueError for a file that is none, OSError when it cannot be read."""
    try:
        content = trust.parsed_json(Path(path).read_bytes())
        if content["schema"] != SCHEMA or not isinstance(content["rows"], list):
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        for i, row in enumerate(content["rows"]):
            if not isinstance(row, dict) or not isinstance(row.get("workload"), str):
                raise ValueError(f"row {i} names no workload")
        suites = content.get("suites") or []
        if not isinstance(suites, list) or not all(isinstance(one, str) for one in suites):
            raise ValueError("suites must be a list of names")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"table: {path} is not a benchmark record ({error}); make it with: bench --out"
        ) from error
    found: dict[str, Any] = content
    return found


def joined(parts: Sequence[dict[str, Any]], order: Sequence[str] = ()) -> dict[str, Any]:
    """The record of runs that measured a share each. order: of workloads; others come behind, as they are.

    Raises ValueError where the runs are not of one device, library and so on, and for a row that two of them have.
    """
    head = {key: value for key, value in parts[0].items() if key not in _OF_A_RUN}
    for part in parts[1:]:
        for key in {*head, *part} - _OF_A_RUN:
            if part.get(key) != head.get(key):
                raise ValueError(
                    f"records to join: expected one {key}, got {head.get(key)!r} and {part.get(key)!r}"
                )
    rows: dict[tuple[Any, ...], Row] = {}
    for row in (row for part in parts for row in part["rows"]):
        name = tuple(row.get(of) for of in ("suite", "workload", "system", "pass"))
        if name in rows:
            raise ValueError(
                f"records to join: {row['workload']}, {row['system']} is in two of them; leave one out"
            )
        rows[name] = row
    place = {workload: number for number, workload in enumerate(order)}
    in_order = sorted(rows.values(), key=lambda row: place.get(row["workload"], len(place)))
    return {**head, "started": min(str(part["started"]) for part in parts), "rows": in_order}


def suite_of(row: Row, content: dict[str, Any]) -> str:
    """The suite that a row belongs to, "" where the record does not tell. Rows of another pass than the forward one
    are a suite of their own: "dense backward".
    """
    named = content.get("suites") or []
    alone = named[0] if len(named) == 1 else ""
    told = [suite for start, suite in _BEGINNINGS.items() if str(row["workload"]).startswith(start)]
    name = str(row.get("suite") or (told[0] if told else alone))
    return name if is_forward(row) or not name else f"{name} {row['pass']}"


def is_forward(row: Row) -> bool:
    """True for a row of the forward pass, as all rows of older records are."""
    return bool(row.get("pass", FORWARD) == FORWARD)


def problem_of(row: Row, content: dict[str, Any]) -> Problem:
    """The sizes of the call that a row measured."""
    batch, q_heads, kv_heads, q_len, k_len, head_dim = row["shape"]
    return Problem(batch, q_heads, kv_heads, q_len, k_len, head_dim, content["dtype"])


def markdown(content: dict[str, Any]) -> str:
    """The tables of a record: kernels by workload and system, then all other figures one a line."""
    errors = [row for row in content["rows"] if suite_of(row, content) == "accuracy"]
    rows = [row for row in content["rows"] if row.get("ms") is not None or row.get("problem")]
    rows = [row for row in rows if row not in errors]
    others = [row for row in content["rows"] if row.get("figures")]
    parts = [caption(content)]
    if rows:
        parts.append(kernel_table(rows))
    if others:
        parts.append(figure_table(others))
    if errors:
        parts += [table(accuracy_table.lines(errors)), "\n".join(accuracy_table.summary(errors))]
    return "\n\n".join(parts) + "\n"


def caption(content: dict[str, Any]) -> str:
    """Device, driver, NVRTC and calibration of a record in one line."""
    gemm = content.get("gemm_tflops")
    known = (
        content.get("device"),
        f"driver {content['driver']}" if content.get("driver") else None,
        f"NVRTC {content['nvrtc']}" if content.get("nvrtc") else None,
        f"8192^3 matrix product {gemm:.0f} TFLOP/s" if gemm else None,
    )
    return ", ".join(part for part in known if part) or "no device"


def kernel_table(rows: Sequence[Row]) -> str:
    """One line a workload: useful TFLOP/s of every system, and how many times faster ours is."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    rivals = [system for system in systems if not system.startswith(OURS)]
    head = ["workload", "density", *systems, *(f"vs {rival}" for rival in rivals)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for workload in dict.fromkeys(_named(row) for row in rows):
        of = {row["system"]: row for row in rows if _named(row) == workload}
        density = next((row["density"] for row in of.values() if row.get("density") is not None), None)
        cells = [_speed(of.get(system)) for system in systems]
        ratios = [_ratio(of.get(OURS), of.get(rival)) for rival in rivals]
        lines.append([workload, "" if density is None else f"{density:.1%}", *cells, *ratios])
    return table(lines)


def _named(row: Row) -> str:
    """A row's workload, with the pass where that is not the forward one."""
    return str(row["workload"]) if is_forward(row) else f"{row['workload']}, {row['pass']}"


def _speed(row: Row | None) -> str:
    if row is None:
        return ""
    if row.get("ms") is None:
        return str(row.get("problem", "missing")).split(":")[0]
    wrong = " (wrong)" if row.get("correct") is False else ""
    return f"{row['tflops']:.0f} ({row['ms']:.3g} ms){wrong}"


def _ratio(ours: Row | None, theirs: Row | None) -> str:
    if ours is None or theirs is None or ours.get("ms") is None or theirs.get("ms") is None:
        return ""
    return f"{theirs['ms'] / ours['ms']:.2f}x"


def figure_table(rows: Sequence[Row]) -> str:
    """All other figures, one a line."""
    lines = [["workload", "system", "figure", "value"], ["---", "---", "---", "---:"]]
    for row in rows:
        for name, value in row["figures"].items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append([_named(row), row["system"], name, shown])
    return table(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells in Markdown; the second line is the rule below the head."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
