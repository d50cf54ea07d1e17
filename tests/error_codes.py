"""Codes that the product's sources can put into an answer, read from the sources themselves."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is called with a code or reason that has no name in the call -> its place.
_POSITIONS = {"PydanticCustomError": 0, "BadRow": 0, "Notice": 0, "_dropped": 1}
# What is called -> the kind of thing that it names; everything else is an error.
_KINDS = {
    "BadRow": "row",
    "RowProblem": "row",
    "LineProblem": "row",
    "_dropped": "row",
    "notice": "notice",
    "Notice": "notice",
    "Warned": "warning",
}


class Codes:
    """Codes by kind: `error`, `row`, `notice` and `warning`; patterns are those made as they go."""

    def __init__(self) -> None:
        self.exact: dict[str, set[str]] = {}
        self.patterns: dict[str, set[str]] = {}

    def add(self, kind: str, value: ast.expr, constants: dict[str, str]) -> None:
        match value:
            case ast.Constant(value=str(text)):
                self.exact.setdefault(kind, set()).add(text)
            case ast.IfExp():
                for side in (value.body, value.orelse):
                    self.add(kind, side, constants)
            case ast.JoinedStr():
                parts = [
                    re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w+"
                    for part in value.values
                ]
                self.patterns.setdefault(kind, set()).add("".join(parts))
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in constants:
                self.exact.setdefault(kind, set()).add(constants[name])
            case _:
                pass  # a code that was made elsewhere is handed on


def found() -> Codes:
    """Return every code that the sources of `app` and `worker` name."""
    trees = [
        ast.parse(path.read_bytes())
        for folder in ("app", "worker")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    constants = {name: text for tree in trees for name, text in _constants(tree)}
    codes = Codes()
    for tree in trees:
        for node in ast.walk(tree):
            for kind, value in _named(node):
                codes.add(kind, value, constants)
    return codes


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                yield name, text
            case _:
                pass


def _named(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            kind = _KINDS.get(name, "error")
            place = _POSITIONS.get(name)
            if place is not None and place < len(node.args):
                yield kind, node.args[place]
            for keyword in node.keywords:
                # Reasons outside of rows are those of states, which are no codes.
                if keyword.arg == ("reason" if kind == "row" else "code"):
                    yield kind, keyword.value
        case ast.AnnAssign(target=ast.Name(id="default_code"), value=ast.expr() as value):
            yield "error", value
        case ast.Assign(targets=[ast.Name(id="default_code" | "code")], value=value):
            yield "error", value
        case _:
            pass
