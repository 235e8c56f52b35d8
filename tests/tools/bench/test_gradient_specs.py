"""Which kernels the benchmarks of the backward pass say that they measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from omnicupy.choose import backward_table
from omnicupy.choose.ceilings import Device
from omnicupy.tools.bench.gradients import Gradients, asked
from omnicupy.tools.workloads.workload import by_name


def _made(name: str) -> Gradients:
    """Without inputs."""
    workload = by_name(name)
    made = Gradients.__new__(Gradients)
    vars(made).update(_workload=workload, mask=workload.mask(), _dtype="bfloat16")
    return made


@pytest.mark.parametrize("name", ["random-d128-s512-seed0-h28-k4-b8", "random-d128-s4096-seed0-h28-k4-b4"])
def test_rows_name_the_kernels_that_calls_get(name: str) -> None:
    made = _made(name)
    chosen = backward_table.chosen_for("sm_90", by_name(name).problem(made.mask, "bfloat16"), (made.mask,))
    for word in ("", "any-order"):
        assert made.spec("sm_90", asked(word)) == chosen
    assert (chosen.ordered is None) == ("s512" in name)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("", "alone"),
        ("any-order", "tickets_alone"),
        ("split", "dkdv"),
        ("dkdv-alone", "dkdv"),
        ("dq-alone", "dq"),
        ("dq-128x64-s8-w12", "dkdv"),
        ("sm80-any-order", "fused"),
    ],
)
def test_rows_name_the_kernel_that_makes_the_gradients_of_keys(word: str, part: str) -> None:
    made = _made("random-d128-s4096-seed0-h16-k16-b4")
    of = asked(word)
    chosen = made.spec("sm_90", of)
    device = Device("H200", 132, 60 << 20)
    assert made.part(chosen, of, device) == part
    if "alone" in part:
        assert made.part(replace(chosen, **{"ordered" if of.free else "fused": None}), of, device) == part
