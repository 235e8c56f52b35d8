"""What docs/serving.md shows works: its code runs, on a model with random weights that is read from a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
from batched import generated, give_room, prompts  # noqa: E402

TEXT = (Path(__file__).parents[2] / "docs/serving.md").read_text()


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_room(monkeypatch)
    eager = tiny.model("llama", "eager")
    eager.save_pretrained(tmp_path)
    names: dict[str, Any] = {"path": str(tmp_path), "prompts": prompts()[1:4]}
    batch, _, server = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    wanted = [generated(eager, prompt, max_new_tokens=6) for prompt in names["prompts"]]
    for block in (batch, server):
        code = block.replace("max_new_tokens=200", "max_new_tokens=6")
        assert code != block
        with torch.no_grad():
            exec(compile(code, "serving.md", "exec"), names)
    assert sorted(names["tokens"]) == sorted(wanted)
    assert names["result"].request_id == names["request"]
    assert names["result"].generated_tokens == wanted[0]


def test_steps_are_captured_where_it_is_asked_for() -> None:
    graphs = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1]
    import omnicupy.transformers

    names: dict[str, Any] = {"omnicupy": omnicupy}
    names["model"] = tiny.model("llama", omnicupy.transformers.register())
    exec(compile(graphs, "serving.md", "exec"), names)
    assert any(names["config"].use_cuda_graph)
    assert names["model"].config._attn_implementation.endswith("omnicupy_graphs_flash_varlen")
