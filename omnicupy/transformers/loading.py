"""What is said when a model is loaded with an attention that it cannot call.

transformers takes any registered name for any model. Models with attention code of their own then never look at it, or
look it up in a table of classes of their own and fail with a KeyError. `watch` wraps the method in which transformers
checks the name, so that such a model is refused while it is made.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from functools import cache, wraps
from typing import Any

from transformers import PreTrainedModel

from omnicupy.errors import UnsupportedError

_INTERFACE = re.compile(r"ALL_ATTENTION_FUNCTIONS(?:\.get_interface\(|\[)")
_ATTENTION = re.compile(r"^class \w*Attention\w*\(nn\.Module\):", re.MULTILINE)
_TABLE = re.compile(r"\b[A-Z0-9_]+_CLASSES\[(?:self\.)?config\._attn_implementation\]")
_OTHERS = re.compile(r"\bAuto\w+\.from_config\(|\._from_config\(|\bload_backbone\(")

_names: set[str] = set()


def names() -> frozenset[str]:
    """The names of attention that are omnicupy's."""
    return frozenset(_names)


def watch(*names: str) -> None:
    """Check models that are loaded with, or set to, one of these names of attention."""
    _names.update(names)
    check = PreTrainedModel.get_correct_attn_implementation
    if getattr(check, "checked_by_omnicupy", False):
        return

    @wraps(check)
    def checked(self: Any, requested_attention: str | None, *args: Any, **options: Any) -> str:
        found: str = check(self, requested_attention, *args, **options)
        if found in _names:
            kind: Any = type(self)
            _check_model(kind, found)
        return found

    checked.checked_by_omnicupy = True  # type: ignore[attr-defined]
    PreTrainedModel.get_correct_attn_implementation = checked


@cache  # the source of a class stays as it is; a warning is given once a class
def _check_model(kind: Any, name: str) -> None:
    """Raises UnsupportedError for a model whose attention does not come from transformers' table of functions; warns
    of one whose parts alone may take it from there.
    """
    sources = [_source(base) for base in kind.__mro__ if _is_model(base)]
    rest = (
        "load it with attn_implementation='eager', or name the parts that take one, as in "
        f"attn_implementation={{'text_config': {name!r}}}"
    )
    if any(_TABLE.search(source) for source in sources):
        raise UnsupportedError(
            f"{kind.__name__} takes no registered attention: it chooses among attention classes of its own; {rest}"
        )
    own = [source for source in sources if _ATTENTION.search(source) and not _INTERFACE.search(source)]
    if not own:
        return
    if not any(_OTHERS.search(source) for source in own):
        raise UnsupportedError(
            f"{kind.__name__} takes no registered attention: it has attention code of its own; {rest}"
        )
    warnings.warn(
        f"{kind.__name__} has attention code of its own, which attn_implementation={name!r} does not reach; it holds "
        "for the models that it is made of",
        stacklevel=2,
    )


def _is_model(kind: type) -> bool:
    return issubclass(kind, PreTrainedModel) and kind is not PreTrainedModel


@cache
def _source(kind: type) -> str:
    """The file that defines a model, nothing where there is none."""
    module = sys.modules.get(kind.__module__)
    try:
        return inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        return ""
