"""The generated parts of the reference pages: job keys, routes, settings, columns, other names.

    python docs/reference.py            # brings the pages up to date
    python docs/reference.py --check    # ends with 1 where a page differs

Everything comes from the code: the schema of JobSpec, the API's own document, the settings.
"""

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402
from pydantic_core import PydanticUndefined, to_json  # noqa: E402

from app.api import errors  # noqa: E402
from app.api.deps import MAX_INT32  # noqa: E402
from app.domain.aliases import ALIASES  # noqa: E402
from app.domain.groups import Group, NotBuilt  # noqa: E402
from app.domain.options import LoraSpec  # noqa: E402
from app.domain.presets import PRESETS  # noqa: E402
from app.domain.rows import COLUMNS, REQUIRED  # noqa: E402
from app.domain.spec import GROUPS, JobSpec, ResumeFrom  # noqa: E402
from app.main import create_app  # noqa: E402
from app.settings import Settings  # noqa: E402
from docs import pages  # noqa: E402

# Any request can meet these, so the table of routes leaves them out; the page explains them once.
COMMON_STATUSES = frozenset(map(str, errors.answers()))
_NOUNS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
_TITLES = {"openai": "OpenAI's routes", "catalog": "Models, presets, workers, health"}
_METHODS = ("get", "post", "put", "patch", "delete")


def parts() -> pages.Parts:
    """Return every generated part, by page and name."""
    return {
        FOLDER / "spec.md": {
            "top": _keys(JobSpec, left_out=GROUPS),
            **{name: _group(name, group) for name, group in GROUPS.items()},
            "resume_from": _keys(ResumeFrom, prefix="resume_from."),
            "presets": _presets(),
            "other names": _other_names(),
        },
        FOLDER / "http-api.md": _routes(document()),
        FOLDER / "data-formats.md": {"columns": _columns()},
        FOLDER / "production.md": {"settings": _settings()},
    }


def document() -> dict[str, Any]:
    """Return the API's own document, as `/openapi.json` serves it."""
    with tempfile.TemporaryDirectory() as home:
        app = create_app(Settings(home=Path(home)))
        try:
            return app.openapi()
        finally:
            app.state.parts.db.close()


# Keys of a job


def _group(name: str, group: type[Group]) -> str:
    return f"{_sentence(group.__doc__)}\n\n{_keys(group, prefix=f'{name}.')}"


def _keys(model: type[BaseModel], *, prefix: str = "", left_out: Iterable[str] = ()) -> str:
    """Return the table of a model's fields."""
    schema = model.model_json_schema()
    skipped = set(left_out)
    rows = [
        (
            f"`{prefix}{name}`",
            _kind(schema["properties"][name]) + _refused(field),
            _default(field),
            _sentence(field.description),
        )
        for name, field in model.model_fields.items()
        if name not in skipped
    ]
    return _table(("key", "takes", "default", "meaning"), rows)


def _kind(schema: Mapping[str, Any]) -> str:
    """Say in words what a value may be."""
    if "anyOf" in schema:
        return _joined([_kind(each) for each in schema["anyOf"]])
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "array":
            return f"list of {_kind(schema['items'])}{_size(schema, 'Items', 'entries')}"
        case "object":
            return _kind_of_map(schema)
        case "string":
            return _kind_of_text(schema)
        case kind:
            return _NOUNS[kind] + _range(schema)


def _joined(kinds: Sequence[str]) -> str:
    """Say that a value may be one of several kinds; those that are spelled out come first."""
    spelled = [kind for kind in kinds if kind.startswith("`")]
    return " or ".join([*filter(None, [", ".join(spelled)]), *(k for k in kinds if k[0] != "`")])


def _kind_of_text(schema: Mapping[str, Any]) -> str:
    is_file = "contentMediaType" in schema or schema.get("format") == "binary"
    return "a file" if is_file else "text" + _size(schema, "Length", "characters")


def _kind_of_map(schema: Mapping[str, Any]) -> str:
    values = schema.get("additionalProperties")
    if values is None:
        [values] = schema["patternProperties"].values()
    if values is True:
        return "object"
    return f"map of text to {_kind(values)}{_size(schema, 'Properties', 'entries')}"


def _size(schema: Mapping[str, Any], what: str, noun: str) -> str:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if high is None:
        return ""
    return f" ({low} to {high:,} {noun})" if low else f" (up to {high:,} {noun})"


def _range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    said = [
        f"{word} {_plain(value)}"
        for word, value in (("from", low), ("above", above), ("to", high), ("below", below))
        if value is not None
    ]
    return f" {' '.join(said)}" if said else ""


def _plain(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _refused(field: FieldInfo) -> str:
    """Name what the schema has and this version refuses."""
    markers = [each for each in cast(list[object], field.metadata) if isinstance(each, NotBuilt)]
    said = ""
    for marker in markers:
        values = ", ".join(f"`{value}`" for value in marker.values)
        said += f"; refused yet: {values or 'everything but the default'}"
    return said


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "required" if value is PydanticUndefined else f"`{to_json(value).decode()}`"


def _presets() -> str:
    rows = [
        (
            f"`{each.name}`",
            ", ".join(f"`{name}`" for name in _listed(each.target_modules)),
            str(each.r or LoraSpec().r),
            str(each.lora_alpha or LoraSpec().lora_alpha),
            each.description,
        )
        for each in PRESETS.values()
    ]
    return _table(("preset", "target_modules", "r", "lora_alpha", "when"), rows)


def _listed(modules: list[str] | str) -> list[str]:
    return [modules] if isinstance(modules, str) else modules


def _other_names() -> str:
    rows = [(f"`{name}`", f"`{key}`") for name, key in sorted(ALIASES.items())]
    return _table(("other name", "our key"), rows)


# Routes


def _routes(described: Mapping[str, Any]) -> dict[str, str]:
    """Return the routes by subject in the order of the document, and the bodies they take."""
    grouped: dict[str, list[Sequence[str]]] = {}
    bodies: dict[str, None] = {}
    for path, item in described["paths"].items():
        for method in (each for each in _METHODS if each in item):
            operation = item[method]
            subject = "openai" if path.startswith("/v1/") else operation["tags"][0]
            body = _body_of(operation)
            grouped.setdefault(subject, []).append(_route(method, path, operation, body))
            if body is not None and subject != "openai":
                bodies[body] = None
    head = ("route", "what it does", "query and headers", "body", "answers")
    schemas = described["components"]["schemas"]
    return {
        "routes": "\n\n".join(
            f"### {_TITLES.get(subject, subject.capitalize())}\n\n{_table(head, rows)}"
            for subject, rows in grouped.items()
        ),
        "parameters": _parameters(described),
        "bodies": "\n\n".join(
            f"### {_shown_body(name)}\n\n{_fields(schemas[name])}"
            for name in bodies
            if name != JobSpec.__name__
        ),
    }


def _route(method: str, path: str, operation: Mapping[str, Any], body: str | None) -> Sequence[str]:
    given = [each for each in operation.get("parameters", []) if each["in"] != "path"]
    return (
        f"`{method.upper()} {path}`",
        _sentence(operation["description"].partition("\n\n")[0]),
        ", ".join(map(_parameter, given)),
        _link_to(body, is_openai=path.startswith("/v1/")),
        ", ".join(sorted(operation["responses"].keys() - COMMON_STATUSES)),
    )


def _parameter(given: Mapping[str, Any]) -> str:
    default = given["schema"].get("default")
    value = "" if default is None else f"={to_json(default).decode().strip(chr(34))}"
    return f"`{given['name']}{value}`" + (" (required)" if given.get("required") else "")


def _parameters(described: Mapping[str, Any]) -> str:
    """Return what queries and headers take; equal parameters of several routes are one row."""
    schemas = described["components"]["schemas"]
    rows: set[tuple[str, ...]] = set()
    for item in described["paths"].values():
        for operation in item.values():
            for given in operation.get("parameters", []):
                if given["in"] != "path":
                    rows.add(_taken(given, schemas))
    return _table(("parameter", "takes", "default", "meaning"), sorted(rows))


def _taken(given: Mapping[str, Any], schemas: Mapping[str, Any]) -> tuple[str, ...]:
    schema = given["schema"]
    # Null stands for a parameter that is left out; no query can say it.
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    default = schema.get("default")
    return (
        f"`{given['name']}`" + (" (header)" if given["in"] == "header" else ""),
        _joined([_kind(_whole(each, schemas)) for each in kinds]),
        "" if default is None else f"`{to_json(default).decode()}`",
        _sentence(given["description"]),
    )


def _whole(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema instead of a reference to it, without a limit that only columns have."""
    if "$ref" in schema:
        return schemas[schema["$ref"].rpartition("/")[2]]
    is_limit = schema.get("maximum", 0) < MAX_INT32
    return {name: value for name, value in schema.items() if is_limit or name != "maximum"}


def _body_of(operation: Mapping[str, Any]) -> str | None:
    """Return the name of the schema of a request's body."""
    if "requestBody" not in operation:
        return None
    [content] = operation["requestBody"]["content"].values()
    choices = content["schema"].get("anyOf", [content["schema"]])
    return next(each["$ref"].rpartition("/")[2] for each in choices if "$ref" in each)


def _shown_body(name: str) -> str:
    # A form has no class of its own; FastAPI calls it after the function that takes it.
    return "Form of an upload" if name.startswith("Body_") else name


def _link_to(body: str | None, *, is_openai: bool) -> str:
    if body is None:
        return ""
    if is_openai:
        return "form" if body.startswith("Body_") else "JSON"
    if body == JobSpec.__name__:
        return f"[{body}](spec.md)"
    return f"[{_shown_body(body)}](#{_shown_body(body).lower().replace(' ', '-')})"


def _fields(schema: Mapping[str, Any]) -> str:
    """Return the table of a schema's fields."""
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            _kind(each),
            "required" if name in required else f"`{to_json(each.get('default')).decode()}`",
            _sentence(each.get("description")),
        )
        for name, each in schema["properties"].items()
    ]
    return _table(("field", "takes", "default", "meaning"), rows)


# Formats and settings


def _columns() -> str:
    rows = [
        (
            f"[`{name}`](#{name})",
            ", ".join(f"`{column}`" for column in sorted(needed)),
            ", ".join(f"`{column}`" for column in sorted(COLUMNS[name] - needed)),
        )
        for name, needed in REQUIRED.items()
    ]
    return _table(("format", "needs", "may have"), rows)


def _settings() -> str:
    rows = [
        (f"`LORAD_{name.upper()}`", _setting(field), _sentence(field.description))
        for name, field in Settings.model_fields.items()
    ]
    return _table(("variable", "default", "meaning"), rows)


def _setting(field: FieldInfo) -> str:
    return f"`{field.default}`" if field.default not in (None, "") else ""


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(each.replace('|', chr(92) + '|') for each in line)} |" for line in lines
    )


if __name__ == "__main__":
    sys.exit(pages.write(parts(), is_check="--check" in sys.argv))
