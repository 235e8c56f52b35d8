"""Compares every model family of the installed transformers, made tiny, with `eager`, and writes a table of them.

    python tests/helpers/transformers_families.py            # every family; minutes
    python tests/helpers/transformers_families.py llama t5   # these alone
    python tests/helpers/transformers_families.py --write    # every family, into docs/models.md

A family is a configuration class whose model takes token ids. It is made with two layers of random weights, once with
`eager` and once with omnicupy, and gets two rows of which one is padded; the results are compared where no row is
padding, and an advice in an error is followed.
"""

from __future__ import annotations

import copy
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_families import TOKENS, tiny
from transformers.models.auto import configuration_auto, modeling_auto

import omnicupy as oc
import omnicupy.transformers
from omnicupy.transformers import forward

RIGHT, REFUSED, SILENT, WRONG = "right", "refused", "never calls", "wrong"
NONE, NOT_MADE = "no attention", "not made"
TABLES = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM")
MOST_PARAMETERS = 10_000_000
# Of rows that see nothing eager makes other values than sdpa. These models use them: a decoder that sees the prompt's
# padding, and text encoders whose result is that of a padded token.
UNPADDED = {"diffusion_gemma", "aimv2", "clip", "clipseg", "metaclip_2"}


@dataclass(frozen=True)
class Found:
    """What became of a family: one of the verdicts, and why."""

    family: str
    model: str
    verdict: str
    why: str = ""


def families() -> Iterator[tuple[str, str]]:
    """(model type, class) of every model that has a configuration and takes token ids.

    Those that libraries are missing for, which are not installed, are left out.
    """
    tables = [getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in TABLES]
    for family in configuration_auto.CONFIG_MAPPING_NAMES:
        for table in (*tables, modeling_auto.MODEL_MAPPING_NAMES):
            name = table.get(family)
            if isinstance(name, (list, tuple)):
                name = name[0]
            kind = None if name is None else getattr(transformers, name, None)
            if kind is not None and type(kind).__name__ != "DummyObject":
                if "input_ids" in inspect.signature(kind.forward).parameters:
                    yield family, name
                break


def made(kind: Any, config: Any, attention: str) -> Any:
    """The model with random weights, the same ones every time."""
    torch.manual_seed(0)
    model = kind._from_config(copy.deepcopy(config), attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.is_floating_point():
            scale = 0.05 if "embed" in name else 0.3
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model


def inputs(model: Any) -> dict[str, Any]:
    """Token ids of two rows, the second padded on the left, for the parameters that the model has."""
    names = inspect.signature(model.forward).parameters
    ids = torch.randint(5, TOKENS - 10, (2, 20), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    if model.config.model_type not in UNPADDED:
        mask[1, :6] = 0
    given = {"input_ids": torch.where(mask.bool(), ids, 0), "attention_mask": mask}
    if "decoder_input_ids" in names:
        given["decoder_input_ids"] = ids.flip(1)[:, :12]
    return {name: value for name, value in given.items() if name in names}


def result(model: Any, given: dict[str, Any]) -> Any:
    """What a model returns, at the tokens that are no padding."""
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    found = model(**given, **options)
    for name in ("logits", "last_hidden_state", "prediction_logits", "logits_per_text"):
        if getattr(found, name, None) is not None:
            values = getattr(found, name)
            keep = given.get("attention_mask")
            shown = values.shape[:2] == given["input_ids"].shape and keep is not None
            return values[keep.bool()] if shown else values
    raise ValueError("returns neither logits nor hidden states")


def compared(family: str, name: str, attention: str) -> Found:
    """The verdict on a family."""
    try:
        kind, config = kind_and_config(family, name)
        eager = made(kind, config, "eager")
        given, wanted = first_that_runs(eager)
    except Exception as error:  # whatever a configuration of made up sizes meets
        return Found(family, name, NOT_MADE, f"{type(error).__name__}: {error}")
    calls = 0
    whole = forward.front.attention

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return whole(*arguments, **options)

    forward.front.attention = counted
    try:
        found = result(made(kind, config, attention), given)
    except oc.UnsupportedError as error:
        return Found(family, name, *_advised(kind, config, given, str(error)))
    except Exception as error:  # whatever a model makes of another attention
        return Found(family, name, WRONG, f"{type(error).__name__}: {error}")
    finally:
        forward.front.attention = whole
    if not calls:
        return Found(family, name, SILENT if _has_attention(eager) else NONE)
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    good = worst <= 1e-4 and bool(found.isfinite().all())
    return Found(family, name, RIGHT if good else WRONG, "" if good else f"differs by {worst:.1e}")


def kind_and_config(family: str, name: str) -> tuple[Any, Any]:
    """The class of a family's model and its tiny configuration. Raises ValueError where it is still large."""
    kind = getattr(transformers, name)
    config = tiny(getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[family]))
    if not isinstance(config, kind.config_class):
        config = config.get_text_config(decoder=True)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind._from_config(copy.deepcopy(config)).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size} parameters")
    return kind, config


def first_that_runs(model: Any) -> tuple[dict[str, Any], Any]:
    """Inputs and the result: of tokens alone, or with images where a model does not do without."""
    given = inputs(model)
    try:
        return given, result(model, given)
    except Exception:
        if "pixel_values" not in inspect.signature(model.forward).parameters:
            raise
        given["pixel_values"] = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
        return given, result(model, given)


def _has_attention(model: Any) -> bool:
    return any("Attention" in type(module).__name__ for module in model.modules())


def _advised(kind: Any, config: Any, given: dict[str, Any], error: str) -> tuple[str, str]:
    """Refused, where the attention that the error advises runs."""
    advice = re.search(r"attn_implementation='(\w+)'", error)
    if advice is None:
        return WRONG, f"no advice in: {error}"
    try:
        result(made(kind, config, advice[1]), given)
    except Exception as failed:  # whatever the advice leads to
        return WRONG, f"advised {advice[1]}, which fails: {failed}"
    return REFUSED, error


HEAD = """# Models of transformers

Made by `python tests/helpers/transformers_families.py --write` with transformers {version}. Each family was made with
two layers or so of random weights and compared with `eager` in float32 on two rows of tokens, one of them padded; what
an error advises was tried. Families without token ids, such as vision towers, are not in the table.
"""
SECTIONS = {
    RIGHT: "The results are those of `eager`, and omnicupy computes the attention.",
    REFUSED: "An error names what is missing, when the model is loaded or at its first forward pass.",
    SILENT: "Loaded without a word, though omnicupy is never called.",
    WRONG: "The results are not those of `eager`.",
    NONE: "Models without softmax attention; nothing of omnicupy runs.",
    NOT_MADE: "The command does not know how to make them tiny; they were not compared.",
}
REASONS = (
    "attention to compressed keys",
    "attention sinks",
    "a position bias",
    "sparse attention",
)


def table(found: list[Found]) -> str:
    """docs/models.md."""
    parts = [HEAD.format(version=transformers.__version__)]
    for verdict, text in SECTIONS.items():
        ones = [one for one in found if one.verdict == verdict]
        title = verdict[0].upper() + verdict[1:]
        if verdict != REFUSED:
            parts.append(f"## {title}: {len(ones)}\n\n{text}\n\n{_listed(ones)}\n")
            continue
        reasons: dict[str, list[Found]] = {}
        for one in ones:
            reasons.setdefault(_reason(one.why), []).append(one)
        rows = "\n".join(f"| {reason} | {_listed(reasons[reason])} |" for reason in sorted(reasons))
        parts.append(f"## {title}: {len(ones)}\n\n{text}\n\n| what | families |\n| --- | --- |\n{rows}\n")
    return "\n".join(parts)


def _listed(found: list[Found]) -> str:
    return ", ".join(f"`{one.family}`" for one in found) or "None."


def _reason(error: str) -> str:
    """What an error names, without the sizes of a call."""
    for reason in REASONS:
        if reason in error:
            return reason
    if "takes no registered attention" in error:
        return error.partition("takes no registered attention: it ")[2].partition(";")[0]
    return error.partition(";")[0].removeprefix("attention_mask: ")


def main(arguments: list[str]) -> int:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    attention = oc.transformers.register()
    chosen = [one for one in arguments if not one.startswith("-")]
    found = []
    with torch.no_grad():
        for family, name in families():
            if not chosen or family in chosen:
                found.append(compared(family, name, attention))
                one = found[-1]
                print(f"{one.family:32} {one.model:44} {one.verdict:12} {one.why[:150]!r}", flush=True)
    if "--write" in arguments:
        (Path(__file__).parents[2] / "docs" / "models.md").write_text(table(found))
    return int(any(one.verdict == WRONG for one in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
