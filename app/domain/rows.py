"""One line of a data set: the three row formats, and the rules for what can be trained on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from app.domain.strict_json import DuplicateKey, unique_keys

RowFormat = Literal["chat", "sharegpt", "alpaca", "prompt-completion", "text", "tokenized"]
ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_LINE_BYTES = 1_048_576
_SHOWN_CHARACTERS = 200

# Keys that other tools give a meaning; training without it would be training on something else.
_NOT_BUILT = frozenset(
    ("tools", "functions", "parallel_tool_calls", "weight", "chosen", "rejected", "images", "audio")
)


class BadRow(Exception):
    """A line that cannot be trained on.

    Args:
        reason: Stable name of the kind of fault.
        message: What is wrong and what to do, without the line number.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Annotated[str, Field(description="system, developer, user, assistant or tool.")]
    content: Annotated[str, Field(description="Text of the turn.")]


@dataclass(frozen=True)
class ChatRow:
    """A conversation; assistant turns are the targets."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class PromptCompletionRow:
    """Two plain strings; the completion is the target."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class TextRow:
    """Plain text; all of it is the target."""

    text: str


Row = ChatRow | PromptCompletionRow | TextRow


def parse_line(line: bytes) -> Row:
    """Read one JSONL line.

    Raises:
        BadRow: The line is not UTF-8, not JSON, or not a row of a known format.
    """
    return parse_record(decode(line))


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
            "duplicate_key", f"the key {_names([error.key])} is given twice; remove one of them"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadRow("bad_json", f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRow("not_an_object", f"expected a JSON object, got {type(record).__name__}")
    return cast(dict[str, Any], record)


def parse_record(record: Mapping[str, Any]) -> Row:
    """Read one decoded row; the keys decide the format.

    Raises:
        BadRow: No known format has these keys, a key that changes what the row means is not built,
            or a value is of the wrong type.
    """
    not_built = _NOT_BUILT & set(record)
    if not_built:
        raise BadRow(
            "unsupported_key",
            f"{_names(not_built)} beside the row is not available in this version; remove it",
        )
    if "messages" in record:
        return ChatRow(_messages(record["messages"], "messages"))
    if "prompt" in record or "completion" in record:
        return _prompt_completion(record)
    if "text" in record:
        return TextRow(_text(record["text"], "text"))
    raise BadRow(
        "unknown_format",
        f"no messages, no prompt and completion, and no text; keys found: {_names(record)}",
    )


def ignored_keys(record: Mapping[str, Any], row: Row) -> set[str]:
    """Return the keys of a record that its format does not use."""
    used = {
        "chat": {"messages", "prompt", "completion"},
        "prompt-completion": {"prompt", "completion"},
        "text": {"text"},
    }
    return set(record) - used[format_of(row)]


def format_of(row: Row) -> RowFormat:
    match row:
        case ChatRow():
            return "chat"
        case PromptCompletionRow():
            return "prompt-completion"
        case TextRow():
            return "text"


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow("bad_messages", f"{name} must be a list of at least one message")
    items = enumerate(cast(list[Any], value))
    messages = tuple(_message(item, f"{name}[{index}]") for index, item in items)
    if not any(message.role == "assistant" for message in messages):
        raise BadRow(
            "no_assistant_turn", f"{name} has no assistant turn, so there is nothing to learn from"
        )
    return messages


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise BadRow("bad_messages", f"{name} must be an object with role and content")
    message = cast(dict[str, Any], value)
    role = message.get("role")
    if role is None:
        raise BadRow("no_role", f"{name} has no role; give one of: {', '.join(ROLES)}")
    if role not in ROLES:
        raise BadRow(
            "unknown_role", f"{name}.role is {str(role)[:40]!r}; give one of: {', '.join(ROLES)}"
        )
    unsupported = set(message) - {"role", "content"}
    if unsupported:
        raise BadRow(
            "unsupported_key",
            f"{name} has {_names(unsupported)}, which is not available in this version",
        )
    return Message(role, _text(message.get("content"), f"{name}.content"))


def _prompt_completion(record: Mapping[str, Any]) -> Row:
    missing = [key for key in ("prompt", "completion") if key not in record]
    if missing:
        raise BadRow(
            "missing_key",
            f"{missing[0]} is missing beside {'prompt' if 'prompt' in record else 'completion'}",
        )
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return ChatRow(_messages([*prompt, *completion], "prompt + completion"))
    return PromptCompletionRow(
        _text(prompt, "prompt", may_be_empty=True), _text(completion, "completion")
    )


def _names(keys: Iterable[str]) -> str:
    """Name keys of the user's in a message, which must be short and valid Unicode."""
    text = ", ".join(sorted(keys)) or "none"
    return text[:_SHOWN_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def _text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"a {type(value).__name__}"
        raise BadRow("bad_type", f"{name} must be a string, it is {kind}")
    if not value and not may_be_empty:
        raise BadRow("empty", f"{name} is empty")
    if not value.isprintable() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow("not_utf8", f"{name} holds half of a surrogate pair, which is no character")
    return value
