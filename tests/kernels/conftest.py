"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import cuda_on_cpu
import pytest
from each_source import CASES


@pytest.fixture(autouse=True)
def _runs_its_source(request: pytest.FixtureRequest) -> Iterator[None]:
    """A case that stands for sources in every run does run them."""
    cuda_on_cpu.RAN.clear()
    yield
    assert {source for source, case in CASES.items() if case == request.node.nodeid} <= cuda_on_cpu.RAN
