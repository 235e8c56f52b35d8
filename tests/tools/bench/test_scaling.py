"""bench scaling: every step is timed, and its memory counted."""

from __future__ import annotations

import pytest

from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench import scaling


@pytest.mark.in_turn(8, at=0)
def test_masks_of_a_million_tokens_are_timed_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "TOKENS", 1 << 14)
    monkeypatch.setattr(scaling, "TURNS", 1)
    content = bench_run.run(bench_run.Options(("scaling",)), lambda line: None)
    rows = {row["workload"].removesuffix(", 16,384 tokens"): row["figures"] for row in content["rows"]}
    assert set(rows) >= {f"build {name}" for name in scaling.BUILT} | {
        f"cut and pack {name}" for name in scaling.CUT
    }
    listed = sum(2 * i + 3 for i in range(1000)) + sum(i + 2 for i in range(1001))  # by images and by text
    assert rows["build images"]["tiles"] == listed
    assert all(row["ms"] > 0 and row["mib"] > 0 for row in rows.values())
    assert (
        rows["cut and pack causal"]["entries"] == 128 + 127 + 126
    )  # CAUSAL, first FULL and the other FULL tiles of block rows
    assert rows["eight intervals or seven"]["intervals"] >= 8
