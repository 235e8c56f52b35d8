"""What the digests of the kernels that run beside attention on caches cover: the planner and append; and whose digest
holds what is compiled for pages.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from omnicupy.jit import source
from omnicupy.jit.fp8_spec import Fp8Spec
from omnicupy.jit.paged_spec import PagedSpec
from omnicupy.tools.verify import source_digest
from omnicupy.tools.verify.source_digest import SOURCES

FORWARD_SOURCES = (
    "attention_naive.cu",
    "attention_fwd_sm80.cu",
    "attention_fwd_sm90.cu",
    "attention_fwd_few_rows.cu",
    "attention_fwd_paged.cu",
    "attention_fwd_packed.cu",
    "attention_fwd_key_turns.cu",
)
PLANNER, APPEND, APPEND_FP8 = BESIDE = ("attention_plan_cached.cu", "cache_append.cu", "cache_append_fp8.cu")


@functools.cache
def digests() -> dict[str, str]:
    """Of the code as it is: asked for before any is changed."""
    return {name: source_digest.digest(name) for name in SOURCES}


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("gpu.append", {APPEND, APPEND_FP8}),
        ("gpu.pages", {*BESIDE, *FORWARD_SOURCES}),
        ("schedule.cached_lists", {PLANNER, *FORWARD_SOURCES}),
        ("gpu.cached", {PLANNER, *FORWARD_SOURCES}),
    ],
)
def test_kernels_beside_attention_count_what_they_use(
    module: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests()
    changed = tmp_path / "changed.py"
    changed.write_text(source_digest.modules()[module].read_text() + "\nmore = 1\n")
    monkeypatch.setitem(source_digest.modules(), module, changed)
    assert {name for name in SOURCES if source_digest.digest(name) != before[name]} == expected


@pytest.mark.parametrize("name", BESIDE)
def test_the_digest_of_a_kernel_beside_attention_holds_its_text_and_variants(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {one: source_digest.digest(one) for one in BESIDE}
    load = source.load

    def changed(one: str) -> source.Source:
        found = load(one)
        return replace(found, text=found.text + b"int more;") if one == name else found

    monkeypatch.setattr(source_digest.source, "load", changed)
    assert {one for one in BESIDE if source_digest.digest(one) != before[one]} == {name}
    monkeypatch.undo()
    kind = type(SOURCES[name].launch.ahead[0])
    monkeypatch.setattr(kind, "defines", lambda self: {"OMNI_THREADS": 1})
    assert source_digest.digest(name) != before[name]


def test_what_another_source_compiles_for_pages_is_in_that_one_s_digest() -> None:
    for name, specs in source_digest.rows().items():
        variants = [variant for spec in specs for variant in source_digest._variants(spec)]
        in_pages = [one for one in variants if isinstance(one, PagedSpec) and not isinstance(one, Fp8Spec)]
        assert {one.source for one in in_pages} <= {name}
