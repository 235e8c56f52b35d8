"""Fitting what competing tiles cost: known costs are found again, and the record's own are those of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnicupy.choose import ceilings, pick, prediction, variants
from omnicupy.choose.table import TABLE
from omnicupy.tools.bench import records
from omnicupy.tools.explain import fitting
from omnicupy.tools.explain.tile_costs import fit_tiles
from omnicupy.tools.workloads.workload import by_name

RECORD = Path(__file__).parents[3] / "docs" / "results" / "h100-choices.json"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return records.load(RECORD)


def _times(content: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in content["rows"]:
        if row.get("ms") and row.get("correct"):
            found.setdefault(row["workload"], {})[row["spec"]] = row
    return found


def test_the_library_s_costs_are_those_of_the_record(content: dict[str, Any]) -> None:
    fitted = fit_tiles([content], fitting.device_of(content))
    known = next(one.tiles for one in ceilings.load() if one.device.name == content["device"])
    assert len(fitted) == len(known) == sum(row.competes for row in TABLE)
    for one, other in zip(fitted, known, strict=True):
        assert (one.kernel, one.head_dims, one.br, one.bc) == (
            other.kernel,
            other.head_dims,
            other.br,
            other.bc,
        )
        numbers = [[x.pair_ps, x.partial_ps, x.block_us, x.launch_us] for x in (one, other)]
        np.testing.assert_allclose(*numbers, rtol=1e-3)


def test_known_costs_are_found_again(content: dict[str, Any]) -> None:
    device = fitting.device_of(content)
    true = next(one.tiles for one in ceilings.load() if one.device.name == content["device"])
    rows = []
    for row in content["rows"]:
        problem = records.problem_of(row, content)
        for tile in true:
            spec = variants.parse(row["spec"], "sm_90", "bfloat16", problem.head_dim)
            if tile.serves(spec.kernel, spec.head_dim, spec.br, spec.bc):
                share = problem.q_heads * problem.batch / device.sm_count
                blocks = by_name(row["workload"]).mask().blocks(spec.br, spec.bc)
                rows.append({**row, "ms": 1e-3 * prediction.tile_us(tile, [blocks], share), "correct": True})
    found = fit_tiles([{**content, "rows": rows}], device)
    for one, other in zip(found, true, strict=True):
        np.testing.assert_allclose([one.pair_ps, one.block_us], [other.pair_ps, other.block_us], rtol=1e-3)


def test_too_few_measurements_tell_nothing(content: dict[str, Any]) -> None:
    few = {
        **content,
        "rows": [row for row in content["rows"] if row["workload"] in ("W1", "W4", "W8", "W8f")],
    }
    assert fit_tiles([few], fitting.device_of(content)) == ()


def test_of_competing_tiles_the_fastest_is_chosen(content: dict[str, Any]) -> None:
    """On every workload of the record that was measured under all of them."""
    compared = 0
    for name, of in _times(content).items():
        problem = records.problem_of(next(iter(of.values())), content)
        head_dim = -(-problem.head_dim // 16) * 16
        rows = [row for row in TABLE if row.competes and row.serves("sm_90", problem.dtype, head_dim)]
        words = [variants.word(row.spec("sm_90", problem.dtype, head_dim)) for row in rows]
        if rows and all(word in of for word in words):
            chosen = variants.word(pick.pick("sm_90", problem, (by_name(name).mask(),), 132))
            if chosen in words:  # else a row for few queries serves it
                assert of[chosen]["ms"] == min(of[word]["ms"] for word in words), name
                compared += 1
    assert compared >= 35
