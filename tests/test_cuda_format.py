"""CUDA sources are formatted by clang-format, and no line is too long: comments, which it leaves alone, are wrapped."""

from __future__ import annotations

import subprocess
from pathlib import Path

import clang_format
import pytest

ROOT = Path(__file__).parents[1]
MAX_LINE = 120  # columns
MADE = "kernels/omni/sm90/wgmma_table.cuh"  # the text of a script, an instruction a line
CUDA = sorted(
    name
    for pattern in ("kernels/**/*.cu", "kernels/**/*.cuh")
    for path in ROOT.glob(pattern)
    if (name := str(path.relative_to(ROOT))) != MADE
)


@pytest.mark.parametrize("name", CUDA)
def test_lines_are_not_too_long(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert [i for i, line in enumerate(lines, 1) if len(line) > MAX_LINE] == []


def test_linters_are_content_with_cuda() -> None:
    program = clang_format.get_executable("clang-format")
    done = subprocess.run(
        [program, "--dry-run", "--Werror", *CUDA],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(CUDA) > 15
