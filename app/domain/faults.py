"""What pydantic found wrong with an input, in our words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.groups import shown

_BODY_PARTS = ("body", "query", "path", "header")
_KEY = "[key]"
# pydantic's words for these say nothing to whoever wrote the input.
_IN_OUR_WORDS = {
    "missing": "{where} is missing",
    "model_attributes_type": "{where} must be an object",
    "model_type": "{where} must be an object",
    "dict_type": "{where} must be an object",
    "extra_forbidden": "{where} is no key of this request; see /openapi.json",
    "unexpected_keyword_argument": "{where} is no key of this request; see /openapi.json",
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an input.

    Args:
        message: What is wrong, with the field at fault; not always text that can be sent.
        param: Dotted path of the field; None where it is the input as a whole.
        code: Stable name of the kind of fault.
    """

    message: str
    param: str | None
    code: str


def of(error: Mapping[str, Any], *, group: str = "", whole: str = "the body") -> Fault:
    """Say one of pydantic's errors in our words.

    Args:
        error: An entry of `ValidationError.errors()`.
        group: Group of keys that was checked, where its name is not part of the error's place.
        whole: What to call the input as a whole.
    """
    location = [group] if group else []
    location += _location(error["loc"])
    context: Mapping[str, Any] = error.get("ctx") or {}
    key = str(context.get("key") or "")
    if key and ".".join(location) != key:
        location.append(key)
    param = shown(".".join(part for part in location if part)) or None
    where = param or whole
    if "key" in context:
        return Fault(error["msg"], param, error["type"])
    length = _of_length(error)
    if length:
        subject = f"a key of {where}" if _KEY in error["loc"] else where
        return Fault(f"{subject} {length}", param, error["type"])
    said = _IN_OUR_WORDS.get(error["type"], "{where}: {message}")
    return Fault(said.format(where=where, message=error["msg"]), param, error["type"])


def _of_length(error: Mapping[str, Any]) -> str | None:
    """Say that a text has a wrong length; pydantic counts it in items."""
    text: object = error.get("input")
    if error["type"] not in ("too_long", "too_short") or not isinstance(text, str):
        return None
    is_long = error["type"] == "too_long"
    limit = error["ctx"]["max_length" if is_long else "min_length"]
    noun = "character" if limit == 1 else "characters"
    return f"must have at {'most' if is_long else 'least'} {limit} {noun}, it has {len(text)}"


def _location(parts: Iterable[Any]) -> Iterable[str]:
    """Leave out where in the request it was, and the names of union members, which say nothing."""
    for index, part in enumerate(parts):
        if index == 0 and part in _BODY_PARTS:
            continue
        text = str(part)
        if "[" in text or text in ("str", "int", "bool") or text.startswith("literal"):
            continue
        yield text
