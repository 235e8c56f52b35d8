"""What a kernel source's digest covers, and what it leaves out."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_backward
import fake_device
import numpy as np
import pytest

from omnicupy.choose import backward_table, table
from omnicupy.gpu import backward
from omnicupy.gpu.attention import attention
from omnicupy.jit import source
from omnicupy.jit.cached_spec import CachedSpec
from omnicupy.jit.exchange_spec import ExchangeAddSpec, ExchangeSpec
from omnicupy.jit.params import PARAMS
from omnicupy.jit.source import kernels_dir
from omnicupy.jit.spec import AttnSpec
from omnicupy.masks.constructors import causal, from_dense, full
from omnicupy.masks.tile_masks import from_tiles
from omnicupy.tools.verify import source_digest
from omnicupy.tools.verify.source_digest import (
    APPENDING,
    APPENDING_FP8,
    BACKWARD,
    FOLDERS,
    FORWARD,
    PLANNING,
    SOURCES,
    Launch,
    launch_modules,
)

SM80 = "attention_fwd_sm80.cu"
PLANNER, *_ = BESIDE = ("attention_plan_cached.cu", "cache_append.cu", "cache_append_fp8.cu")


@functools.cache
def digests() -> dict[str, str]:
    """Of the code as it is: asked for before any is changed."""
    return {name: source_digest.digest(name) for name in SOURCES}


def test_sources_are_those_of_the_specs() -> None:
    shapes = {
        "naive": {"arch": "sm_80", "br": 64, "warps": 4},
        "sm80": {"arch": "sm_80", "br": 64, "warps": 4},
        "sm90": {"arch": "sm_90a", "br": 64, "warps": 8},
    }
    for kernel, shape in shapes.items():
        spec = AttnSpec(kernel=kernel, dtype="float16", head_dim=64, bc=64, **shape)  # type: ignore[arg-type]
        assert SOURCES[spec.source].kernel == kernel


def test_comments_and_white_space_do_not_count_in_cuda() -> None:
    plain = source_digest.stripped(b'int a = 1;\nasm("x // y" : : "r"(a));')
    assert (
        source_digest.stripped(b'// why\nint  a=1; /* two\nlines */ asm("x // y"::"r"(a)); // end') == plain
    )
    assert source_digest.stripped(b'int a = 1;\nasm("x //  y" : : "r"(a));') != plain
    assert source_digest.stripped(b"int a = 2;") != source_digest.stripped(b"int a = 1;")


def test_docstrings_and_comments_do_not_count_in_python() -> None:
    plain = source_digest.tree("class A:\n    def f(self):\n        return 1\n")
    documented = (
        '"""M."""\nclass A:\n    """C."""\n    def f(self):  # why\n        """F."""\n        return 1\n'
    )
    assert source_digest.tree(documented) == plain
    assert source_digest.tree("class A:\n    def f(self):\n        return 2\n") != plain
    assert source_digest.tree('x = """M."""') != source_digest.tree('x = ""')


def test_fields_have_names_types_and_offsets() -> None:
    one = np.dtype([("a", "<u8"), ("b", "<i4", (3,))], align=True)
    other = np.dtype([("a", "<u8"), ("b", "<i4", (2,)), ("c", "<i4")], align=True)
    assert source_digest.fields_of(one) != source_digest.fields_of(other)
    assert "('b', " in source_digest.fields_of(one)
    assert source_digest.fields_of(one).endswith(str(one.itemsize))


def test_digest_follows_the_rows_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests()
    assert len(set(before.values())) == len(before)
    monkeypatch.setattr(table, "TABLE", table.TABLE[:-1])
    assert source_digest.digest(SM80) != before[SM80]
    assert source_digest.digest("attention_naive.cu") == before["attention_naive.cu"]


def _changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str) -> set[str]:
    """The sources whose digests change with a statement more in a module."""
    before = digests()
    changed = tmp_path / "changed.py"
    changed.write_text(source_digest.modules()[module].read_text() + "\nmore = 1\n")
    monkeypatch.setitem(source_digest.modules(), module, changed)
    return {name for name in SOURCES if source_digest.digest(name) != before[name]}


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("module", ["gpu.plan", "masks.cut_tiles", "masks.pairs", "schedule.order"])
def test_shared_code_counts_for_every_source_of_attention(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _changed(monkeypatch, tmp_path, module) - {PLANNER} == set(SOURCES) - set(BESIDE)


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("module", ["masks.picture", "masks.mask", "choose.prediction", "cpu.attention"])
def test_code_that_launches_nothing_does_not_count(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _changed(monkeypatch, tmp_path, module)


@pytest.mark.parametrize("launch", [FORWARD, BACKWARD])
def test_all_that_the_cut_imports_is_covered(launch: Launch) -> None:
    covered = set(launch_modules(launch))
    for module in (
        "masks.cut",
        "masks.cut_tiles",
        "masks.cut_bits",
        "masks.tiles",
        "masks.columns",
        "masks.pairs",
    ):
        assert module in covered
        assert {name for name in source_digest.imported(module) if name.startswith("masks.")} <= covered
    assert not {name for name in covered if name.partition(".")[0] not in FOLDERS}


def test_imports_for_type_checking_alone_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from omnicupy.masks import picture\n"
        "def f():\n    import omnicupy.masks.text\n    from omnicupy.masks.stats import stats_of\n"
    )
    monkeypatch.setitem(source_digest.modules(), "some", file)
    assert source_digest.imported("some") == {"masks.text", "masks.stats"}


def test_a_door_that_is_gone_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"module gpu\.nowhere is missing"):
        launch_modules(Launch(doors=("gpu.nowhere",)))


def _modules_that_run(call: Any) -> set[str]:
    """The modules of FOLDERS whose code a call runs."""
    files = {str(path): module for module, path in source_digest.modules().items()}
    ran: set[str] = set()

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and (module := files.get(frame.f_code.co_filename)):
            ran.add(module)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {module for module in ran if module.partition(".")[0] in FOLDERS}


def _masks() -> list[Any]:
    """Masks of the three forms, new ones: nothing of them was cut before."""
    rng = np.random.default_rng(0)
    return [
        causal(300),
        full(300),
        from_dense(rng.random((300, 300)) < 0.5),
        from_tiles([[0, 2], [1], [0, 1, 2]], 300, 300, 128, 128),
    ]


ARCHES = {"sm80": "sm_90", "sm90": "sm_90a"}
UNCOVERED = {"masks.mask", "masks.handles"}  # the mask itself, which tells what it holds


@pytest.mark.parametrize("kernel", ["sm80", "sm90"])
def test_all_code_that_a_call_runs_is_covered(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_device.install(monkeypatch)
    warps, masks = {"sm80": 4, "sm90": 8}[kernel], _masks()
    shape = {"br": 64, "bc": 64, "warps": warps, "stages": 2}
    spec = AttnSpec(arch=ARCHES[kernel], kernel=kernel, dtype="bfloat16", head_dim=64, **shape)

    given = dict.fromkeys(("scale", "sink_logits", "softcap", "out", "split")) | {"config": spec}

    def call() -> None:
        for mask in masks:
            attention(*fake_device.inputs(), mask, False, given)

    ran = _modules_that_run(call)
    assert {"gpu.plan", "masks.cut", "masks.cut_bits", "masks.cut_tiles", "schedule.order"} <= ran
    assert ran - set(launch_modules(FORWARD)) <= UNCOVERED


@pytest.mark.parametrize("kernel", ["naive", "sm80", "sm90"])
def test_all_code_that_a_backward_pass_runs_is_covered(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_backward.install(monkeypatch)
    masks = _masks()
    specs = (backward_table.naive("sm_90", "bfloat16", 64), *backward_table.rows())
    spec = next(
        one
        for one in specs
        if (one.kernel, one.arch, one.dtype, one.head_dim)
        == (kernel, ARCHES.get(kernel, "sm_90"), "bfloat16", 64)
    )

    def call() -> None:
        for mask in masks:
            q, k, v = fake_device.inputs()
            dout, out = (fake_device.ndarray(q.shape, fake_device.BF16) for _ in range(2))
            lse = fake_device.ndarray(
                q.shape[:3], np.float32, strides=np.empty(q.shape[:3], np.float32).strides
            )
            for ordered in {None, spec.fused if kernel == "sm90" else None}:
                config = replace(spec, ordered=ordered)
                backward.attention_backward(dout, q, k, v, out, lse, mask=mask, config=config)

    ran = _modules_that_run(call)
    assert {"gpu.backward_plan", "masks.transpose", "masks.cut_tiles", "schedule.key_lists"} <= ran
    assert ran - set(launch_modules(BACKWARD)) <= UNCOVERED


def test_the_backward_pass_does_not_count_for_the_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward_alone = set(launch_modules(BACKWARD)) - set(launch_modules(FORWARD))
    assert {
        "gpu.backward",
        "gpu.backward_planning",
        "masks.transpose",
        "schedule.key_lists",
    } <= backward_alone
    changed = _changed(monkeypatch, tmp_path, "masks.transpose")
    assert changed == {name for name, of in SOURCES.items() if of.launch is BACKWARD}
    assert changed == {name for name in SOURCES if "_bwd_" in name}


def test_a_source_has_the_struct_and_the_variants_of_its_kernels() -> None:
    # They move bytes, and add what came back: tests on two GPUs compare both with what NCCL brings and torch adds.
    shared = {ExchangeSpec(arch="sm_90").source, ExchangeAddSpec(arch="sm_90", dtype="bfloat16").source}
    assert {name.name for name in kernels_dir().glob("*.cu")} == set(SOURCES) | shared
    for name, specs in source_digest.rows().items():
        given, own = {spec.params for spec in specs}, SOURCES[name].params
        # Maps of narrow panels stand behind the struct that counts; their size is in the options, which count too. Of
        # few rows the struct that counts has all fields of the other one, in the same places.
        within = {"sm90"} if name == source_digest.FEW_ROWS else set()
        assert own in given <= {own, f"{own}_narrow", *within}
        for params in given:
            fields, wider = PARAMS[own].fields, PARAMS[params].fields
            assert fields is not None
            assert wider is not None
            if params in within:
                assert wider.items() <= fields.items()
                continue
            assert fields.items() <= wider.items()
            assert {key.endswith("_tail_map") for key in wider.keys() - fields.keys()} <= {True}
    assert set(source_digest.rows()) == {
        name for name in SOURCES if "naive" not in name and name not in BESIDE
    }
    for launch, name in zip((PLANNING, APPENDING, APPENDING_FP8), BESIDE, strict=True):
        assert SOURCES[name].launch is launch
        assert {spec.source for spec in launch.ahead} == {name}
        assert SOURCES[name].params in {spec.params for spec in launch.ahead}
    assert set(BESIDE) <= source_digest.selected()


def test_a_forward_kernel_s_digest_holds_the_planner_and_the_variant_of_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {name: source_digest.digest(name) for name in (SM80, "attention_fwd_sm90.cu")}
    backward = source_digest.digest("attention_bwd_sm80.cu")
    load = source.load
    planner = FORWARD.ahead[0].source

    def changed(name: str) -> source.Source:
        found = load(name)
        return replace(found, text=found.text + b"int more;") if name == planner else found

    monkeypatch.setattr(source_digest.source, "load", changed)
    assert all(source_digest.digest(name) != digest for name, digest in before.items())
    assert source_digest.digest("attention_bwd_sm80.cu") == backward
    monkeypatch.undo()
    monkeypatch.setattr(CachedSpec, "defines", AttnSpec.defines)
    assert source_digest.digest(SM80) == before[SM80]
    assert source_digest.digest("attention_fwd_sm90.cu") != before["attention_fwd_sm90.cu"]
