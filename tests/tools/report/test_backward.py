"""The report's table of choices of the backward pass, from a made record."""

from __future__ import annotations

from typing import Any

from omnicupy.tools.report import backward
from omnicupy.tools.report.library import Library


def _row(workload: str, system: str, tflops: float, **more: Any) -> dict[str, Any]:
    known = {"suite": "choices", "pass": "backward", "correct": True, "ms": 1000 / tflops}
    return {**known, "workload": workload, "system": system, "tflops": tflops, **more}


def _table(rows: list[dict[str, Any]]) -> str:
    return backward.choices(
        Library({"x.json": {"suites": ["choices"], "device": "H200", "started": "2026", "rows": rows}})
    )


def test_sums_in_one_order_may_take_the_place_of_those_in_any_not_the_other_way_round() -> None:
    rows = [
        _row("W4", "omnicupy", 500),
        _row("W4", "omnicupy:any-order", 540),
        _row("W4", "omnicupy:split", 510),
        _row("W4", "omnicupy:fused-64x64-s4-w8", 600),
        _row("W4", "omnicupy:ordered-64x64-s4-w8", 700, correct=False),
    ]
    text = _table(rows)
    assert "| W4 | 500 | split | 510 | 1.020 | 540 | fused-64x64-s4-w8 | 600 | 1.111 |" in text
    assert text.endswith("1 of 2 are within 5% of the fastest.")
    text = _table([*rows, _row("W4", "omnicupy:dq-128x64-s8-w12", 800)])
    assert "| W4 | 500 | dq-128x64-s8-w12 | 800 | 1.600 | 540 | dq-128x64-s8-w12 | 800 | 1.481 |" in text


def test_head_dims_without_a_kernel_for_all_have_one_form() -> None:
    text = _table([_row("W7", "omnicupy", 400), _row("W7", "omnicupy:dq-64x64-s4-w8", 390)])
    assert "| W7 | 400 | the default | 400 | 1.000 |  |  |  |  |" in text
    assert "1 of 1 are within" in text
    assert backward.choices(Library({"x.json": {"suites": ["vlm"], "rows": []}})) == backward.NONE
