"""Lists the names that the installed transformers can pass to an attention function; a script without arguments.

Read from its source: what the calls of attention functions name, what models and layers add to the `**kwargs` that end
there (a name ends at the first forward that has a parameter of that name), and what their callers may pass, by the
TypedDicts of the keyword arguments. Prints each name with one place that passes it.
"""

from __future__ import annotations

import ast
import gc
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

ROOT = Path(transformers.__file__).parent
# What an attention function takes by its place or by a parameter of its own.
OWN = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal"}
INTERFACES = {"attention_interface", "attention_function", "attn_interface"}  # how modelling files name it
KEYWORDS = ("TransformersKwargs", "FlashAttentionKwargs")  # what callers of a model may pass, as TypedDicts


@dataclass
class Method:
    """A forward method with **kwargs. found: names that reach it by them, each with one place."""

    owner: str
    node: ast.FunctionDef
    parameters: set[str]
    found: dict[str, str] = field(default_factory=dict)


def names() -> dict[str, str]:
    """Every name that can reach an attention function, with one place that passes it."""
    reached: dict[str, str] = {}
    typed = _typed()
    gc.disable()  # syntax trees are millions of objects, none of them in a circle
    try:
        for path in sorted(ROOT.glob("models/**/modeling_*.py")):
            reached = _of_file(path, typed) | reached
    finally:
        gc.enable()
    return {name: place for name, place in sorted(reached.items()) if name not in OWN}


def mask_options() -> dict[str, str]:
    """Every name that transformers passes to a mask function, with the file that does."""
    found = {}
    for path in (ROOT / "masking_utils.py", *ROOT.glob("models/**/modeling_*.py")):
        text = path.read_text()
        if "mask_interface(" in text:
            for call in _calls(ast.parse(text)):
                if isinstance(call.func, ast.Name) and call.func.id == "mask_interface":
                    found |= {keyword.arg: path.stem for keyword in call.keywords if keyword.arg}
    return found


def _typed() -> dict[str, str]:
    """The names of the TypedDicts of keyword arguments."""
    found = {}
    for path in (ROOT / "utils/generic.py", ROOT / "modeling_flash_attention_utils.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name in KEYWORDS:
                for line in node.body:
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                        found[line.target.id] = node.name
    return found


def _of_file(path: Path, typed: dict[str, str]) -> dict[str, str]:
    """The names that reach an attention function in one modelling file."""
    text = path.read_text()
    if not any(f"{name}(" in text for name in INTERFACES):
        return {}
    tree = ast.parse(text)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    open_methods = {
        name: Method(name, node, _parameters(node))
        for name, owner in classes.items()
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and node.name == "forward" and node.args.kwarg
    }
    for name in classes:  # a class without a forward of its own has that of a base
        for base in _bases(name, classes):
            if name not in open_methods and base in open_methods and not _forward(classes[name]):
                open_methods[name] = open_methods[base]
    for method in open_methods.values():
        method.found.update({name: place for name, place in typed.items() if name not in method.parameters})
    reached: dict[str, str] = {}
    calls = {
        name: list(_passed(method, _attributes(name, classes), path.stem))
        for name, method in open_methods.items()
    }
    changed = True
    while changed:
        changed = False
        for name, method in open_methods.items():
            for callees, named, passes_on in calls[name]:
                passed = named | method.found if passes_on else named
                for callee in callees:
                    target, passed_on = reached, passed
                    if callee is not None:
                        if callee not in open_methods:
                            continue
                        of = open_methods[callee]
                        target = of.found
                        passed_on = {k: v for k, v in passed.items() if k not in of.parameters}
                    if not passed_on.keys() <= target.keys():
                        target.update({k: v for k, v in passed_on.items() if k not in target})
                        changed = True
    return reached


def _passed(
    method: Method, kinds: dict[str, set[str]], stem: str
) -> Iterator[tuple[list[str | None], dict[str, str], bool]]:
    """The calls of a method: classes that are called (None: an attention function), the names that the call gives
    them, and whether it passes on what the method got.
    """
    here = f"{stem}.{method.owner}"
    local = _locals(method.node, kinds)
    assert method.node.args.kwarg is not None
    own = method.node.args.kwarg.arg
    for call in _calls(method.node):
        named = {keyword.arg: here for keyword in call.keywords if keyword.arg}
        passes_on = any(keyword.arg is None and _names(keyword.value, own) for keyword in call.keywords)
        if isinstance(call.func, ast.Name) and call.func.id in INTERFACES:
            yield [None], named, passes_on
        elif isinstance(call.func, ast.Name) and call.func.id in local:
            yield list(local[call.func.id]), named, passes_on
        elif (attribute := _self_attribute(call.func)) in kinds:
            yield list(kinds[attribute]), named, passes_on


def _names(value: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(value))


def _locals(node: ast.FunctionDef, kinds: dict[str, set[str]]) -> dict[str, set[str]]:
    """Loop variables over lists of layers, and variables that hold one."""
    found: dict[str, set[str]] = defaultdict(set)
    for inner in ast.walk(node):
        targets: list[ast.expr]
        if isinstance(inner, ast.For):
            targets, source = [inner.target], inner.iter
        elif isinstance(inner, ast.Assign):
            targets, source = inner.targets, inner.value
        else:
            continue
        classes = {one for part in ast.walk(source) for one in kinds.get(_self_attribute(part), ())}
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name):
                    found[part.id] |= classes
    return found


def _attributes(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, set[str]]:
    """The classes of this file that each attribute of self may hold, those set by bases included."""
    found: dict[str, set[str]] = defaultdict(set)
    for owner in (name, *_bases(name, classes)):
        for node in ast.walk(classes[owner]) if owner in classes else ():
            if isinstance(node, ast.Assign):
                made = {one.id for one in ast.walk(node.value) if isinstance(one, ast.Name)} & classes.keys()
                for target in node.targets:
                    if (attribute := _self_attribute(target)) and made:
                        found[attribute] |= made
    return found


def _bases(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    found: list[str] = []
    for base in classes[name].bases if name in classes else ():
        if isinstance(base, ast.Name) and base.id in classes:
            found += [base.id, *_bases(base.id, classes)]
    return found


def _forward(node: ast.ClassDef) -> bool:
    return any(isinstance(part, ast.FunctionDef) and part.name == "forward" for part in node.body)


def _self_attribute(node: Any) -> str:
    """`x` of self.x and self.x[...], else nothing."""
    if isinstance(node, ast.Subscript):
        node = node.value
    at_self = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if at_self else ""


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))


def _parameters(node: ast.FunctionDef) -> set[str]:
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return {argument.arg for argument in arguments}


if __name__ == "__main__":
    for name, place in names().items():
        print(f"{name:32} {place}")
