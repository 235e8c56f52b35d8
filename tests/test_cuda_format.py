"""CUDA sources are formatted by clang-format, and no line is too long: comments, which it leaves alone, are wrapped."""

from __future__ import annotations

import subprocess
from pathlib import Path

import clang_format
import pytest

ROOT = Path(__file__).parents[1]
MAX_LINE = 120  # columns
MADE = "kernels/omni/sm90/wgmma_table.cuh"  # the text of a script, an instruction a line
# Formatted with the next change of the kernels, as any change makes their attestation stale.
LATER = ("kernels/omni/sm90/work_list.cuh",)
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


def _formatted(*names: str) -> subprocess.CompletedProcess[str]:
    program = clang_format.get_executable("clang-format")
    return subprocess.run(
        [program, "--dry-run", "--Werror", *names],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )


def test_linters_are_content_with_cuda() -> None:
    done = _formatted(*(name for name in CUDA if name not in LATER))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(CUDA) > 15


@pytest.mark.parametrize("name", LATER)
def test_what_waits_for_its_formatting_still_needs_it(name: str) -> None:
    assert _formatted(name).returncode != 0, f"{name} is formatted: take it out of LATER"
