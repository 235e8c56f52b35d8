"""The study of instruction shapes: what is compared, that it is other code, and its record on a stand-in GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cubin_code
import numpy as np
import numpy_gpu
import pytest

from omnicupy.choose import backward_table, table, variants
from omnicupy.jit import cache, nvrtc, source
from omnicupy.jit.atom import SHIPPED, Atom
from omnicupy.jit.build import Compiled
from omnicupy.jit.spec import KernelSpec
from omnicupy.masks.constructors import causal, full
from omnicupy.tools.bench import atom_variants, atoms, gradients, measure
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.atom_specs import AtomSpec, backward_with_atom, with_atom
from omnicupy.tools.explain import fitting
from omnicupy.tools.report import atoms as report
from omnicupy.tools.report.library import Library
from omnicupy.tools.workloads.workload import Workload

EVERY = [
    (head_dim, backward, atom_variants.every("sm_90", "bfloat16", head_dim, backward=backward))
    for head_dim in atom_variants.HEAD_DIMS
    for backward in (False, True)
]


@pytest.mark.parametrize(("head_dim", "backward", "group"), EVERY)
def test_each_is_compared_with_a_shipped_kernel(
    head_dim: int, backward: bool, group: list[atom_variants.Variant]
) -> None:
    assert {one.study for one in group} == {"k", "n", "m"}
    for one in group:
        base = next(other for other in group if other.name == one.base and other.study == one.study)
        assert base.atom == SHIPPED
        assert bool(one.parts) == backward
        if one.study == "k":
            assert one.shape == (16, 8, 8, 16 if one is base else 8)
            assert one.tile == base.tile
        if one.study == "n":
            assert one.tile == base.tile
            assert (one.shape == base.shape) == (one is base)
    shipped = {one.spec for one in group if one.study != "m" and one.name == one.base}
    if not backward:
        rows = [row for row in table.TABLE if row.serves("sm_90", "bfloat16", head_dim)]
        found = {row.spec("sm_90", "bfloat16", head_dim) for row in rows}
        assert {spec for spec in shipped if spec.kernel == "sm90"} <= found


def test_an_atom_is_another_value_with_another_key() -> None:
    spec = variants.parse("sm80-64x32-s1-w4", "sm_80", "bfloat16", 64)
    other = with_atom(spec, Atom(k=8))
    assert other != spec
    assert with_atom(spec, SHIPPED) is spec
    assert cache.key_of(other, "d", (12, 9)) != cache.key_of(spec, "d", (12, 9))
    assert isinstance(replace(other, stages=2), AtomSpec)
    backward = backward_table.pick("sm_90", "bfloat16", 64)
    made = backward_with_atom(backward, Atom(sums=32))
    assert made != backward
    changed = {name for name, kernel in made.kernels().items() if kernel != backward.part(name)}
    assert changed == {"dkdv", "dq", "fused", "ordered"}
    for kernel in (spec, *backward.kernels().values()):
        assert SHIPPED.defines().items() <= kernel.defines().items()


def _code(spec: KernelSpec) -> bytes:
    image = nvrtc.compile(spec, source.load(spec.source)).image
    return {at: held for at, _, held in cubin_code.sections(image)}[f".text.{spec.entry}"]


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(
    ("word", "atom"), [("sm80-64x32-s1-w4", Atom(k=8)), ("sm90-64x64-s2-w8", Atom(scores=32, sums=32))]
)
def test_the_code_is_another_one_and_the_shipped_one_by_default(word: str, atom: Atom) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    spec = variants.parse(word, "sm_90", "bfloat16", 32)
    other = with_atom(spec, atom)
    assert isinstance(other, AtomSpec)
    shipped = _code(spec)
    assert _code(replace(other, atom=SHIPPED)) == shipped
    assert _code(other) != shipped


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in GPU, small problems and no compiler; the names of what is compiled."""
    numpy_gpu.install(monkeypatch)
    numpy_gpu.serve(monkeypatch, measure, gradients, atoms)
    monkeypatch.setattr(measure, "gemm_tflops", lambda clock: ("fake", 778.0))
    monkeypatch.setattr("omnicupy.tools.bench.speeds.COPY_BYTES", 1000)
    monkeypatch.setattr(atoms, "ROUNDS", 3)
    monkeypatch.setitem(sys.modules, "torch", None)
    masks = {"causal": lambda: causal(40, 40), "full": lambda: full(40, 40)}
    monkeypatch.setattr(atoms, "MASKS", masks)

    def by_name(name: str) -> Workload:
        return Workload(
            name, 1, (2, 1, int(name.split("-d")[1].split("-")[0])), masks[name.split("-")[0]], ""
        )

    monkeypatch.setattr(atoms, "by_name", by_name)
    names: list[str] = []

    def compile_all(specs: Sequence[KernelSpec]) -> list[Compiled[Any]]:
        names.extend(str(spec) for spec in specs)
        return [Compiled(spec, 168, "8 bytes of spills" if "k=8" in str(spec) else "") for spec in specs]

    monkeypatch.setattr(atoms, "compile_all", compile_all)
    return names


def _content() -> dict[str, Any]:
    return bench_run.run(bench_run.Options((atoms.SUITE,)), lambda line: None)


def test_the_suite_fills_the_record_and_the_report(gpu: list[str]) -> None:
    content = _content()
    assert len(content["rows"]) == 4 * sum(len(group) for _, _, group in EVERY)
    assert all(row["correct"] and row["ms"] > 0 for row in content["rows"])
    assert len(gpu) == len(set(gpu))
    assert any("convert" in name for name in gpu)
    assert fitting.points(content) == []  # no choice of the table's
    for name in report.STUDIES:
        text = report.study(name)(Library({"h100-atoms.json": content}))
        lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
        of_study = {
            (row["pass"], row["shape"][5], row["system"]) for row in content["rows"] if row["study"] == name
        }
        assert len(lines) == len(of_study)
        assert ("m16n8k8" in text and "168 (8 bytes of spills)" in text) == (name == "k")
    assert report.study("k")(Library({})) == "No record of this suite yet."


def test_what_is_wrong_or_fails_is_told_and_not_timed(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        atom = getattr(options["config"], "atom", SHIPPED)
        if atom.scores == 32:
            raise RuntimeError("no such instruction")
        made = numpy_gpu.attention(*arguments, **options)
        return np.asarray(made) * np.float32(1.2) if atom.k == 8 else made

    monkeypatch.setattr(atoms, "attention", wrong)
    rows = [row for row in _content()["rows"] if row["pass"] == "forward"]
    for row in rows:
        if row["system"].endswith("-k8"):
            assert row["problem"].startswith("wrong: error ")
        elif "-scores32" in row["system"]:
            assert row["problem"] == "RuntimeError: no such instruction"
        else:
            assert row["correct"]
    text = report.study("k")(Library({"h100-atoms.json": {"rows": rows, "device": "x", "started": "1"}}))
    assert "wrong: error" in text


def test_another_device_is_refused(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.archs, "arch_of", lambda major, minor: "sm_80")
    with pytest.raises(ValueError, match="atoms: compares kernels for compute capability"):
        _content()
