"""Conversations in the ShareGPT format: `from` and `value`, with the roles' many names."""

from collections.abc import Mapping
from typing import Any, cast

from app.domain import chat
from app.domain.row_types import BadRow, ChatRow, Turn, decoded, text_of

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_CALL = "function_call"


def parse(record: Mapping[str, Any]) -> ChatRow:
    """Read `conversations` with the optional columns `system` and `tools`.

    Turns may be written as `from` and `value` or as `role` and `content`. The value of a
    `function_call` turn is one call or a list of them, as JSON.

    Raises:
        BadRow: A turn is malformed, or no turn is the model's.
    """
    items = decoded(record.get("conversations"))
    if not isinstance(items, list) or not items:
        raise BadRow("bad_messages", "conversations must be a list of at least one turn")
    listed = enumerate(cast(list[Any], items))
    turns = [_turn(item, f"conversations[{index}]") for index, item in listed]
    chat.require_answer(turns, "conversations")
    system = record.get("system")
    if system not in (None, ""):
        if turns[0].role == "system":
            raise BadRow(
                "two_systems", "the row has a column system and a system turn; remove one of them"
            )
        turns.insert(0, Turn("system", text_of(system, "system")))
    return ChatRow(tuple(turns), chat.parse_tools(record.get("tools")))


def _turn(value: Any, name: str) -> Turn:
    if not isinstance(value, dict):
        raise BadRow("bad_messages", f"{name} must be an object with from and value")
    message = {k: v for k, v in cast(dict[str, Any], value).items() if v is not None}
    given = message.pop("from", None) or message.pop("role", None)
    content = message.pop("value", None) if "value" in message else message.pop("content", None)
    if given is None:
        raise BadRow("no_role", f"{name} has no from; give one of: {', '.join(_ROLES)}, {_CALL}")
    if given == _CALL:
        return chat.parse_turn(
            {**message, "role": "assistant", "tool_calls": _calls(content, name)}, name
        )
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise BadRow(
            "unknown_role",
            f"{name}.from is {str(given)[:40]!r}; give one of: {', '.join(_ROLES)}, {_CALL}",
        )
    return chat.parse_turn({**message, "role": role, "content": content}, name)


def _calls(value: Any, name: str) -> list[Any]:
    calls = decoded(value)
    if isinstance(calls, dict):
        return [cast(dict[str, Any], calls)]
    if isinstance(calls, list) and calls:
        return cast(list[Any], calls)
    raise BadRow(
        "bad_tool_calls",
        f'{name}.value must be a call as JSON: {{"name": "...", "arguments": {{...}}}}',
    )
