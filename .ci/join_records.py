"""Joins the records of `bench accuracy --part K/N`: `python .ci/join_records.py all.json part-*.json`

Says which problems no part has measured yet; the exit status is then 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omnicupy.tools.bench import records
from omnicupy.tools.bench.accuracy_cases import cases


def main(out: str, *parts: str) -> int:
    """Write the joined record; returns the exit status."""
    order = [case.name for case in cases()]
    content = records.joined([records.load(path) for path in parts], order)
    records.write(Path(out), content)
    rows = content["rows"]
    systems = {row["system"] for row in rows}
    measured = {name: {row["system"] for row in rows if row["workload"] == name} for name in order}
    left = [name for name in order if measured[name] != systems]
    print(f"{len(order) - len(left)} of {len(order)} problems on {len(systems)} systems")
    for name in left:
        print(f"- left: {name}")
    return 1 if left else 0


if __name__ == "__main__":
    from usage import words

    sys.exit(main(*words(__doc__, 2)))
