"""bench/decoding.py: the rows of the suite `decode`, and the share of a copy that they reach."""

from __future__ import annotations

import pytest

from omnicupy.tools.bench import decoding
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.workloads.workload import by_name


def test_the_suite_has_the_groups_and_sizes_that_are_served() -> None:
    made = [by_name(name) for name in GPU_SUITES["decode"].workloads]
    assert {of.q_heads // of.kv_heads for of in made} >= {1, 2, 3, 4, 5, 7, 8, 71}
    assert {of.head_dim for of in made} >= {64, 128, 256}
    shapes = {of.name: of.mask().shape for of in made}
    assert shapes["decode-d128-s131072-h28-k4-b1"] == (1, 131072)
    assert shapes["decode-d128-s8192-q4-h32-k8-b16"] == (4, 8192)
    megabytes = [
        decoding.kv_bytes(of.batch, of.kv_heads, shapes[of.name][1], of.head_dim) / 1e6 for of in made
    ]
    assert min(megabytes) < 20
    assert max(megabytes) > 1000


def test_a_share_of_the_copy_is_bytes_of_keys_and_values_a_second() -> None:
    of = by_name("decode-d128-s4096-h32-k8-b64")
    assert decoding.kv_bytes(64, 8, 4096, 128) == 2 * 64 * 8 * 4096 * 128 * 2
    assert decoding.copy_share(of, (1, 4096), 0.4, 3.0) == {
        "copy_share": pytest.approx(64 * 8 * 4096 * 128 * 4 / 0.4e-3 / 3e12)
    }
    assert decoding.copy_share(of, (65, 4096), 0.4, 3.0) == {}
    assert decoding.copy_share(of, (1, 4096), 0.4, 0.0) == {}
