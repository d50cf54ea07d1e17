"""The form of a new job: its fields come from the schema, its texts become a spec."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app.domain import consistency, faults
from app.domain.errors import InvalidInput
from app.domain.groups import Group, NotBuilt
from app.domain.presets import PRESETS
from app.domain.spec import GROUPS, JobSpec

# The fields that stand before "Advanced"; the data set is chosen or uploaded there.
FIRST = ("base_model", "dataset.id", "preset")
_MISSING = ""


@dataclass(frozen=True)
class Choice:
    """A value of a field that takes one of a few."""

    value: str
    is_available: bool


@dataclass(frozen=True)
class Field:
    """One key of a spec as a form shows it. An empty field leaves its key out."""

    path: str
    """Dotted path of the key, the name of the input too."""
    kind: str
    """`choice`, `number`, `list`, `pairs`, `long` or `text`."""
    help: str
    default: str
    """Text that stands for the default; empty for a key that has to be given."""
    choices: tuple[Choice, ...]
    limits: str
    is_nullable: bool
    is_required: bool
    is_refused: bool
    """Whether every value but the default is refused as not available."""

    @property
    def label(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def takes_null(self) -> bool:
        """Whether the text `null` stands for none; where empty says that, it is a text like any."""
        return self.is_nullable and not (self.kind in ("text", "long") and self.default == "null")


@dataclass(frozen=True)
class Section:
    """Fields that belong together."""

    name: str
    help: str
    fields: tuple[Field, ...]


@lru_cache
def sections() -> tuple[Section, ...]:
    """Return every key of a job, by group; those of the top come first."""
    schema = JobSpec.model_json_schema()
    top = tuple(_fields("", JobSpec, schema["properties"]))
    job = Section("job", "What is trained, and how it is filed.", top)
    return job, *(_section(name, group, schema["$defs"]) for name, group in GROUPS.items())


def fields() -> Iterator[Field]:
    for section in sections():
        yield from section.fields


def _section(name: str, group: type[Group], definitions: Mapping[str, Any]) -> Section:
    properties = definitions[group.__name__]["properties"]
    return Section(name, group.__doc__ or "", tuple(_fields(f"{name}.", group, properties)))


def _fields(prefix: str, group: type[Group], properties: Mapping[str, Any]) -> Iterator[Field]:
    for key, field in group.model_fields.items():
        if key not in GROUPS:
            yield _field(prefix + key, field, properties[key])


def _field(path: str, field: FieldInfo, schema: Mapping[str, Any]) -> Field:
    kinds: Sequence[Mapping[str, Any]] = schema.get("anyOf") or schema.get("oneOf") or [schema]
    marker = next((each for each in field.metadata if isinstance(each, NotBuilt)), None)
    default = field.get_default(call_default_factory=True)
    refused = () if marker is None else marker.values
    values = tuple(value for kind in kinds for value in _values(kind))
    return Field(
        path=path,
        kind="choice" if values else _kind(path, kinds),
        help=field.description or "",
        default=_MISSING if field.is_required() else text_of(default),
        choices=tuple(Choice(text_of(each), each not in refused) for each in values),
        limits=", ".join(limit for kind in kinds for limit in _limits(kind)),
        is_nullable=any(kind.get("type") == "null" for kind in kinds),
        is_required=field.is_required(),
        is_refused=marker is not None and not marker.values,
    )


def _values(kind: Mapping[str, Any]) -> Sequence[Any]:
    if kind.get("type") == "boolean":
        return [True, False]
    return kind.get("enum") or ([kind["const"]] if "const" in kind else [])


def _kind(path: str, kinds: Sequence[Mapping[str, Any]]) -> str:
    types = {kind.get("type") for kind in kinds}
    if types & {"integer", "number"}:
        return "number"
    if "array" in types:
        return "list"
    if "object" in types:
        return "pairs"
    return "long" if path == "dataset.chat_template" else "text"


def _limits(kind: Mapping[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in kind:
            yield f"{sign} {kind[name]:,}"


def text_of(value: object) -> str:
    """Return how a form writes a value."""
    if isinstance(value, list):
        parts = [str(each) for each in cast(list[object], value)]
        return f"{parts[0]}," if len(parts) == 1 else ", ".join(parts)
    if isinstance(value, dict):
        return _pairs_text(cast(dict[str, object], value))
    return value if isinstance(value, str) else json.dumps(value)


def _pairs_text(pairs: Mapping[str, object]) -> str:
    """Return pairs as lines; as JSON where a line could not be read back."""
    lines = [f"{key}={value}" for key, value in pairs.items()]
    is_plain = all(
        "=" not in key and not key.startswith("{") and len(line.splitlines()) == 1
        for key, line in zip(pairs, lines, strict=True)
    )
    trimmed = all(text == text.strip() for pair in pairs.items() for text in map(str, pair))
    return "\n".join(lines) if is_plain and trimmed else json.dumps(pairs, ensure_ascii=False)


def texts_of(spec: JobSpec) -> dict[str, str]:
    """Return what to fill in to get a job like another: its keys that differ from the defaults."""
    return {path: text_of(value) for path, value in _differing(spec)}


def keys_of(spec: JobSpec) -> dict[str, Any]:
    """Return the keys of a spec that differ from the defaults, as JSON has them."""
    found: dict[str, Any] = {}
    for path, value in _differing(spec):
        group, _, key = path.rpartition(".")
        place = found.setdefault(group, {}) if group else found
        place[key] = value
    return found


def _differing(spec: JobSpec) -> Iterator[tuple[str, Any]]:
    whole = spec.model_dump(mode="json")
    filled = _filled(spec)
    for field in fields():
        group, _, key = field.path.rpartition(".")
        value = whole[group][key] if group else whole[key]
        is_text = value is not None and not field.takes_null and field.default == "null"
        is_other = text_of(value) != field.default or is_text
        # A default that was written beside a preset has to be written again: it wins over that.
        if is_other or filled.get(field.path, value) != value:
            yield field.path, value


def _filled(spec: JobSpec) -> Mapping[str, Any]:
    """Return what the preset of a spec puts where nothing is written, by dotted path."""
    if spec.preset is None:
        return {}
    keys = {"target_modules", "r", "lora_alpha"}
    filled = PRESETS[spec.preset].model_dump(mode="json", include=keys, exclude_none=True)
    return {f"lora.{key}": value for key, value in filled.items()}


def given(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the spec that filled-in texts say, as JSON has it; what is empty is left out.

    A text that is no value of its field is passed on as it is: the schema refuses it by name.
    """
    spec: dict[str, Any] = {}
    for field in fields():
        text = texts.get(field.path, "")
        if not text.strip():
            continue
        # Spaces around a template are part of it; browsers send lines with \\r\\n.
        text = text.replace("\r\n", "\n") if field.kind == "long" else text.strip()
        group, _, key = field.path.rpartition(".")
        place = spec.setdefault(group, {}) if group else spec
        place[key] = _value(field, text)
    return spec


def _value(field: Field, text: str) -> Any:
    if field.takes_null and text == "null":
        return None
    if field.kind == "list":
        return _list(field, text)
    if field.kind == "pairs":
        return _pairs(field, text)
    is_json = field.kind == "number" or (field.kind == "choice" and text in ("true", "false"))
    try:
        return json.loads(text) if is_json else text
    except ValueError:
        return text


def _list(field: Field, text: str) -> Any:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    # One word is a preset where the key takes one too; a single layer is written with a comma.
    is_word = field.path == "lora.target_modules" and "," not in text
    return text if is_word else parts


def _pairs(field: Field, text: str) -> Any:
    if text.startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    pairs: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key, sign, value = (part.strip() for part in line.partition("="))
        if not sign or key in pairs:
            what = "is given twice" if sign else "has no ="
            raise InvalidInput(
                f"{field.path}: {key[:60]!r} in line {number} {what}; write one key=value a line",
                param=field.path,
                code="invalid_pairs",
            )
        is_number = field.path.endswith("_pattern") and value.isdecimal()
        pairs[key] = int(value) if is_number else value
    return pairs


def spec_of(given: Mapping[str, Any]) -> tuple[JobSpec | None, dict[str, str]]:
    """Check a spec; return it, or what is wrong by the dotted path of the key ("" for none)."""
    try:
        spec = JobSpec.model_validate_json(json.dumps(given))
        consistency.require(spec)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for each in error.errors():
            found = faults.of(each, whole="the job")
            problems.setdefault(_path(found.param), found.message)
        return None, problems
    except InvalidInput as error:
        return None, {_path(error.param): error.message}
    return spec, {}


def _path(param: str | None) -> str:
    """Return the field that a fault is shown at: the key itself, or the one it is part of."""
    known = {field.path for field in fields()}
    path = param or ""
    while path and path not in known:
        path = path.rpartition(".")[0]
    return path
