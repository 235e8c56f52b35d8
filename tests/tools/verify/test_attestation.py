"""The attestation of the repository, and the digests that it stands on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omnicupy.choose import pick, table
from omnicupy.jit.spec import AttnSpec
from omnicupy.tools.verify import attestation
from omnicupy.tools.verify.cases import BASE
from omnicupy.tools.verify.outcome import Outcome

FILE = Path(__file__).parents[2] / "attestation.json"
HEADER = {"device": "H100", "compute_capability": "90", "driver": "1", "commit": "abc"}
SM80 = "attention_fwd_sm80.cu"


def _unverified() -> dict[str, str]:
    """Sources that `choose.pick` serves without a current attestation -> what is wrong with theirs."""
    stale = attestation.stale(FILE)
    return {name: problem for name in attestation.selected() if (problem := stale.get(name))}


def test_every_kernel_that_tune_serves_was_verified_on_a_gpu() -> None:
    assert not _unverified(), (
        "run `python cli.py verify --attest tests/attestation.json` on a GPU, or take the kernel out of pick.SERVED"
    )


def test_an_unverified_kernel_that_is_served_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pick, "SERVED", frozenset({"sm80"}))
    monkeypatch.setitem(globals(), "FILE", tmp_path / "absent.json")
    assert set(_unverified()) == {SM80}


def test_sources_are_those_of_the_specs() -> None:
    shapes = {
        "naive": {"arch": "sm_80", "br": 64, "warps": 4},
        "sm80": {"arch": "sm_80", "br": 64, "warps": 4},
        "sm90": {"arch": "sm_90a", "br": 64, "warps": 8},
    }
    for name, kernel in attestation.sources().items():
        spec = AttnSpec(kernel=kernel, dtype="float16", head_dim=64, bc=64, **shapes[kernel])  # type: ignore[arg-type]
        assert spec.source == name


def test_comments_and_white_space_do_not_count_in_cuda() -> None:
    plain = attestation.stripped(b'int a = 1;\nasm("x // y" : : "r"(a));')
    assert attestation.stripped(b'// why\nint  a=1; /* two\nlines */ asm("x // y"::"r"(a)); // end') == plain
    assert attestation.stripped(b'int a = 1;\nasm("x //  y" : : "r"(a));') != plain
    assert attestation.stripped(b"int a = 2;") != attestation.stripped(b"int a = 1;")


def test_docstrings_and_comments_do_not_count_in_python() -> None:
    plain = attestation.tree("class A:\n    def f(self):\n        return 1\n")
    documented = (
        '"""M."""\nclass A:\n    """C."""\n    def f(self):  # why\n        """F."""\n        return 1\n'
    )
    assert attestation.tree(documented) == plain
    assert attestation.tree("class A:\n    def f(self):\n        return 2\n") != plain
    assert attestation.tree('x = """M."""') != attestation.tree('x = ""')


def test_fields_have_names_types_and_offsets() -> None:
    one = np.dtype([("a", "<u8"), ("b", "<i4", (3,))], align=True)
    other = np.dtype([("a", "<u8"), ("b", "<i4", (2,)), ("c", "<i4")], align=True)
    assert attestation.fields_of(one) != attestation.fields_of(other)
    assert "('b', " in attestation.fields_of(one)
    assert attestation.fields_of(one).endswith(str(one.itemsize))


def test_digest_follows_the_rows_of_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: attestation.digest(name) for name in attestation.sources()}
    assert len(set(before.values())) == len(before)
    monkeypatch.setattr(table, "TABLE", table.TABLE[:-1])
    assert attestation.digest(SM80) != before[SM80]
    assert attestation.digest("attention_naive.cu") == before["attention_naive.cu"]


def _outcomes(ratio: float = 0.5, **changes: str) -> list[Outcome]:
    case = replace(BASE, group="heads")
    return [
        Outcome(case, "naive", "attention_naive.cu", ratio),
        Outcome(case, "sm80 stages 1", SM80, ratio / 2),
        Outcome(case, "sm80 stages 2", SM80, ratio, **changes),
    ]


def test_entries_hold_the_worst_ratio_of_each_case(tmp_path: Path) -> None:
    path = tmp_path / "a" / "attestation.json"
    attestation.write(path, HEADER, _outcomes(), "13.0")
    content = json.loads(path.read_text())
    assert content["nvrtc"] == {"13.0": {"attention_naive.cu": 1, SM80: 1}}
    assert content["kernels"][SM80] == {
        "digest": attestation.digest(SM80),
        "kernels": ["sm80 stages 1", "sm80 stages 2"],
        "cases": {BASE.id: 0.5},
    }


def test_each_source_is_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[str] = []
    monkeypatch.setattr(attestation, "digest", lambda name: digested.append(name) or "digest")
    attestation.entries([*_outcomes(), *_outcomes(0.6)])
    assert len(digested) == len(set(digested)) > 0


def test_a_second_nvrtc_is_added_to_the_same_sources(tmp_path: Path) -> None:
    path = tmp_path / "attestation.json"
    attestation.write(path, HEADER, _outcomes(0.5), "13.0")
    attestation.write(path, HEADER, _outcomes(0.25), "12.9")
    content = json.loads(path.read_text())
    assert set(content["nvrtc"]) == {"12.9", "13.0"}
    assert content["kernels"][SM80]["cases"] == {BASE.id: 0.5}
    old = json.loads(path.read_text())
    old["kernels"][SM80]["digest"] = "another"
    path.write_text(json.dumps(old))
    attestation.write(path, HEADER, _outcomes(0.25), "12.9")
    assert set(json.loads(path.read_text())["nvrtc"]) == {"12.9"}


@pytest.mark.parametrize("changes", [{"problem": "NaN"}, {"skipped": "skipped: memory"}])
def test_nothing_is_written_when_a_case_failed_or_was_skipped(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    path = tmp_path / "attestation.json"
    with pytest.raises(ValueError, match="attest: every case must have passed, but sm80 stages 2: d64"):
        attestation.write(path, HEADER, _outcomes(**changes), "13.0")
    assert not path.exists()


def test_stale_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "attestation.json"
    assert attestation.stale(path)[SM80] == f"{path} is missing or unreadable"
    path.write_text("{")
    assert attestation.stale(path)[SM80] == f"{path} is missing or unreadable"
    attestation.write(path, HEADER, _outcomes(), "13.0")
    assert attestation.stale(path)[SM80].startswith("the cases are other ones: ")
    assert attestation.stale(path)["attention_fwd_sm90.cu"] == "no entry"
    monkeypatch.setattr(attestation, "planned_ids", lambda kernel: {BASE.id})
    assert set(attestation.stale(path)) == {"attention_fwd_sm90.cu"}
    content = json.loads(path.read_text())
    content["kernels"][SM80]["cases"][BASE.id] = 1.5
    path.write_text(json.dumps(content))
    assert attestation.stale(path)[SM80] == "a case is over its budget"
    content["kernels"][SM80]["digest"] = "0"
    path.write_text(json.dumps(content))
    assert attestation.stale(path)[SM80].startswith("the digest is another one")
