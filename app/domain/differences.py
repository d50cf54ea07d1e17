"""Differences: the keys in which the resolved specs of several jobs are not the same.

The compare page and `lorad diff` both show what `between` finds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, JsonValue

from app.domain.spec import JobSpec


class Absent(BaseModel):
    """Stands for a key that one of the specs does not have, which null could not tell."""

    model_config = ConfigDict(frozen=True)


ABSENT = Absent()


class Difference(BaseModel):
    """One key whose value is not the same in all specs."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    key: str
    """Dotted path in the spec, such as `training.learning_rate`."""
    values: tuple[JsonValue | Absent, ...]
    """Value of each spec in the order given; `ABSENT` where one does not have the key."""


def between(specs: Sequence[JobSpec]) -> tuple[Difference, ...]:
    """Return the keys that differ among resolved specs, in the order that a spec has them.

    Maps of any keys (metadata, rank patterns, column names) are compared key by key, lists whole.
    One spec alone, or none, differs in nothing.
    """
    flat = [dict(_leaves(spec.model_dump(mode="json"))) for spec in specs]
    # A dictionary, because it keeps the order in which the specs have their keys.
    keys = {key: None for each in flat for key in each}
    found = (
        Difference(key=key, values=tuple(each.get(key, ABSENT) for each in flat))
        for key in keys
        # A map that is null in one spec and has keys in another is told by its keys.
        if not any(other.startswith(f"{key}.") for other in keys)
    )
    return tuple(sorted(filter(_differs, found), key=lambda each: _place(each.key)))


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(cast(dict[str, Any], inner), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _differs(difference: Difference) -> bool:
    first, *others = difference.values
    # 1 and 1.0 are the same setting; true and 1 are not.
    return any(
        isinstance(first, bool) is not isinstance(other, bool) or first != other for other in others
    )


def _place(key: str) -> int:
    return list(JobSpec.model_fields).index(key.split(".", 1)[0])
