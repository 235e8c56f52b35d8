"""Thread blocks that share a multiprocessor: how many a launch has, on a fake device; that they fit, on the GPU."""

from __future__ import annotations

from typing import Any

import fake_device
import pytest
from fake_device import inputs

import omnicupy as oc
from omnicupy.choose import table
from omnicupy.jit.spec import AttnSpec

SHORT = [row.spec("sm_90", "bfloat16", row.head_dims[1]) for row in table.TABLE if row.shape == "short"]


def test_a_launch_has_as_many_thread_blocks_as_multiprocessors_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake_device.install(monkeypatch)
    q, k, v = inputs(batch=4, heads=40, head_dim=80)
    fields: dict[str, Any] = {"arch": "sm_90a", "kernel": "sm90", "dtype": "bfloat16", "head_dim": 80}
    spec = AttnSpec(br=64, bc=32, stages=2, warps=8, blocks=3, **fields)
    oc.attention(q, k, v, oc.causal(300), config=spec)
    (launched,) = device.launches
    assert device.kernels == [spec]
    assert launched["block"] == (256, 1, 1)
    assert launched["smem"] == spec.smem_bytes
    assert launched["grid"] == (3 * 132, 1, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SHORT, ids=str)
def test_a_multiprocessor_holds_its_thread_blocks(spec: AttnSpec) -> None:
    import cupy

    from omnicupy.gpu import modules

    if cupy.cuda.Device().compute_capability != "90":
        pytest.skip("for compute capability 9.0")
    found = modules.kernel(spec, cupy.cuda.Device().id).raw.kernel
    occupancy = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
    assert occupancy(found.ptr, spec.threads, spec.smem_bytes) == spec.blocks
