"""What a row can be once it is read, whatever its format was, and why one cannot be trained on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

RowFormat = Literal["chat", "sharegpt", "alpaca", "prompt-completion", "text", "tokenized"]
ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_LINE_BYTES = 1_048_576
_SHOWN_CHARACTERS = 200


class BadRow(Exception):
    """A row that cannot be trained on.

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
    """One turn of a conversation that is to be answered."""

    role: Annotated[str, Field(description="system, developer, user, assistant or tool.")]
    content: Annotated[str, Field(description="Text of the turn.")]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation to train on.

    Args:
        is_left_out: An assistant turn that is not to be learned: its weight is 0, or it belongs to
            the prompt.
    """

    role: str
    content: str = ""
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    is_left_out: bool = False

    @property
    def is_target(self) -> bool:
        return self.role == "assistant" and not self.is_left_out

    def for_template(self) -> dict[str, Any]:
        """Return the turn as chat templates expect it: keys without a value are not there."""
        extra = {
            "name": self.name,
            "tool_calls": list(self.tool_calls),
            "tool_call_id": self.tool_call_id,
        }
        return {
            "role": self.role,
            "content": self.content,
            **{key: value for key, value in extra.items() if value},
        }


@dataclass(frozen=True)
class ChatRow:
    """A conversation; assistant turns that are not left out are the targets."""

    messages: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class AlpacaRow:
    """An instruction and its answer: a conversation where the model has a chat template."""

    instruction: str
    output: str
    input: str = ""
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PromptCompletionRow:
    """Two plain strings; the completion is the target."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class TextRow:
    """Plain text; all of it is the target."""

    text: str


@dataclass(frozen=True)
class TokenizedRow:
    """Token ids as given, nothing added; `is_target` says of each whether it is to be learned."""

    input_ids: tuple[int, ...]
    is_target: tuple[bool, ...]


Row = ChatRow | AlpacaRow | PromptCompletionRow | TextRow | TokenizedRow


def text_of(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    """Return a value that has to be text.

    Raises:
        BadRow: It is of another type, empty, or no valid Unicode.
    """
    if not isinstance(value, str):
        kind = "missing" if value is None else f"a {type(value).__name__}"
        raise BadRow("bad_type", f"{name} must be a string, it is {kind}")
    if not value and not may_be_empty:
        raise BadRow("empty", f"{name} is empty")
    if not value.isprintable() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow("not_utf8", f"{name} holds half of a surrogate pair, which is no character")
    return value


def require_json(value: Any, name: str) -> None:
    """Check that a nested value is one that JSON in UTF-8 can hold.

    Raises:
        BadRow: It holds half of a surrogate pair, a date, bytes, or the like.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            "not_utf8", f"{name} holds half of a surrogate pair, which is no character"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow("bad_type", f"{name} is not plain JSON: {error}") from error


def names_of(keys: Iterable[object]) -> str:
    """Name keys of the user's in a message, which must be short and valid Unicode."""
    text = ", ".join(sorted(map(str, keys))) or "none"
    return text[:_SHOWN_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def decoded(value: Any) -> Any:
    """Decode a list or object that a table holds as JSON text; anything else stays as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
