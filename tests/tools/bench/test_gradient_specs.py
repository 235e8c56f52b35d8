"""Which kernels the benchmarks of the backward pass say that they measured."""

from __future__ import annotations

import pytest

from omnicupy.choose import backward_table
from omnicupy.tools.bench.gradients import Gradients, asked
from omnicupy.tools.workloads.workload import by_name


@pytest.mark.parametrize("name", ["random-d128-s2048-seed0-h28-k4-b8", "random-d128-s4096-seed0-h28-k4-b4"])
def test_rows_name_the_kernels_that_calls_get(name: str) -> None:
    workload = by_name(name)
    made = Gradients.__new__(Gradients)  # without inputs
    vars(made).update(_workload=workload, mask=workload.mask(), _dtype="bfloat16")
    chosen = backward_table.chosen_for("sm_90", workload.problem(made.mask, "bfloat16"))
    for word in ("", "any-order"):
        assert made.spec("sm_90", asked(word)) == chosen
    assert (chosen.ordered is None) == ("s2048" in name)
