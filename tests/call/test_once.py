"""The checks of a call run once: what they come to is all that the engines need."""

from __future__ import annotations

from collections import Counter
from typing import Any

import fake_device
import numpy as np
import pytest

import omnicupy as oc
from omnicupy.call import check

CHECKS = ("call", "masks_of", "scale_of", "_check_kinds", "_check_shapes", "check_layout", "check_target")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each check has run."""
    found: Counter[str] = Counter()

    def counting(name: str) -> Any:
        run = getattr(check, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return run(*arguments, **options)

        return counted

    for name in CHECKS:
        monkeypatch.setattr(check, name, counting(name))
    return found


def test_on_the_cpu(counted: Counter[str]) -> None:
    q = np.random.default_rng(0).standard_normal((2, 2, 30, 16)).astype(np.float32)
    masks = [oc.causal(30), oc.full(30)]
    oc.attention(q, q, q, masks, scale=0.5, out=np.empty_like(q))
    assert counted == Counter(dict.fromkeys(set(CHECKS) - {"check_layout"}, 1))


def test_on_a_gpu(counted: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_device.install(monkeypatch)
    arrays, mask = fake_device.inputs(), oc.causal(300)
    out = fake_device.ndarray(arrays[0].shape, arrays[0].dtype)
    oc.attention(*arrays, mask, scale=0.5, out=out)
    each = dict.fromkeys(CHECKS, 1) | {"check_layout": 4}  # of q, k, v and out
    assert counted == Counter(each)
    oc.attention(*arrays, mask, scale=0.5, out=out)  # a warm call looks a plan up
    assert counted == Counter(each)
    oc.prepare(*arrays, mask, scale=0.5, out=out)
    assert counted == Counter(each)
