"""Models of transformers as one graph, torch.compile(fullgraph=True), whose masks the graph makes."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs
import transformers_families as families  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402
from omnicupy.transformers import one_graph  # noqa: E402

NAME = oc.transformers.register()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch.compiler.reset()
    counters.clear()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def _result(model: Any, inputs: dict[str, Any]) -> Any:
    found = model(**inputs)
    values = found.logits if "logits" in found else found.last_hidden_state
    return values[inputs["attention_mask"].bool()]


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("name", ["llama", "gemma3", "bart"])
def test_a_family_is_one_graph_that_reads_each_padding(name: str) -> None:
    """A causal decoder; windows and images that see themselves; an encoder, a decoder and what joins them."""
    eager, ours = tiny.model(name, "eager"), tiny.model(name, NAME)
    ours.compile(fullgraph=True, backend="eager")
    inputs = (tiny.MODELS | tiny.OTHERS)[name].inputs("left")
    for hidden in (0, 2, 1):
        mask = inputs["attention_mask"].clone()
        mask[0, :hidden] = 0
        given = {**inputs, "attention_mask": mask}
        torch.testing.assert_close(_result(ours, given), _result(eager, given), rtol=1e-4, atol=2e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_layer_need_not_say_that_it_is_causal() -> None:
    """The decoder of BigBirdPegasus, which sdpa does not serve, does not."""
    kind, config = families.kind_and_config("bigbird_pegasus", "BigBirdPegasusForCausalLM")
    given = {"input_ids": families.inputs(families.made(kind, config, "eager"))["input_ids"]}
    wanted = families.result(families.made(kind, config, "eager"), given)
    ours = families.made(kind, config, NAME)
    ours.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(families.result(ours, given), wanted, rtol=1e-4, atol=2e-4)


def test_a_static_cache_grows_in_one_graph() -> None:
    inputs = {"input_ids": tiny.text_rows("left", 20, 20)["input_ids"]}
    options = {"max_new_tokens": 5, "do_sample": False}
    wanted = tiny.model("mistral", "eager").generate(**inputs, **options)
    ours = tiny.model("mistral", NAME)
    ours.forward = torch.compile(ours.forward, fullgraph=True, backend="eager")
    assert torch.equal(ours.generate(**inputs, **options, cache_implementation="static"), wanted)


@pytest.mark.in_turn(8, at=3)
def test_between_graphs_masks_stay_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = one_graph.make_mask

    def counted(*sizes: Any, **options: Any) -> Any:
        made.append(original(*sizes, **options))
        return made[-1]

    monkeypatch.setattr(one_graph, "make_mask", counted)
    name = oc.transformers.register("omnicupy_counted")
    inputs = tiny.MODELS["llama"].inputs("left")
    wanted = _result(tiny.model("llama", "eager"), inputs)
    for fullgraph in (False, True):
        made.clear()
        ours = tiny.model("llama", name)
        ours.compile(fullgraph=fullgraph, backend="eager")
        torch.testing.assert_close(_result(ours, inputs), wanted, rtol=1e-4, atol=2e-4)
        assert len(made) == (0 if fullgraph else 1)
        torch.compiler.reset()


def test_outside_of_a_capture_there_is_no_graph() -> None:
    assert not one_graph.is_one_graph()
    sizes = {"batch_size": 2, "q_length": 5, "kv_length": 5}
    assert isinstance(one_graph.mask_maker()(**sizes), oc.transformers.MaskTensor)
    with pytest.raises(oc.UnsupportedError, match="a mask is asked for with tilt"):
        one_graph.mask_in_graph(**sizes, tilt=3)
    assert torch.equal(
        one_graph.mask_in_graph(**sizes, allow_is_causal_skip=True),
        torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5),
    )
