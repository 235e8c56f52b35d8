""".ci/same_code.py: what it takes for the same code, and what not."""

from __future__ import annotations

import importlib.util
import shutil
import struct
from pathlib import Path
from types import ModuleType

import pytest

from omnicupy.choose import table
from omnicupy.jit.source import kernels_dir

SCRIPT = Path(__file__).parent.parent / ".ci" / "same_code.py"
KERNEL = "naive-64x64-s1-w4-sm_80-float16-d64"  # compiles in no time


@pytest.fixture(scope="module")
def same_code() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same_code", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tree(folder: Path, before: str, after: str) -> str:
    """A tree whose kernels differ from these in one text of the plain kernel's entry file."""
    shutil.copytree(kernels_dir(), folder / "kernels")
    path = folder / "kernels" / "attention_naive.cu"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    return str(folder)


def test_names_do_not_count(
    same_code: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert same_code.main(_tree(tmp_path, "kOwned", "kColumnsOfAThread"), KERNEL) == 0
    assert capsys.readouterr().out.endswith(": 1 kernels compared, 0 differ\n")


@pytest.mark.parametrize(
    "change",
    [
        ("sum += weight;", "sum += 2.f * weight;", ".text.attention_naive"),
        ("constexpr int kThreads = 128;", "constexpr int kThreads = 256;", ".nv.info.attention_naive"),
        ("__syncthreads();", "syncthreads();", "error: identifier"),
    ],
)
def test_what_differs_is_said(
    same_code: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str, str],
) -> None:
    before, after, said = change
    assert same_code.main(_tree(tmp_path, before, after), KERNEL) == 1
    line, count = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{KERNEL}: ")
    assert said in line
    assert count.endswith(": 1 kernels compared, 1 differ")


def test_nothing_to_compare_is_no_success(same_code: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected another checkout, with a folder kernels"):
        same_code.main(str(tmp_path), KERNEL)
    (tmp_path / "kernels").mkdir()
    assert same_code.main(str(tmp_path), "no such kernel") == 1


def test_every_row_of_the_table_is_compared(same_code: ModuleType) -> None:
    names = [same_code.name(spec) for spec in same_code.kernels()]
    assert len(set(names)) == len(names)
    assert {same_code.name(spec) for spec in table.rows()} <= set(names)


def test_sections_that_differ(same_code: ModuleType) -> None:
    before = {".text.a": (4, b"abcd"), ".nv.shared.a": (8, b"")}
    assert same_code.difference(before, dict(before)) == ""
    assert same_code.difference(before, {**before, ".text.a": (4, b"abxd")}) == ".text.a: from byte 2 on"
    larger = {**before, ".nv.shared.a": (16, b"")}
    assert same_code.difference(before, larger) == ".nv.shared.a: 16 bytes, 8 in the other tree"
    assert same_code.difference({}, {".text.b": (4, b"abcd")}) == ".text.b: 4 bytes, 0 in the other tree"


def test_symbols_have_no_numbers(same_code: ModuleType) -> None:
    registers = struct.pack("<BBHI", 4, 47, 4, 168)
    flag = struct.pack("<BBH", 3, 27, 255)
    bank = struct.pack("<BBHIHH", 4, 10, 8, 21, 0x210, 256)
    found = same_code._without_symbols(flag + registers + bank)
    assert found == flag + registers + struct.pack("<BBHIHH", 4, 10, 8, 0, 0x210, 256)
