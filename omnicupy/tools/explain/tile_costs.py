"""What the tiles cost that compete for calls, fitted on workloads that were measured under all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from omnicupy.choose import variants
from omnicupy.choose.ceilings import Device, FloatArray, TileCost
from omnicupy.choose.table import TABLE, Row
from omnicupy.masks.block_mask import PARTIAL
from omnicupy.tools.bench import records
from omnicupy.tools.explain.least_squares import not_negative
from omnicupy.tools.workloads.workload import by_name

NUMBERS = 4  # of a tile: a pair, a pair of a PARTIAL tile, a block, a launch


def fit_tiles(contents: Sequence[dict[str, Any]], device: Device) -> tuple[TileCost, ...]:
    """The costs of all rows of the table that compete, by least squares of relative errors, none below zero.

    Only workloads count that a record has under each of the tiles that compete for them: what decides between tiles
    is their difference, and other masks would tell of one tile alone. () where too few are known of any tile.
    """
    found = []
    for head_dims, rows in _competitions():
        measured = _measured(contents, device, head_dims, rows)
        if len(measured) < NUMBERS + 1:
            return ()
        for place, row in enumerate(rows):
            amounts = np.array([one[place][0] for one in measured])
            times = np.array([one[place][1] for one in measured])
            pair, partial, block, launch = not_negative(
                amounts / times[:, None], np.ones(len(times))
            ).tolist()
            found.append(
                TileCost(row.kernel, head_dims, row.br, row.bc, 1e6 * pair, 1e6 * partial, block, launch)
            )
    return tuple(found)


def _competitions() -> list[tuple[tuple[int, int], list[Row]]]:
    """Neighbours of the table that compete, by the head_dims that they serve."""
    competing = [row for row in TABLE if row.competes]
    return [(head_dims, list(rows)) for head_dims, rows in groupby(competing, key=lambda row: row.head_dims)]


def _measured(
    contents: Sequence[dict[str, Any]], device: Device, head_dims: tuple[int, int], rows: Sequence[Row]
) -> list[list[tuple[FloatArray, float]]]:
    """Of each workload that was measured under all rows: for each row what its numbers are for, and the time in us."""
    found: list[list[tuple[FloatArray, float]]] = []
    for content in contents:
        times: dict[str, dict[str, dict[str, Any]]] = {}
        for row in content["rows"]:
            if (
                row["system"].startswith(records.OURS)
                and row.get("ms")
                and row.get("correct")
                and row.get("spec")
                and records.is_forward(row)
            ):
                times.setdefault(row["workload"], {}).setdefault(row["spec"], row)
        for of in times.values():
            problem = records.problem_of(next(iter(of.values())), content)
            head_dim = -(-problem.head_dim // 16) * 16
            if not head_dims[0] <= head_dim <= head_dims[1]:
                continue
            words = [variants.word(row.spec(content["arch"], content["dtype"], head_dim)) for row in rows]
            if all(word in of for word in words):
                share = problem.q_heads * problem.batch / device.sm_count
                found.append(
                    [
                        (_amounts(of[word], row, share), 1e3 * of[word]["ms"])
                        for word, row in zip(words, rows, strict=True)
                    ]
                )
    return found


def _amounts(measured: dict[str, Any], row: Row, share: float) -> FloatArray:
    """Pairs of tiles that are not PARTIAL, pairs of PARTIAL ones and blocks of one multiprocessor, and the launch."""
    blocks = by_name(measured["workload"]).mask().blocks(row.br, row.bc)
    partial = int((blocks.kinds == PARTIAL).sum())
    tile = row.br * row.bc * share
    return np.array(
        [tile * (int(blocks.tiles.sum()) - partial), tile * partial, share * blocks.q_blocks, 1.0]
    )
