"""The wgmma instruction table is what its script makes, and covers what the Hopper rows use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import make_wgmma
import pytest

from omnicupy.choose import table
from omnicupy.jit.spec import AttnSpec

HOPPER = [spec for spec in table.rows() if spec.kernel == "sm90"]


def test_the_table_is_what_the_script_makes() -> None:
    assert make_wgmma.TARGET.read_text() == make_wgmma.text(), (
        "run: python tests/helpers/make_wgmma.py --write"
    )


@pytest.mark.parametrize("spec", HOPPER, ids=lambda spec: f"d{spec.head_dim}-{spec.dtype}")
def test_every_width_of_the_tile_table_is_there(spec: AttnSpec) -> None:
    flag = str(spec.dtype == "bfloat16").lower()
    for width in (spec.bc, spec.head_dim):
        assert f"struct Wgmma<{width}, {flag}>" in make_wgmma.text()


@pytest.mark.parametrize("width", make_wgmma.WIDTHS)
def test_operands_are_counted_right(width: int) -> None:
    """Of m64nNk16: N / 2 accumulators a thread, then 3 operands (A and B in shared memory), 5 or 6."""
    text = make_wgmma.struct(width, True)
    assert text.count('"+f"') == 4 * (width // 2)
    assert text.count(f"p, %{width // 2 + 2}, 0;") == 2
    assert f"%{width // 2 + 4}, 1, 1, 1, 1;" in text
    assert text.count(f"p, %{width // 2 + 5}, 0;") == text.count(f"%{width // 2 + 4}, p, 1, 1, 0;") == 1


def test_the_script_writes_only_when_told() -> None:
    script = Path(make_wgmma.__file__)
    before = make_wgmma.TARGET.stat().st_mtime_ns
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == "usage: make_wgmma.py --write"
    assert make_wgmma.TARGET.stat().st_mtime_ns == before
