"""Rows that come as token ids, with labels or a mask that says which ids are learned."""

from collections.abc import Mapping
from typing import Any, cast

from app.domain.row_types import BadRow, TokenizedRow, decoded

IGNORED_LABEL = -100
MASKS = ("loss_mask", "completion_mask", "assistant_masks")
_MAX_ID = 2**31 - 1


def parse(record: Mapping[str, Any]) -> TokenizedRow:
    """Read `input_ids` with optional `labels` or a loss mask; without either all ids are learned.

    Ids whose `attention_mask` is 0 are padding and left out.

    Raises:
        BadRow: Lists are of unequal length, or a label is neither -100 nor the id at its place.
    """
    ids = _integers(record.get("input_ids"), "input_ids", low=0, high=_MAX_ID)
    if not ids:
        raise BadRow("empty", "input_ids is empty")
    is_target = _targets(record, ids)
    attended = _mask(record, "attention_mask", len(ids)) or [1] * len(ids)
    kept = [n for n, is_kept in enumerate(attended) if is_kept]
    return TokenizedRow(tuple(ids[n] for n in kept), tuple(is_target[n] for n in kept))


def _targets(record: Mapping[str, Any], ids: list[int]) -> list[bool]:
    given = [name for name in ("labels", *MASKS) if record.get(name) is not None]
    if len(given) > 1:
        raise BadRow("two_masks", f"{given[0]} and {given[1]} both say what is learned; give one")
    if not given:
        return [True] * len(ids)
    if given[0] != "labels":
        return [value == 1 for value in _mask(record, given[0], len(ids)) or []]
    labels = _integers(record["labels"], "labels", low=IGNORED_LABEL, high=_MAX_ID)
    _require_length("labels", len(labels), len(ids))
    for place, (label, token) in enumerate(zip(labels, ids, strict=True)):
        if label not in (IGNORED_LABEL, token):
            raise BadRow(
                "bad_labels",
                f"labels[{place}] is {label}, but must be -100 or input_ids[{place}], which is"
                f" {token}; do not shift the labels",
            )
    return [label != IGNORED_LABEL for label in labels]


def _mask(record: Mapping[str, Any], name: str, length: int) -> list[int] | None:
    if record.get(name) is None:
        return None
    mask = _integers(record[name], name, low=0, high=1)
    _require_length(name, len(mask), length)
    return mask


def _require_length(name: str, length: int, expected: int) -> None:
    if length != expected:
        raise BadRow("bad_length", f"{name} has {length} entries and input_ids {expected}")


def _integers(value: Any, name: str, *, low: int, high: int) -> list[int]:
    value = decoded(value)
    if not isinstance(value, list):
        raise BadRow("bad_type", f"{name} must be a list of integers")
    for place, item in enumerate(cast(list[Any], value)):
        # bool is an int to Python, and masks are often written with it.
        if not isinstance(item, int) or not low <= item <= high:
            raise BadRow("bad_type", f"{name}[{place}] must be an integer from {low} to {high}")
    return [int(item) for item in cast(list[int], value)]
