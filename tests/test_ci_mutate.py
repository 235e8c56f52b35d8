""".ci/mutate.py: every fault of its list can be put into the code as it is."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / ".ci" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


MUTATE = _loaded()


@pytest.mark.parametrize("fault", MUTATE.FAULTS, ids=range(len(MUTATE.FAULTS)))
def test_a_fault_is_a_change_of_the_code_that_stands_there_once(fault: Any) -> None:
    changed = MUTATE.text_with(fault)
    before = (ROOT / "omnicupy" / fault.file).read_text()
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(before))
    assert all((ROOT / test).is_file() for test in fault.tests.split())
