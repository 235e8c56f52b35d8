"""Which kernels calls may get before their sources are attested whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omnicupy.jit import nvrtc
from omnicupy.tools.verify import attestation, plan, source_digest
from omnicupy.tools.verify.plan import planned

SM80 = "attention_fwd_sm80.cu"


@pytest.mark.in_turn(4)
def test_a_forward_pass_is_served_before_the_cases_that_need_a_gpu_of_their_own(tmp_path: Path) -> None:
    path, ids = tmp_path / "attestation.json", planned(SM80)
    assert len(ids & plan.BIG_IDS) == 2
    entry = {"digest": source_digest.digest(SM80), "kernels": [], "runs": []}

    def unserved(without: set[str], ratio: float = 0.5, **other: Any) -> str:
        cases = {case: dict.fromkeys(nvrtc.ATTESTED, ratio) for case in ids - without}
        content = {"schema": attestation.SCHEMA, "sources": {SM80: {**entry, "cases": cases, **other}}}
        path.write_text(json.dumps(content))
        return attestation.unserved(path).get(SM80, "")

    assert unserved(set()) == ""
    assert unserved(set(plan.BIG_IDS)) == ""
    assert "2 of" in attestation.stale(path)[SM80]
    assert "3 of" in unserved({min(ids - plan.BIG_IDS), *plan.BIG_IDS})
    assert "over its budget" in unserved(set(), ratio=1.1)
    assert unserved(set(plan.BIG_IDS), ratio=1.1) != ""
    assert "digest" in unserved(set(plan.BIG_IDS), digest="0")
