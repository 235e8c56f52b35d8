"""Models of transformers in training on a GPU: gradients in bfloat16 as exact as with torch's own attention."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_models as tiny  # noqa: E402 - after what it needs

import omnicupy as oc  # noqa: E402
import omnicupy.transformers  # noqa: E402

pytestmark = pytest.mark.gpu
NAME = oc.transformers.register()
MODELS = ("packed", "gemma3", "qwen2_5_vl")


def _inputs(name: str) -> dict[str, Any]:
    if name == "packed":  # told by the positions
        ids = tiny.text_rows("left", 30, 30)["input_ids"]
        rows = ([9, 1, 20], [14, 16])
        positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])
        given = {"input_ids": ids, "position_ids": positions}
    else:
        given = tiny.MODELS[name].inputs("right")
    labels = given["input_ids"].clone()
    if "attention_mask" in given:
        labels[given["attention_mask"] == 0] = -100
    return {key: x.cuda() for key, x in (given | {"labels": labels}).items()} | {"use_cache": False}


def _model(name: str, how: str) -> Any:
    return tiny.model("llama" if name == "packed" else name, how).cuda().train()


def _gradients(model: Any, inputs: dict[str, Any], dtype: Any = torch.float32) -> dict[str, Any]:
    given = {
        key: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for key, x in inputs.items()
    }
    model.to(dtype)(**given).loss.backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


def _distance(found: dict[str, Any], exact: dict[str, Any]) -> float:
    assert found.keys() == exact.keys()
    assert all(x.isfinite().all() for x in found.values())
    errors = [
        (found[key].double() - x).square().sum() / x.square().sum() for key, x in exact.items() if x.any()
    ]
    return float(torch.stack(errors).mean().sqrt())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_as_exact_as_sdpa(name: str, checkpointing: bool) -> None:
    inputs = _inputs(name)
    exact = _gradients(_model(name, "eager"), inputs, torch.float64)
    errors = {}
    for how in (NAME, "sdpa"):
        model = _model(name, how)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        errors[how] = _distance(_gradients(model, inputs, torch.bfloat16), exact)
    assert 0 < errors[NAME] <= 2 * errors["sdpa"]


@pytest.mark.parametrize("name", MODELS)
def test_autocast_is_as_exact_as_sdpa(name: str) -> None:
    inputs = _inputs(name)
    exact = _gradients(_model(name, "eager"), inputs, torch.float64)
    errors = {}
    for how in (NAME, "sdpa"):
        model = _model(name, how)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        found = {key: x.grad for key, x in model.named_parameters() if x.grad is not None}
        errors[how] = _distance(found, exact)
    assert 0 < errors[NAME] <= 2 * errors["sdpa"]


@pytest.mark.parametrize("name", MODELS)
def test_training_under_autocast_lowers_the_loss(name: str) -> None:
    inputs, model, losses = _inputs(name), _model(name, NAME), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_new_mask_every_step_compiles_twice() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    ids = tiny.text_rows("left", 48, 48)["input_ids"][:1].cuda()
    model = _model("llama", NAME).bfloat16()
    eager, exact = (_model("llama", "eager").to(dtype) for dtype in (torch.bfloat16, torch.float64))
    compiled, graphs = torch.compile(model, fullgraph=True), []
    for step in range(5):
        mask = oc.random(48, step, text=(2, 5), image=(3, 9))
        given: Any = oc.transformers.attention_mask(mask, device="cuda")
        dense = torch.where(torch.from_numpy(mask.to_dense())[None, None].cuda(), 0.0, -torch.inf)
        of_exact = _gradients(exact, _step(ids, dense), torch.float64)
        errors = {}
        for name, run, seen in (
            ("compiled", compiled, given),
            ("model", model, given),
            ("eager", eager, dense.bfloat16()),
        ):
            run.zero_grad()
            run(**_step(ids, seen)).loss.backward()
            found = {key: x.grad.float() for key, x in run.named_parameters()}
            errors[name] = _distance(
                {key.removeprefix("_orig_mod."): x for key, x in found.items()}, of_exact
            )
        exact.zero_grad()
        assert max(errors["compiled"], errors["model"]) <= 1.5 * errors["eager"]
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1:] == [graphs[1]] * 4
    torch.compiler.reset()


def _step(ids: Any, mask: Any) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": mask, "labels": ids, "use_cache": False}
