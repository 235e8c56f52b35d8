"""jit/source.py: what a kernel's bytes are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnicupy.jit import source


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "omni" / "deep").mkdir(parents=True)
    (tmp_path / "a.cu").write_text(
        '// first\n#include "omni/one.cuh"\n  # include "omni/deep/two.cuh"\nint a;\n'
    )
    (tmp_path / "omni" / "one.cuh").write_text(
        '#pragma once\n#include "omni/deep/two.cuh"\n// #include "omni/no.cuh"\n'
    )
    (tmp_path / "omni" / "deep" / "two.cuh").write_text('#pragma once\n#include "omni/one.cuh"\nint two;\n')
    return tmp_path


def test_load_closes_over_includes_and_stands_cycles(tree: Path) -> None:
    found = source.load("a.cu", tree)
    assert [name for name, _ in found.headers] == ["omni/deep/two.cuh", "omni/one.cuh"]
    assert found.text == (tree / "a.cu").read_bytes()
    assert dict(found.headers)["omni/deep/two.cuh"] == (tree / "omni/deep/two.cuh").read_bytes()


@pytest.mark.parametrize("name", ["a.cu", "omni/one.cuh", "omni/deep/two.cuh"])
def test_each_byte_is_in_the_digest(tree: Path, name: str) -> None:
    before = source.load("a.cu", tree).digest
    (tree / name).write_bytes((tree / name).read_bytes() + b" ")
    assert source.load("a.cu", tree).digest != before


def test_moving_bytes_between_files_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "omni").mkdir()
    (tmp_path / "a.cu").write_text('#include "omni/b.cuh"\nxy')
    (tmp_path / "omni/b.cuh").write_text("z")
    before = source.load("a.cu", tmp_path).digest
    (tmp_path / "a.cu").write_text('#include "omni/b.cuh"\nx')
    (tmp_path / "omni/b.cuh").write_text("yz")
    assert source.load("a.cu", tmp_path).digest != before


def test_digest_depends_on_content_only(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "omni" / "deep").mkdir(parents=True)
    for name in ("a.cu", "omni/one.cuh", "omni/deep/two.cuh"):
        (copy / name).write_bytes((tree / name).read_bytes())
    assert source.load("a.cu", copy) == source.load("a.cu", tree)


@pytest.mark.parametrize("include", ['"one.cuh"', "<cuda_fp16.h>", '"omni/../x.cuh"'])
def test_includes_must_be_spelled_from_the_root(tmp_path: Path, include: str) -> None:
    (tmp_path / "a.cu").write_text(f"#include {include}\n")
    with pytest.raises(ValueError) as error:
        source.load("a.cu", tmp_path)
    assert str(error.value) == (
        'a.cu: includes must be spelled from the kernels\' root (#include "omni/..."), got '
        f"'{include[1:-1]}'; NVRTC is given no other headers"
    )


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        source.load("a.cu", tmp_path)
    assert str(error.value) == f"kernel source 'a.cu' is missing: expected the file {tmp_path / 'a.cu'}"
    (tmp_path / "a.cu").write_text('#include "omni/gone.cuh"\n')
    with pytest.raises(FileNotFoundError) as error:
        source.load("a.cu", tmp_path)
    assert str(error.value) == (
        "header 'omni/gone.cuh', included by 'a.cu', is missing: "
        f"expected the file {tmp_path / 'omni/gone.cuh'}"
    )


@pytest.mark.parametrize("name", sorted(path.name for path in source.kernels_dir().glob("*.cu")))
def test_every_entry_file_loads_and_defines_its_kernel(name: str) -> None:
    found = source.load(name)
    assert f" {name.removesuffix('.cu')}(" in found.text.decode()
    assert "omni/params.cuh" in dict(found.headers)
