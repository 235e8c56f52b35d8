"""A few of the model families of docs/models.md; `tests/helpers/transformers_families.py` compares all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import transformers_families as families  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
NAME = oc.transformers.register()
# A family of each kind: decoders, encoders, both, experts, windows, latent attention, images beside tokens.
FEW = {
    "gpt2": families.RIGHT,
    "opt": families.RIGHT,
    "qwen3": families.RIGHT,
    "mixtral": families.RIGHT,
    "phi3": families.RIGHT,
    "roberta": families.RIGHT,
    "electra": families.RIGHT,
    "pegasus": families.RIGHT,
    "m2m_100": families.RIGHT,
    "gemma3_text": families.RIGHT,
    "llava": families.RIGHT,
    "deepseek_v3": families.RIGHT,
    "glm4_moe_lite": families.RIGHT,
    "kimi_linear": families.RIGHT,
    "longcat_flash": families.RIGHT,
    "mimo_v2_flash": families.RIGHT,
    "minicpm3": families.RIGHT,
    "mistral4": families.RIGHT,
    "gpt_oss": families.RIGHT,
    "gemma2": families.RIGHT,
    "t5": families.REFUSED,
    "xlnet": families.REFUSED,
    "mamba": families.NONE,
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _listed() -> dict[str, str]:
    """The verdict on each family in the table."""
    found = {}
    for title, text in re.findall(
        r"^## (.+?): \d+\n(.*?)(?=^## |\Z)", TABLE.read_text(), re.MULTILINE | re.DOTALL
    ):
        body = text.partition(".\n")[2]  # after the sentence that says what the section is
        found |= {family: title.lower() for family in re.findall(r"`([\w.-]+)`", body)}
    return found


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("family", FEW)
def test_families(family: str) -> None:
    names = dict(families.families())
    found = families.compared(family, names[family], NAME)
    assert found.verdict == FEW[family], found
    assert _listed()[family] == FEW[family]


def test_the_table_holds_every_family_that_the_installed_version_has() -> None:
    text, listed = TABLE.read_text(), _listed()
    assert {families.RIGHT, families.REFUSED, families.NONE} <= set(listed.values())
    assert not {families.WRONG, families.SILENT} & set(listed.values())
    assert sum(verdict == families.RIGHT for verdict in listed.values()) >= 200
    if f"transformers {transformers.__version__}." in text:
        assert set(listed) == {family for family, _ in families.families()}


def test_a_family_that_is_wrong_or_silent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict(families.families())
    original = families.forward.front.attention
    monkeypatch.setattr(
        families.forward.front, "attention", lambda q, k, v, mask, **options: original(q, k, v, **options)
    )
    assert families.compared("llama", names["llama"], NAME).verdict == families.WRONG
    assert families.compared("llama", names["llama"], "sdpa").verdict == families.SILENT


def test_the_text_of_the_table() -> None:
    found = [
        families.Found("a", "A", families.RIGHT),
        families.Found("b", "B", families.REFUSED, "BAttention asks for attention sinks (sinks: 5), which"),
        families.Found(
            "c",
            "C",
            families.REFUSED,
            "C takes no registered attention: it has attention code of its own; load",
        ),
    ]
    text = families.table(found)
    assert "## Right: 1\n" in text
    assert "| attention sinks | `b` |\n| has attention code of its own | `c` |" in text
    assert "## Wrong: 0\n\nThe results are not those of `eager`.\n\nNone.\n" in text
