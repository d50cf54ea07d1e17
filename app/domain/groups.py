"""What all groups of a spec share: strict keys, aliases, and refusal of what is not built."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from app.domain import aliases

_SHOWN_CHARACTERS = 200


def _storable(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError(
            "invalid_text", "must not contain NUL (\\u0000) or half of a surrogate pair"
        )
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be blank; give a text, or leave it out")
    return text


# A text for people that every database can store.
Label = Annotated[str, AfterValidator(_storable)]
# One that names something.
Name = Annotated[Label, AfterValidator(_not_blank)]


def printable(text: str) -> str:
    """Return a name that the user did not choose for us without what no database can store."""
    return "".join(character for character in text if character.isprintable())


class NotBuilt:
    """Marks a field, or some values of a field, that the design names and this version refuses.

    Args:
        values: The refused values; none means everything but the default.
        instead: What does what the field would do.
    """

    def __init__(self, *values: object, instead: str = "") -> None:
        self.values = values
        self.instead = instead

    def refuses(self, value: object, default: object) -> bool:
        return value in self.values if self.values else value != default


class Group(BaseModel):
    """Base of every group: unknown keys are errors with the nearest valid key."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    group_name: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _canonical_keys(cls, raw: Any) -> Any:
        given = as_mapping(raw)
        return raw if given is None else canonical(given, cls)

    @model_validator(mode="after")
    def _refuse_not_built(self) -> Self:
        for key, field in type(self).model_fields.items():
            for marker in field.metadata:
                default = field.get_default(call_default_factory=True)
                if isinstance(marker, NotBuilt) and marker.refuses(getattr(self, key), default):
                    raise not_available(key, getattr(self, key), default, instead=marker.instead)
        return self


def as_mapping(raw: object) -> Mapping[str, Any] | None:
    """Return `raw` if it is an object in the sense of JSON, else None."""
    return cast(Mapping[str, Any], raw) if isinstance(raw, Mapping) else None


def shown(value: object) -> str:
    """Return what a message may say of a value that the user sent: short, and valid Unicode."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def canonical(raw: Mapping[str, Any], group: type[Group]) -> dict[str, Any]:
    """Return the keys of `raw` under our names.

    Raises:
        PydanticCustomError: A key is unknown, or an alias contradicts its key.
    """
    fields = group.model_fields
    names = aliases.of_group(group.group_name)
    result: dict[str, Any] = {key: value for key, value in raw.items() if key in fields}
    for name, value in raw.items():
        if name in fields:
            continue
        if name not in names:
            raise unknown_key(name, [*fields, *names])
        result = {**result, names[name]: resolve_alias(name, value, names[name], result)}
    return result


def resolve_alias(name: str, value: object, key: str, given: Mapping[str, Any]) -> object:
    """Return the value of `key` given under `name`, unless `given` already says otherwise."""
    try:
        translated = aliases.translate(name, value)
    except aliases.AliasConflict as conflict:
        raise PydanticCustomError(
            "alias_conflict", "{problem}", {"problem": conflict.message, "key": conflict.name}
        ) from conflict
    if key in given and given[key] != translated:
        raise PydanticCustomError(
            "alias_conflict",
            "{key} is another name of {target}: got {second} and {first}; give one of them",
            {
                "key": name,
                "target": aliases.ALIASES.get(name, key),
                "first": shown(repr(given[key])),
                "second": shown(repr(translated)),
            },
        )
    return translated


def nearest(name: str, known: list[str]) -> str:
    """Return what a message may say to whoever wrote a name that is none of `known`."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(sorted(set(known)))}"


def unknown_key(name: str, known: list[str], *, extra_hint: str = "") -> PydanticCustomError:
    hint = extra_hint or nearest(name, known)
    return PydanticCustomError(
        "unknown_key", "unknown key {key}; {hint}", {"key": shown(name), "hint": hint}
    )


def not_available(
    key: str, value: object, default: object, *, instead: str = ""
) -> PydanticCustomError:
    if instead:
        return PydanticCustomError(
            "not_available",
            "{key} is not available yet; leave it out: {instead}",
            {"key": key, "instead": instead},
        )
    return PydanticCustomError(
        "not_available",
        "{key} = {value} is not available in this version; leave it out (default {default})",
        {"key": key, "value": shown(repr(value)), "default": repr(default)},
    )
