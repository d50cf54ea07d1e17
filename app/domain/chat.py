"""Conversations in OpenAI's format: messages with roles, tool calls and weights, and tools."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from app.domain.row_types import ROLES, BadRow, Turn, decoded, names_of, require_json, text_of

_KEYS = frozenset({"role", "content", "name", "weight", "tool_calls", "tool_call_id"})
# Keys that carry nothing when they are empty; logs of OpenAI's API are full of them.
_EMPTY_IS_NOTHING: tuple[Any, ...] = (None, [], {}, "")


def parse_messages(value: Any, name: str) -> tuple[Turn, ...]:
    """Read a list of messages.

    Raises:
        BadRow: A message is malformed, or no assistant turn is there to learn from.
    """
    value = decoded(value)
    if not isinstance(value, list) or not value:
        raise BadRow("bad_messages", f"{name} must be a list of at least one message")
    items = enumerate(cast(list[Any], value))
    turns = tuple(parse_turn(item, f"{name}[{index}]") for index, item in items)
    require_answer(turns, name)
    return turns


def require_answer(turns: Sequence[Turn], name: str) -> None:
    """Check that some turn is the model's.

    Raises:
        BadRow: There is none.
    """
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRow(
            "no_assistant_turn", f"{name} has no assistant turn, so there is nothing to learn from"
        )


def parse_turn(value: Any, name: str) -> Turn:
    """Read one message.

    Raises:
        BadRow: It is malformed; the message says where.
    """
    message = _object(value, name, "bad_messages")
    role = message.get("role")
    if role is None:
        raise BadRow("no_role", f"{name} has no role; give one of: {', '.join(ROLES)}")
    if role not in ROLES:
        raise BadRow(
            "unknown_role", f"{name}.role is {str(role)[:40]!r}; give one of: {', '.join(ROLES)}"
        )
    _refuse_unknown(message, name)
    calls = _calls(message, name)
    return Turn(
        role=role,
        content=_content(message.get("content"), f"{name}.content", may_be_empty=bool(calls)),
        name=_optional_text(message, "name", name),
        tool_calls=calls,
        tool_call_id=_optional_text(message, "tool_call_id", name),
        is_left_out=_is_left_out(message, name),
    )


def parse_prompt_completion(prompt: list[Any], completion: list[Any]) -> tuple[Turn, ...]:
    """Read two lists of messages as one conversation of which only the second is learned.

    Raises:
        BadRow: A message is malformed, or the completion has no assistant turn.
    """
    before = [parse_turn(item, f"prompt[{index}]") for index, item in enumerate(prompt)]
    shown = (replace(turn, is_left_out=turn.role == "assistant") for turn in before)
    return (*shown, *parse_messages(completion, "completion"))


def parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read the tools that the model is told of; bare functions are wrapped as OpenAI has them.

    Raises:
        BadRow: They are no list of functions with names.
    """
    value = decoded(value)
    if value in _EMPTY_IS_NOTHING:
        return ()
    if not isinstance(value, list):
        raise BadRow("bad_tools", "tools must be a list of functions")
    require_json(value, "tools")
    return tuple(_tool(item, f"tools[{n}]") for n, item in enumerate(cast(list[Any], value)))


def parse_call(value: Any, name: str) -> Mapping[str, Any]:
    """Read one tool call; its arguments become an object, which is what chat templates expect.

    Raises:
        BadRow: It is no call of a function with a name and arguments.
    """
    call = _object(value, name, "bad_tool_calls")
    function = call.get("function", call if "name" in call else None)
    function = _object(function, f"{name}.function", "bad_tool_calls")
    given = function.get("arguments")
    arguments: Any = {} if given in (None, "") else decoded(given)
    if not isinstance(arguments, dict):
        raise BadRow("bad_tool_calls", f"{name}: the arguments must be a JSON object")
    require_json(arguments, f"{name}: the arguments")
    parsed: dict[str, Any] = {
        "type": "function",
        "function": {
            "name": text_of(function.get("name"), f"{name}.function.name"),
            "arguments": arguments,
        },
    }
    if call.get("id") is not None:
        parsed["id"] = text_of(call["id"], f"{name}.id")
    return parsed


def _refuse_unknown(message: Mapping[str, Any], name: str) -> None:
    unknown = {
        key for key, value in message.items() if key not in _KEYS and value not in _EMPTY_IS_NOTHING
    }
    if unknown:
        hint = "; give tool_calls instead" if "function_call" in unknown else ""
        raise BadRow(
            "unsupported_key",
            f"{name} has {names_of(unknown)}, which is not available in this version{hint}",
        )


def _calls(message: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    value = decoded(message.get("tool_calls"))
    if value in _EMPTY_IS_NOTHING:
        return ()
    if message["role"] != "assistant":
        raise BadRow("bad_tool_calls", f"{name}: only assistant turns have tool_calls")
    if not isinstance(value, list):
        raise BadRow("bad_tool_calls", f"{name}.tool_calls must be a list")
    calls = enumerate(cast(list[Any], value))
    return tuple(parse_call(call, f"{name}.tool_calls[{index}]") for index, call in calls)


def _content(value: Any, name: str, *, may_be_empty: bool) -> str:
    if value is None and may_be_empty:
        return ""
    if isinstance(value, list):
        value = "".join(_part(part, name) for part in cast(list[Any], value))
    return text_of(value, name, may_be_empty=may_be_empty)


def _part(value: Any, name: str) -> str:
    part = _object(value, f"a part of {name}", "bad_type")
    if part.get("type") != "text":
        raise BadRow(
            "unsupported_part",
            f"{name} has a part of type {str(part.get('type'))[:40]!r}; only text is trained on",
        )
    return text_of(part.get("text"), f"the text of a part of {name}", may_be_empty=True)


def _is_left_out(message: Mapping[str, Any], name: str) -> bool:
    weight = message.get("weight")
    if weight is None:
        return False
    # True and False are equal to 1 and 0, and mean no less.
    if weight not in (0, 1):
        raise BadRow("bad_weight", f"{name}.weight must be 0 (not learned) or 1")
    if message["role"] != "assistant" and weight:
        raise BadRow("bad_weight", f"{name}.weight: only assistant turns can be learned")
    return message["role"] == "assistant" and not weight


def _optional_text(message: Mapping[str, Any], key: str, name: str) -> str | None:
    value = message.get(key)
    return None if value in (None, "") else text_of(value, f"{name}.{key}")


def _tool(value: Any, name: str) -> Mapping[str, Any]:
    tool = _object(value, name, "bad_tools")
    function = tool.get("function", tool if "name" in tool else None)
    text_of(_object(function, f"{name}.function", "bad_tools").get("name"), f"{name}.function.name")
    return tool if "function" in tool else {"type": "function", "function": tool}


def _object(value: Any, name: str, reason: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        expected = "an object with role and content" if reason == "bad_messages" else "an object"
        raise BadRow(reason, f"{name} must be {expected}, it is a {kind}")
    return cast(dict[str, Any], value)
