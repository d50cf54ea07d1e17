"""From a decoded record to a row: which format its columns are of, and reading it as that format.

The columns decide (`detect`), a job can override them (`dataset.format`) and rename them
(`dataset.field_mapping`). Rows of all formats become one of the few kinds in `row_types`.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, cast

from app.domain import chat, instructions, sharegpt, tokenized
from app.domain.row_types import (
    MAX_LINE_BYTES,
    ROLES,
    AlpacaRow,
    BadRow,
    ChatRow,
    Message,
    PromptCompletionRow,
    Row,
    RowFormat,
    TextRow,
    TokenizedRow,
    Turn,
    names_of,
    text_of,
)
from app.domain.strict_json import DuplicateKey, unique_keys

__all__ = [
    "COLUMNS",
    "MAX_LINE_BYTES",
    "ROLES",
    "AlpacaRow",
    "BadRow",
    "ChatRow",
    "Message",
    "PromptCompletionRow",
    "Row",
    "RowFormat",
    "TextRow",
    "TokenizedRow",
    "Turn",
    "decode",
    "detect",
    "format_for",
    "ignored_keys",
    "parse_record",
]

# Every column that a format uses, the ones that it needs first. In the order of detection: a file
# with the columns of two formats is of the first one.
REQUIRED: dict[RowFormat, frozenset[str]] = {
    "chat": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "tokenized": frozenset({"input_ids"}),
    "prompt-completion": frozenset({"prompt", "completion"}),
    "alpaca": frozenset({"instruction", "output"}),
    "text": frozenset({"text"}),
}
_OPTIONAL: dict[RowFormat, frozenset[str]] = {
    "chat": frozenset({"tools", "parallel_tool_calls"}),
    "sharegpt": frozenset({"system", "tools"}),
    "tokenized": frozenset({"labels", "attention_mask", *tokenized.MASKS}),
    "prompt-completion": frozenset({"tools", "parallel_tool_calls"}),
    "alpaca": frozenset({"input", "system", "history"}),
    "text": frozenset(),
}
COLUMNS: dict[RowFormat, frozenset[str]] = {
    name: REQUIRED[name] | _OPTIONAL[name] for name in REQUIRED
}

# Keys that other tools give a meaning; training without it would be training on something else.
_NOT_BUILT = {
    "functions": "give `tools` instead",
    "weight": "give a weight to each assistant message instead",
    "chosen": "preference training is not available; give the answer as the last assistant turn",
    "rejected": "preference training is not available; give the answer as the last assistant turn",
    "images": "only text is trained on; remove it",
    "videos": "only text is trained on; remove it",
    "audio": "only text is trained on; remove it",
    "audios": "only text is trained on; remove it",
}


def parse_record(
    record: Mapping[str, Any],
    *,
    row_format: RowFormat | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Row:
    """Read one decoded record as a row.

    Args:
        row_format: None takes the format that the columns, once mapped, are of.
        mapping: Our column name -> the record's (`dataset.field_mapping`).

    Raises:
        BadRow: No known format has these columns, a column that changes what the row means is not
            built, or a value is of the wrong type.
    """
    columns = mapped(record, mapping or {})
    refuse_not_built(columns)
    row_format = row_format or detect(columns) or _nearest(columns)
    match row_format:
        case "chat":
            return _chat(columns)
        case "sharegpt":
            return sharegpt.parse(columns)
        case "alpaca":
            return instructions.parse(columns)
        case "prompt-completion":
            return _prompt_completion(columns)
        case "text":
            return TextRow(text_of(columns.get("text"), "text"))
        case "tokenized":
            return tokenized.parse(columns)
        case None:
            raise BadRow("unknown_format", unknown_format(columns))


def decode(line: bytes) -> dict[str, Any]:
    """Read one line as a JSON object.

    Raises:
        BadRow: The line is not UTF-8, not JSON, not an object, or has a key twice.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(
            "not_utf8", f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8"
        ) from error
    try:
        record = json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKey as error:
        raise BadRow(
            "duplicate_key", f"the key {names_of([error.key])} is given twice; remove one of them"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadRow("bad_json", f"not valid JSON: {_why(text, error)}") from error
    if not isinstance(record, dict):
        raise BadRow("not_an_object", f"expected a JSON object, got {type(record).__name__}")
    return cast(dict[str, Any], record)


def _why(text: str, error: ValueError | RecursionError) -> str:
    """Say why a line is no JSON to somebody who knows nothing of our parser."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if not isinstance(error, json.JSONDecodeError):
        return "a number has too many digits"  # all that is left is Python's limit of them
    if text == "{":
        return "the object goes on in the next line; write one object per line, or an array"
    if "\r" in text:
        return "the lines end in CR alone, as on an old Mac; save the file with LF or CRLF"
    return str(error)


def detect(columns: Mapping[str, Any] | Collection[str]) -> RowFormat | None:
    """Return the format that has these columns; a column without a value does not count.

    Given a record, a prompt and completion that are lists of messages are a `chat`.
    """
    if isinstance(columns, Mapping):
        record = cast(Mapping[str, Any], columns)
        present = {name for name, value in record.items() if value is not None}
        if {"prompt", "completion"} <= present and isinstance(record["prompt"], list):
            return "chat"
    else:
        present = set(columns)
    return next((name for name, needed in REQUIRED.items() if needed <= present), None)


def format_for(
    found: RowFormat | None, *, override: str, mapping: Mapping[str, str] | None
) -> RowFormat | None:
    """Return the format to give to `parse_record` for all rows of a job.

    Args:
        found: What the upload found (`Dataset.format`).
        override: `dataset.format` of the job, `auto` for none.
        mapping: `dataset.field_mapping` of the job.

    Returns:
        None where the columns of each row decide: they are renamed, so what the upload found says
        nothing about them.
    """
    if override != "auto":
        return cast(RowFormat, override)
    return None if mapping else found


def mapped(record: Mapping[str, Any], mapping: Mapping[str, str]) -> Mapping[str, Any]:
    """Rename the columns of a record: our column name -> the record's."""
    if not mapping:
        return record
    moved = set(mapping.values())
    rest = {name: value for name, value in record.items() if name not in moved}
    return rest | {ours: record[theirs] for ours, theirs in mapping.items() if theirs in record}


def ignored_keys(record: Mapping[str, Any], row_format: RowFormat) -> set[str]:
    """Return the keys of a record that its format does not use."""
    used = COLUMNS[row_format]
    if row_format == "chat":
        used = used | COLUMNS["prompt-completion"]
    return {name for name, value in record.items() if value is not None} - used


def unknown_format(columns: Collection[str]) -> str:
    needed = "; ".join(f"{', '.join(sorted(REQUIRED[name]))} ({name})" for name in REQUIRED)
    return f"columns of no known format; keys found: {names_of(columns)}; known are: {needed}"


def refuse_not_built(record: Mapping[str, Any]) -> None:
    """Refuse a record with a column that would change what it means.

    Raises:
        BadRow: It has one.
    """
    for key, remedy in _NOT_BUILT.items():
        if record.get(key) is not None:
            raise BadRow(
                "unsupported_key",
                f"{key} beside the row is not available in this version: {remedy}",
            )


def _nearest(record: Mapping[str, Any]) -> RowFormat | None:
    """Return a format that some needed column is of, so that what is missing can be named."""
    return next((name for name, needed in REQUIRED.items() if needed & set(record)), None)


def _chat(record: Mapping[str, Any]) -> ChatRow:
    if record.get("messages") is None and isinstance(record.get("prompt"), list):
        row = _prompt_completion(record)
        if isinstance(row, ChatRow):
            return row
    messages = chat.parse_messages(record.get("messages"), "messages")
    return ChatRow(messages, chat.parse_tools(record.get("tools")))


def _prompt_completion(record: Mapping[str, Any]) -> Row:
    given = [key for key in ("prompt", "completion") if record.get(key) is not None]
    if len(given) < 2:
        missing = "completion" if given == ["prompt"] else "prompt"
        beside = f" beside {given[0]}" if given else ""
        raise BadRow("missing_key", f"{missing} is missing{beside}")
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return ChatRow(
            chat.parse_prompt_completion(cast(list[Any], prompt), cast(list[Any], completion)),
            chat.parse_tools(record.get("tools")),
        )
    if record.get("tools") is not None:
        raise BadRow("unsupported_key", "tools need a prompt and completion of messages")
    return PromptCompletionRow(
        text_of(prompt, "prompt", may_be_empty=True), text_of(completion, "completion")
    )
