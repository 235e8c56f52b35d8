"""The suites' catalogue, and what is done with a workload of each kind, on a stand-in GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy_gpu
import pytest

from omnicupy.choose import variants
from omnicupy.jit.build import Compiled
from omnicupy.masks.constructors import from_dense, full
from omnicupy.masks.segment_masks import segments
from omnicupy.tools.bench import mask_build, measure, memory, peers, suites, tiles, turns
from omnicupy.tools.bench import run as bench_run
from omnicupy.tools.bench.suite import with_seeds
from omnicupy.tools.bench.suites import GPU_SUITES
from omnicupy.tools.workloads.workload import Workload, by_name

SESSION: dict[str, Any] = {"arch": "sm_90", "dtype": "bfloat16", "turns": turns.NOBODY_ELSE, "say": print}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = numpy_gpu.install(monkeypatch)
    for module in (measure, mask_build, memory):
        monkeypatch.setattr(module, "attention", numpy_gpu.attention)
    monkeypatch.setattr(measure, "gemm_tflops", lambda clock: ("fake", 778.0))
    monkeypatch.setattr("omnicupy.tools.bench.speeds.COPY_BYTES", 1000)
    monkeypatch.setattr(memory, "_kept_by", lambda mask: 4096)
    monkeypatch.setitem(sys.modules, "torch", None)
    return fake


def _run(
    monkeypatch: pytest.MonkeyPatch, mask: Any, suite: str, *systems: str, timed: str = "fwd"
) -> list[dict[str, Any]]:
    workload = Workload("tiny", 1, (2, 1, 16), mask, "")
    monkeypatch.setattr(bench_run, "by_name", lambda name: workload)
    options = bench_run.Options((suite,), (GPU_SUITES[suite].workloads[0],), systems, samples=3, timed=timed)
    rows: list[dict[str, Any]] = bench_run.run(options, lambda line: None)["rows"]
    return [row for row in rows if row["workload"] == "tiny"]


def _mixed() -> Any:
    return segments([("text", 30), ("image", 50)])


def test_every_suite_names_real_workloads_and_systems() -> None:
    for suite in GPU_SUITES.values():
        for name in suite.workloads:
            by_name(name)
        for system in suite.systems:
            assert system.partition(":")[0] in ("omnicupy", *peers.SYSTEMS)
        assert {part.kind for part in suite.parts} <= set(bench_run.KINDS)
    assert all(
        name in bench_run.listing()
        for name in (*GPU_SUITES, "host", "cold", "build", "presets", "scaling", "sharing", "parallel", "cpu")
    )


def test_the_studies_cover_what_they_are_of() -> None:
    shapes = GPU_SUITES["shapes"].workloads
    assert len(shapes) == len(set(shapes)) == 3 * 7 * 2
    assert {"full-d64-s512", "causal-d256-s32768"} <= set(shapes)
    assert {f"W{n}" for n in range(1, 16)} <= set(GPU_SUITES["vlm"].workloads)
    assert "omnicupy:naive" in GPU_SUITES["sparsity"].systems
    densities = {
        name.split("-")[3] for name in GPU_SUITES["sparsity"].workloads if name.startswith("sparse-d128")
    }
    assert densities == {f"p{share}" for share in suites.PER_MILLE}
    short = {by_name(name).mask().shape[0] for name in GPU_SUITES["short"].workloads}
    assert (min(short), max(short)) == (128, 4096)
    assert all(by_name(name).batch == 1 for name in GPU_SUITES["short"].workloads)


def test_seeds_choose_random_masks() -> None:
    assert len(names := GPU_SUITES["random"].workloads) == 24
    assert len(with_seeds(names, 2)) == 6
    assert with_seeds(("W1", "W4"), 1) == ["W1", "W4"]
    for own in (GPU_SUITES[suite].workloads for suite in ("fit", "unseen")):
        assert with_seeds(own, 1) == list(own)
    assert len(with_seeds(many := GPU_SUITES["sparsity"].workloads, 1)) == len(many) - len(suites.PER_MILLE)


def test_a_workload_is_measured_as_in_the_part_that_has_it() -> None:
    suite = GPU_SUITES["sparsity"]
    jobs = list(bench_run.planned(suite, bench_run.Options(seeds=8)))
    assert [name for name, *_ in jobs] == list(suite.workloads)
    of = {name: systems for name, systems, _ in jobs}
    assert "omnicupy:nomask" in of["full-d128-s16384"]
    assert "omnicupy:naive" in of["sparse-d128-s2048-p500-seed0-h32-k32-b1"]
    assert "omnicupy:naive" not in of["sparse-d128-s16384-p500-seed0"]
    chosen = bench_run.planned(suite, bench_run.Options(workloads=("W1",), systems=("flex",)))
    assert list(chosen) == [("W1", ("flex",), "measure")]


def test_mask_objects_that_are_full_are_compared_with_none(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = []

    def attention(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        passed.append(mask)
        return numpy_gpu.attention(q, k, v, mask, **options)

    monkeypatch.setattr(measure, "attention", attention)
    words = [f"omnicupy:{word}" for word in measure.FULL_OBJECTS]
    rows = _run(monkeypatch, lambda: full(80), "sparsity", "omnicupy", *words)
    assert [row["system"] for row in rows] == ["omnicupy", *words]
    assert all(row["correct"] for row in rows)
    assert None in passed
    assert segments([("image", 80)]) in passed
    assert from_dense(np.ones((80, 80), np.bool_)) in passed
    (row,) = _run(monkeypatch, _mixed, "sparsity", "omnicupy:ones")
    assert row["problem"] == "ValueError: omnicupy:ones: for square full masks alone, got tiny"


def test_building_is_timed_step_by_step(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []

    def attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
        masks.append(mask)
        return numpy_gpu.attention(q, k, v, mask)

    monkeypatch.setattr(mask_build, "attention", attention)
    monkeypatch.setitem(bench_run.CPU_HOST, "build", lambda record, say: None)
    (row,) = _run(monkeypatch, _mixed, "build", "omnicupy")
    assert set(row["figures"]) == {"mask_ms", "cut_ms", "new_mask_call_ms", "same_mask_call_ms"}
    assert all(value > 0 for value in row["figures"].values())
    calls = masks[1:]  # after the one that loads the kernel
    assert len(calls) == 2 * mask_build.TURNS
    assert all(new is same for new, same in zip(calls[::2], calls[1::2], strict=True))
    assert len({id(mask) for mask in calls}) == mask_build.TURNS


def test_building_is_timed_with_both_passes(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Any]] = {"forward": [], "backward": []}

    def attention(q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        seen["forward"].append(mask)
        return numpy_gpu.attention(q, k, v, mask, **options)

    def backward(dout: Any, *saved: Any) -> None:
        *_, out, lse, mask = saved
        assert (dout.shape, lse.shape) == (out.shape, out.shape[:3])
        seen["backward"].append(mask)

    monkeypatch.setattr(mask_build, "attention", attention)
    monkeypatch.setattr(mask_build, "attention_backward", backward)
    monkeypatch.setitem(bench_run.CPU_HOST, "build", lambda record, say: None)
    (row,) = _run(monkeypatch, _mixed, "build", "omnicupy", timed="fwd+bwd")
    assert (row["pass"], len(seen["backward"])) == ("forward+backward", 1 + 2 * mask_build.TURNS)
    assert seen["forward"] == seen["backward"]
    assert row["figures"]["gradient_lists_ms"] > 0


def test_the_build_suite_also_runs_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run.environment, "has_gpu", lambda: False)
    monkeypatch.setitem(
        bench_run.CPU_HOST, "build", lambda record, say: record.add(workload="w", system="omnicupy")
    )
    content = bench_run.run(bench_run.Options(("build",)), lambda line: None)
    assert content["rows"] == [{"suite": "build", "workload": "w", "system": "omnicupy"}]


def test_memory_is_counted(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_peak_of_cupy", lambda call: call() or 10_000)
    (row,) = _run(monkeypatch, _mixed, "memory", "omnicupy")
    output = 2 * 80 * 16 * 2
    assert row["figures"] == {
        "output_bytes": output,
        "call_bytes": 10_000 - output,
        "first_bytes": 10_000 - output,
        "kept_bytes": 4096,
        "taken_bytes": 0,
    }


def test_the_peak_is_of_what_is_held_at_once() -> None:
    peak = memory.Peak()
    peak.give(7)  # handed out before
    peak.take(1, 100)
    peak.take(2, 50)
    peak.give(1)
    peak.take(3, 60)
    assert (peak.most, peak.held) == (150, {2: 50, 3: 60})
    peak.take(1, 100)
    assert peak.most == 210


class _Torch:
    """The counters of torch's allocator."""

    def __init__(self) -> None:
        self.now = self.most = 1000
        self.cuda = SimpleNamespace(
            synchronize=lambda: None,
            empty_cache=lambda: None,
            reset_peak_memory_stats=lambda: setattr(self, "most", self.now),
            memory_allocated=lambda: self.now,
            max_memory_allocated=lambda: self.most,
            mem_get_info=lambda: (numpy_gpu.Device.mem_info[0] - 5000, 0),
        )

    def take(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


@pytest.mark.in_turn(3)
def test_memory_of_rivals_is_their_allocator_s(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = _Torch()

    def prepare(name: str, shared: Any, limit: float, *timed: Any) -> Any:
        torch.take(900)  # to build the mask object
        torch.take(-600)  # which keeps 300

        def call() -> None:
            torch.take(256 + 64)
            torch.take(-256 - 64)

        call()
        return SimpleNamespace(call=call)

    monkeypatch.setattr(memory.torch_inputs, "library", lambda name: torch)
    monkeypatch.setattr(memory, "prepare", prepare)
    shared = SimpleNamespace(bshd=None, q=SimpleNamespace(nbytes=256))
    assert memory._theirs("flex", shared, 1.0) == {  # type: ignore[arg-type]
        "output_bytes": 256,
        "call_bytes": 64,
        "first_bytes": 900 - 256,
        "kept_bytes": 300,
        "taken_bytes": 5000,
    }


def test_failures_of_one_system_are_its_row(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "attention", lambda *arguments: 1 / 0)
    (row,) = _run(monkeypatch, _mixed, "memory", "omnicupy")
    assert row["figures"] == {"problem": "ZeroDivisionError: division by zero"}


def test_tile_studies_hold_every_switch(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_all(specs: Any) -> list[Compiled]:
        compiled.extend(specs)
        return [Compiled(spec, 9, "8 bytes of spills" if spec.warps == 8 else "") for spec in specs]

    monkeypatch.setattr(tiles, "compile_all", compile_all)
    names = tiles.every_tile(SimpleNamespace(**SESSION), 128, "sm80")  # type: ignore[arg-type]
    assert all(spec.br >= 64 for spec in compiled)
    assert {(spec.share_kv, spec.swizzle) for spec in compiled} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    assert {spec.stages for spec in compiled} == {1, 2, 3}
    assert not any("w8" in name for name in names)
    words = [name.partition(":")[2] for name in names]
    assert {variants.parse(word, "sm_90", "bfloat16", 128) for word in words} <= set(compiled)
    monkeypatch.setattr(tiles, "every_tile", lambda *arguments: [f"omnicupy:{variants.word(compiled[0])}"])
    (row,) = _run(monkeypatch, _mixed, "tiles")
    assert (row["spec"], row["suite"]) == (variants.word(compiled[0]), "tiles")


@pytest.mark.parametrize("name", ["causal-d64-s512", "W8", "full-d128-s512", "full-d256-s512"])
def test_choices_have_variants_for_short_block_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "compile_all", lambda specs: [Compiled(spec, 9, "") for spec in specs])
    workload = by_name(name)
    session: Any = SimpleNamespace(sm_count=132, **SESSION)
    first, *others = tiles.likely_tiles(session, workload)
    assert first == "omnicupy"
    found = [variants.parse(one.partition(":")[2], "sm_90", "bfloat16", workload.head_dim) for one in others]
    kinds = [(spec.br, spec.bc, spec.blocks, spec.scheduler) for spec in found]
    assert len(kinds) == len(set(kinds))
    assert {spec.blocks for spec in found} == {64: {1, 2, 3}, 80: {1, 2, 3}, 128: {1, 2}, 256: {1}}[
        workload.head_dim
    ]
    assert any(spec.scheduler for spec in found)
    assert {spec.bc for spec in found if spec.blocks == 1} <= {64, 96, 128, 160, 192, 224, 256}


def test_missing_libraries_are_named_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def library(name: str) -> None:
        loaded.append(name)
        if name == "flash_attn.cute":
            raise ImportError("No module named 'flash_attn'")
        if name == "cudnn.flex_attention":
            raise OSError("libcudnn.so.9: cannot open")

    monkeypatch.setattr(peers.torch_inputs, "library", library)
    assert peers.missing(["flex", "fa4", "cudnn-flex", "sdpa-cudnn"]) == {
        "fa4": "No module named 'flash_attn'",
        "cudnn-flex": "libcudnn.so.9: cannot open",
    }
    assert "torch" in loaded
    assert set(peers.NEEDS) <= set(peers.SYSTEMS)
