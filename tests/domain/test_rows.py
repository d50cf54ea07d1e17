"""Rows: each of the three formats is read as written, and each fault has its own reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.rows import (
    ROLES,
    BadRow,
    ChatRow,
    Message,
    PromptCompletionRow,
    TextRow,
    format_of,
    parse_line,
    parse_record,
)

TEXTS = st.text(min_size=1)
MESSAGES = st.builds(Message, role=st.sampled_from(ROLES), content=TEXTS)
ASSISTANT = st.builds(Message, role=st.just("assistant"), content=TEXTS)
ROWS = st.one_of(
    st.builds(
        lambda before, answer: ChatRow((*before, answer)), st.lists(MESSAGES, max_size=4), ASSISTANT
    ),
    st.builds(PromptCompletionRow, prompt=st.text(), completion=TEXTS),
    st.builds(TextRow, text=TEXTS),
)
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def record_of(row: ChatRow | PromptCompletionRow | TextRow) -> dict[str, Any]:
    if isinstance(row, ChatRow):
        return {"messages": [vars(message) for message in row.messages]}
    return dict(vars(row))


def reason_of(line: bytes | dict[str, Any]) -> str:
    with pytest.raises(BadRow) as caught:
        parse_line(line if isinstance(line, bytes) else json.dumps(line).encode())
    caught.value.message.encode()
    return caught.value.reason


@given(ROWS, st.booleans())
def test_a_row_is_read_as_it_was_written(row: Any, ascii_only: bool):
    line = json.dumps(record_of(row), ensure_ascii=ascii_only).encode()

    assert parse_line(line) == row


@given(st.binary() | st.text(st.characters(codec=None)).map(lambda t: json.dumps({t: t}).encode()))
def test_any_line_is_a_row_or_a_bad_row_that_can_be_reported(line: bytes):
    try:
        parse_line(line)
    except BadRow as bad:
        bad.message.encode()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [USER, ANSWER]}, "chat"),
        ({"prompt": "a", "completion": "b"}, "prompt-completion"),
        ({"prompt": "", "completion": "b"}, "prompt-completion"),
        ({"prompt": [USER], "completion": [ANSWER]}, "chat"),
        ({"text": "a"}, "text"),
    ],
)
def test_the_keys_decide_the_format(record: dict[str, Any], expected: str):
    assert format_of(parse_record(record)) == expected


def test_a_conversational_prompt_and_completion_are_one_chat():
    row = parse_record({"prompt": [USER], "completion": [ANSWER]})

    assert row == ChatRow((Message("user", "Hi"), Message("assistant", "Hello")))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "caf\xe9"}', "not_utf8"),
        ('{"text": "a"}'.encode("utf-16"), "not_utf8"),
        (b'{"text": "a"', "bad_json"),
        (b"{'text': 'a'}", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"text": ' + b"9" * 10_000 + b"}", "bad_json"),
        (b'["a"]', "not_an_object"),
        (b'{"text": "a", "text": "b"}', "duplicate_key"),
        (b'{"text": "a", "meta": {"a": 1, "a": 1}}', "duplicate_key"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "duplicate_key"),
        (b'"a"', "not_an_object"),
        (b"null", "not_an_object"),
    ],
)
def test_a_line_that_holds_no_object_says_why(line: bytes, reason: str):
    assert reason_of(line) == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "unknown_format"),
        ({"instruction": "a", "output": "b"}, "unknown_format"),
        ({"\ud800": "a"}, "unknown_format"),
        ({"messages": []}, "bad_messages"),
        ({"messages": None}, "bad_messages"),
        ({"messages": "Hi"}, "bad_messages"),
        ({"messages": ["Hi"]}, "bad_messages"),
        ({"messages": [{"content": "Hi"}, ANSWER]}, "no_role"),
        ({"messages": [{"role": None, "content": "Hi"}, ANSWER]}, "no_role"),
        ({"messages": [{"role": "human", "content": "Hi"}, ANSWER]}, "unknown_role"),
        ({"messages": [{"role": ["user"], "content": "Hi"}, ANSWER]}, "unknown_role"),
        ({"messages": [USER]}, "no_assistant_turn"),
        ({"messages": [{**USER, "weight": 0}, ANSWER]}, "unsupported_key"),
        ({"messages": [{**USER, "\ud800": 0}, ANSWER]}, "unsupported_key"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": []}]}, "unsupported_key"),
        ({"messages": [USER, {"role": "assistant"}]}, "bad_type"),
        ({"messages": [USER, {"role": "assistant", "content": ["a"]}]}, "bad_type"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty"),
        ({"prompt": "a"}, "missing_key"),
        ({"completion": "a"}, "missing_key"),
        ({"prompt": "a", "completion": ""}, "empty"),
        ({"prompt": 1, "completion": "a"}, "bad_type"),
        ({"prompt": [USER], "completion": "a"}, "bad_type"),
        ({"prompt": [USER], "completion": []}, "no_assistant_turn"),
        ({"text": ""}, "empty"),
        ({"text": None}, "bad_type"),
        ({"text": "half \ud83d"}, "not_utf8"),
    ],
)
def test_a_row_that_cannot_be_trained_on_says_why(record: dict[str, Any], reason: str):
    assert reason_of(record) == reason


def test_the_fault_of_a_message_names_its_place():
    with pytest.raises(BadRow, match=r"messages\[1\] has no role"):
        parse_record({"messages": [USER, {"content": "Hello"}]})


def test_a_message_with_many_unknown_keys_gets_a_short_answer():
    with pytest.raises(BadRow) as caught:
        parse_record({f"key{n}": n for n in range(10_000)})

    assert len(caught.value.message) < 400
