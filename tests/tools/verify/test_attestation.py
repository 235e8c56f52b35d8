"""The attestation of the repository: what it must cover, and how runs add up to a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omnicupy.choose import pick
from omnicupy.jit import nvrtc
from omnicupy.tools.verify import append_cases, attestation, attesting, on_gpu, plan, source_digest
from omnicupy.tools.verify.attestation import Record, Run
from omnicupy.tools.verify.cached_cases import CASES as CACHED_CASES
from omnicupy.tools.verify.outcome import Outcome
from omnicupy.tools.verify.plan import Part, planned

FILE = Path(__file__).parents[2] / "attestation.json"
HEADER = {"device": "H100", "compute_capability": "90", "driver": "1", "commit": "abc"}
NAIVE, SM80, SM90 = "attention_naive.cu", "attention_fwd_sm80.cu", "attention_fwd_sm90.cu"
FOURTHS = [
    [case for case in map("case{}".format, range(40)) if case in Part(number, 4)][:2]
    for number in range(1, 5)
]
IDS = [case for part in FOURTHS for case in part]


def _unverified() -> dict[str, str]:
    """Sources that are served without a current attestation -> what is wrong with theirs."""
    unserved = attestation.unserved(FILE)
    return {name: problem for name in source_digest.selected() if (problem := unserved.get(name))}


def test_every_kernel_that_is_served_was_verified_on_a_gpu() -> None:
    assert not _unverified(), (
        "run `python cli.py verify --attest tests/attestation.json` on a GPU, or take the kernel out of pick.SERVED"
    )


def test_an_unverified_kernel_that_is_served_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pick, "SERVED", frozenset({"sm80"}))
    monkeypatch.setitem(globals(), "FILE", tmp_path / "absent.json")
    assert SM80 in _unverified()
    assert SM90 not in _unverified()


def test_gradients_are_served_once_enough_cases_of_this_digest_passed(tmp_path: Path) -> None:
    name, path = "attention_bwd_sm80.cu", tmp_path / "attestation.json"
    ids = sorted(planned(name))
    entry = {"digest": source_digest.digest(name), "kernels": [], "runs": []}

    def said(ratios: list[float], of: str = name, **other: Any) -> str:
        cases = {case: {"12.9": ratio} for case, ratio in zip(ids, ratios, strict=False)}
        content = {"schema": attestation.SCHEMA, "sources": {of: {**entry, "cases": cases, **other}}}
        path.write_text(json.dumps(content))
        return attestation.unserved(path).get(of, "")

    assert said([0.5] * attestation.BEGUN) == ""
    assert "are missing" in said([0.5] * (attestation.BEGUN - 1))
    assert said([0.5] * attestation.BEGUN + [1.1]) != ""
    assert "digest is another one" in said([0.5] * attestation.BEGUN, digest="0")
    assert said([0.5] * attestation.BEGUN, of=SM80) != ""  # never of the forward pass
    assert "are missing" in attestation.stale(path)[SM80] or "digest" in attestation.stale(path)[SM80]


@pytest.mark.in_turn(3)
def test_files_of_runs_beside_each_other_are_joined(tmp_path: Path) -> None:
    made = source_digest.digest(SM80)

    def file(name: str, cases: dict[str, Any], digest: str = made) -> Path:
        run = {"nvrtc": "13.0", "part": name, "cases": len(cases), **HEADER}
        entry = {"digest": digest, "kernels": [name], "runs": [run], "cases": cases}
        (tmp_path / name).write_text(json.dumps({"schema": attestation.SCHEMA, "sources": {SM80: entry}}))
        return tmp_path / name

    target = file("all", {"a": {"13.0": 0.5}})
    others = [file("one", {"a": {"13.0": 0.6, "12.9": 0.1}}), file("two", {"b": {"13.0": 0.2}})]
    attestation.join(target, [*others, others[0], file("old", {"c": {"13.0": 0.1}}, digest="0")])
    found = json.loads(target.read_text())["sources"][SM80]
    assert found["cases"] == {"a": {"13.0": 0.6, "12.9": 0.1}, "b": {"13.0": 0.2}}
    assert found["kernels"] == ["all", "one", "two"]
    assert [run["part"] for run in found["runs"]] == ["all", "one", "two"]
    (tmp_path / "broken").write_text("{}")
    with pytest.raises(ValueError, match="broken is no attestation"):
        attestation.join(target, [tmp_path / "broken"])
    attestation.join(tmp_path / "new", others)
    assert set(json.loads((tmp_path / "new").read_text())["sources"][SM80]["cases"]) == {"a", "b"}


@pytest.fixture
def small_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cases are planned for every source, and two versions of NVRTC."""
    monkeypatch.setattr(attestation, "planned", lambda name: set(IDS))
    monkeypatch.setattr(nvrtc, "ATTESTED", ("12.9", "13.0"))


def _outcome(case: str, source: str = SM80, kernel: str = "sm80 stages 1", **more: Any) -> Outcome:
    of_case = type("Named", (), {"id": case})()
    return Outcome(of_case, kernel, (source,), more.pop("ratio", 0.5), **more)


def _run(path: Path, ids: Any = IDS, version: str = "13.0", part: str = "1/1", **more: Any) -> None:
    """One run of the source SM80 that passes the cases `ids`."""
    run = Run(version, {**HEADER, "commit": more.pop("commit", "abc")}, Part.parse(part))
    record = Record(path, run, more.pop("sources", (SM80,)), resume=more.pop("resume", False))
    record.add(_outcome(case, **more) for case in ids)
    record.write()


def _entry(path: Path, source: str = SM80) -> Any:
    return json.loads(path.read_text())["sources"][source]


def _said(path: Path) -> str:
    return attestation.stale(path).get(SM80, "")


def test_an_entry_holds_the_worst_ratio_of_each_case_and_the_run(tmp_path: Path, small_plan: None) -> None:
    path = tmp_path / "a" / "attestation.json"
    record = Record(path, Run("13.0", HEADER), (SM80, NAIVE))
    record.add(
        [_outcome("case0", ratio=0.25), _outcome("case0", kernel="sm80 stages 2"), _outcome("case0", NAIVE)]
    )
    record.write()
    assert _entry(path) == {
        "digest": source_digest.digest(SM80),
        "kernels": ["sm80 stages 1", "sm80 stages 2"],
        "runs": [{"nvrtc": "13.0", "part": "1/1", "cases": 1, **HEADER}],
        "cases": {"case0": {"13.0": 0.5}},
    }
    assert '"case0": {"13.0": 0.5}' in path.read_text()
    assert list(_entry(path, NAIVE)["cases"]) == ["case0"]


def test_a_kernel_of_several_sources_counts_for_each_that_is_attested(
    tmp_path: Path, small_plan: None
) -> None:
    path = tmp_path / "attestation.json"
    record = Record(path, Run("13.0", HEADER), (SM80,))
    record.add([replace(_outcome("case0"), sources=(NAIVE, SM80))])
    record.write()
    assert set(json.loads(path.read_text())["sources"]) == {SM80}


@pytest.mark.in_turn(3)
def test_parts_add_up(tmp_path: Path, small_plan: None) -> None:
    path = tmp_path / "attestation.json"
    _run(path, version="12.9")
    assert _said(path) == "NVRTC 13.0: 8 of 8 cases are missing"
    _run(path, FOURTHS[0], part="1/4", commit="first")
    assert _said(path) == "NVRTC 13.0: parts 2, 3 and 4 of 4 are missing"
    _run(path, FOURTHS[3], part="4/4", commit="second")
    assert _said(path) == "NVRTC 13.0: parts 2 and 3 of 4 are missing"
    _run(path, FOURTHS[2][:1], part="3/4")
    assert _said(path) == "NVRTC 13.0: all of part 2 of 4 and 1 of 2 cases of part 3 are missing"
    _run(path, FOURTHS[1], part="2/4")
    _run(path, FOURTHS[2][1:], part="3/4", resume=True)
    assert SM80 not in attestation.stale(path)
    runs = {(one["nvrtc"], one["part"]): one for one in _entry(path)["runs"]}
    assert len(runs) == 5
    assert runs["13.0", "1/4"]["commit"] == "first"
    assert runs["13.0", "3/4"]["cases"] == 2


@pytest.mark.in_turn(3)
def test_a_run_begins_anew_unless_it_resumes(tmp_path: Path, small_plan: None) -> None:
    path = tmp_path / "attestation.json"
    _run(path, version="12.9")
    _run(path)
    assert _said(path) == ""
    record = Record(path, Run("13.0", HEADER), (SM80,), resume=True)
    assert record.holds(SM80) == set(IDS)
    _run(path, IDS[:3], resume=True)
    assert _said(path) == ""
    _run(path, IDS[:3])
    assert _said(path) == "NVRTC 13.0: 5 of 8 cases are missing"
    assert [one["cases"] for one in _entry(path)["runs"]] == [8, 3]


def test_another_digest_drops_what_was_there_of_that_source_alone(
    tmp_path: Path, small_plan: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "attestation.json"
    _run(path, version="12.9")
    _run(path, source=NAIVE, sources=(NAIVE,))
    before = _entry(path, NAIVE)
    monkeypatch.setattr(attestation, "digest", lambda name: "another")
    assert _said(path).startswith("the digest is another one: ")
    _run(path, IDS[:2], resume=True)
    assert _entry(path)["digest"] == "another"
    assert _entry(path)["cases"] == {case: {"13.0": 0.5} for case in IDS[:2]}
    assert _entry(path, NAIVE) == before


@pytest.mark.parametrize("changes", [{"problem": "NaN"}, {"skipped": "skipped: memory"}])
def test_a_case_that_fails_on_one_kernel_is_not_held(
    tmp_path: Path, small_plan: None, changes: dict[str, str]
) -> None:
    path = tmp_path / "attestation.json"
    _run(path, version="12.9")
    _run(path)
    record = Record(path, Run("13.0", HEADER), (SM80,), resume=True)
    record.add([_outcome(IDS[3], ratio=0.1), _outcome(IDS[3], kernel="sm80 stages 2", **changes)])
    record.write()
    assert _said(path) == "NVRTC 13.0: 1 of 8 cases are missing"
    assert _entry(path)["cases"][IDS[3]] == {"12.9": 0.5}


def test_cases_that_are_no_longer_planned_are_dropped(tmp_path: Path, small_plan: None) -> None:
    path = tmp_path / "attestation.json"
    _run(path, version="12.9")
    _run(path)
    content = json.loads(path.read_text())
    content["sources"][SM80]["cases"]["gone"] = {"13.0": 0.5}
    path.write_text(json.dumps(content))
    assert _said(path) == "1 of its cases are unknown"
    _run(path, (), resume=True)
    assert _said(path) == ""


def test_stale_says_why(tmp_path: Path, small_plan: None) -> None:
    path = tmp_path / "attestation.json"
    assert _said(path) == f"{path} is missing or unreadable"
    path.write_text("{")
    assert _said(path) == f"{path} is missing or unreadable"
    path.write_text('{"rows": []}')
    assert _said(path) == f"{path} is no attestation"
    with pytest.raises(ValueError, match="is no attestation; name another file, or remove this one"):
        _run(path)
    path.write_text('{"schema": 1, "kernels": {}}')
    assert _said(path) == f"{path} has schema 1, which is not read any more (2 is): run verify --attest anew"
    _run(path, version="12.9")
    _run(path)
    assert attestation.stale(path)[SM90] == "no entry"
    content = json.loads(path.read_text())
    content["sources"][SM80]["cases"][IDS[5]]["12.9"] = 1.5
    path.write_text(json.dumps(content))
    assert _said(path) == "a case is over its budget"


def test_parts_are_told_by_their_numbers() -> None:
    assert str(Part.parse("2/4")) == "2/4"
    for text in ("0/4", "5/4", "2", "2/0", "a/b", "-1/2", "1/10000000"):
        with pytest.raises(ValueError, match="--part: expected i/n"):
            Part.parse(text)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_parts_share_out_the_cases_of_every_source(count: int) -> None:
    for name in source_digest.SOURCES:
        ids = planned(name)
        parts = [{case for case in ids if case in Part(number, count)} for number in range(1, count + 1)]
        assert sum(map(len, parts)) == len(ids)
        assert set().union(*parts) == ids
        assert max(map(len, parts)) <= 1.2 * min(map(len, parts)) + 6


@pytest.mark.parametrize("count", [2, 5, 14])
def test_parts_share_out_the_cases_of_caches_evenly(count: int) -> None:
    for group in {case.group for case in plan.ON_CACHES}:
        ids = [case.id for case in plan.ON_CACHES if case.group == group]
        sizes = [sum(case in Part(number, count) for case in ids) for number in range(1, count + 1)]
        assert sum(sizes) == len(ids)
        assert max(sizes) - min(sizes) <= 1


def test_cases_of_caches_are_planned_for_what_they_run_and_come_first() -> None:
    first = plan.every_case()[: len(plan.ON_CACHES)]
    assert first == plan.ON_CACHES
    design = (Path(__file__).parents[3] / "docs" / "design.md").read_text()
    assert f"{len(plan.ON_CACHES)} cases are of caches" in design
    target = on_gpu.Target("sm_90", 132)
    of_caches = {*plan.ON_CACHES, *CACHED_CASES}
    ids = {case.id for case in of_caches}
    ran: dict[str, set[str]] = {}
    for case in of_caches:
        for name in {name for one in target.variants(case, case.masks()) for name in one.sources}:
            ran.setdefault(name, set()).add(case.id)
    assert ran == {name: planned(name) & ids for name in source_digest.SOURCES if "_bwd_" not in name}
    assert ran["attention_plan_cached.cu"] == planned("attention_plan_cached.cu")
    assert planned("cache_append.cu") | planned("cache_append_fp8.cu") == {
        case.id for case in append_cases.CASES
    }


def test_a_run_takes_cases_of_caches_first_that_a_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "attestation.json"
    lacking = {case.id for case in plan.ON_CACHES[::9]}
    record = Record(path, Run("13.0", HEADER), (SM90,))
    record.add(_outcome(case, SM90) for case in planned(SM90) - lacking)
    record.write()
    again = Record(path, Run("13.0", HEADER), (SM90,), resume=True)
    found = attesting.left(plan.every_case(), again, (SM90,))
    assert [case.id for case in found] == [
        case.id for case in plan.ON_CACHES if case.id in lacking & planned(SM90)
    ]
