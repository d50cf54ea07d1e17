"""Rows: each format is read as written, and each fault has its own reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.rows import (
    COLUMNS,
    ROLES,
    AlpacaRow,
    BadRow,
    ChatRow,
    PromptCompletionRow,
    RowFormat,
    TextRow,
    Turn,
    decode,
    detect,
    parse_record,
)

TEXTS = st.text(min_size=1)
TURNS = st.builds(Turn, role=st.sampled_from(ROLES), content=TEXTS, name=st.none() | TEXTS)
ASSISTANT = st.builds(Turn, role=st.just("assistant"), content=TEXTS, is_left_out=st.booleans())
PAIRS = st.tuples(TEXTS, TEXTS)
ROWS = st.one_of(
    st.builds(
        lambda before, answer: ChatRow((*before, answer)), st.lists(TURNS, max_size=4), ASSISTANT
    ),
    st.builds(
        AlpacaRow,
        instruction=TEXTS,
        output=TEXTS,
        input=st.text(),
        system=st.text(),
        history=st.lists(PAIRS, max_size=2).map(tuple),
    ),
    st.builds(PromptCompletionRow, prompt=st.text(), completion=TEXTS),
    st.builds(TextRow, text=TEXTS),
)
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
TURN_OF_USER, TURN_OF_ANSWER = Turn("user", "Hi"), Turn("assistant", "Hello")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}


def record_of(row: ChatRow | AlpacaRow | PromptCompletionRow | TextRow) -> dict[str, Any]:
    if not isinstance(row, ChatRow):
        return dict(vars(row))
    return {
        "messages": [
            turn.for_template() | ({"weight": 0} if turn.is_left_out else {})
            for turn in row.messages
        ]
    }


def reason_of(line: bytes | dict[str, Any], **options: Any) -> str:
    def read() -> None:
        record = decode(line if isinstance(line, bytes) else json.dumps(line).encode())
        parse_record(record, **options)

    with pytest.raises(BadRow) as caught:
        read()
    caught.value.message.encode()
    return caught.value.reason


@given(ROWS, st.booleans())
def test_a_row_is_read_as_it_was_written(row: Any, ascii_only: bool):
    line = json.dumps(record_of(row), ensure_ascii=ascii_only).encode()

    assert parse_record(decode(line)) == row


@given(st.binary() | st.text(st.characters(codec=None)).map(lambda t: json.dumps({t: t}).encode()))
def test_any_line_is_a_row_or_a_bad_row_that_can_be_reported(line: bytes):
    try:
        parse_record(decode(line))
    except BadRow as bad:
        bad.message.encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(
    st.sampled_from(sorted(COLUMNS)),
    st.dictionaries(st.sampled_from(sorted(set().union(*COLUMNS.values()))), JSON, max_size=6),
)
def test_any_value_in_a_known_column_is_read_or_refused(
    row_format: RowFormat, record: dict[str, Any]
):
    for chosen in (row_format, None):
        try:
            parse_record(record, row_format=chosen)
        except BadRow as bad:
            bad.message.encode()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [USER, ANSWER]}, "chat"),
        ({"messages": [USER, ANSWER], "text": "Hi Hello"}, "chat"),
        ({"prompt": [USER], "completion": [ANSWER]}, "chat"),
        ({"conversations": []}, "sharegpt"),
        ({"prompt": "a", "completion": "b"}, "prompt-completion"),
        ({"prompt": "", "completion": "b"}, "prompt-completion"),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b", "text": "c"}, "alpaca"),
        ({"input_ids": [1]}, "tokenized"),
        ({"text": "a"}, "text"),
        ({"prompt": "a", "answer": "b"}, None),
        ({"text": None}, None),
        ({}, None),
    ],
)
def test_the_columns_decide_the_format(record: dict[str, Any], expected: str | None):
    assert detect(record) == expected


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (
            {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
            ChatRow(
                (
                    TURN_OF_USER,
                    Turn("assistant", "Hello", is_left_out=True),
                    TURN_OF_USER,
                    TURN_OF_ANSWER,
                )
            ),
        ),
        (
            {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}]},
            ChatRow(
                (
                    TURN_OF_USER,
                    Turn("assistant", "Hello", is_left_out=True),
                    TURN_OF_USER,
                    TURN_OF_ANSWER,
                )
            ),
        ),
        (
            {"messages": [USER, ANSWER], "tools": [WEATHER], "parallel_tool_calls": False},
            ChatRow((TURN_OF_USER, TURN_OF_ANSWER), (WEATHER,)),
        ),
        (
            {"messages": [USER, ANSWER], "tools": json.dumps([WEATHER["function"]])},
            ChatRow((TURN_OF_USER, TURN_OF_ANSWER), (WEATHER,)),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]},
            ChatRow((TURN_OF_USER, TURN_OF_ANSWER)),
        ),
        (
            {"messages": [USER, ANSWER | {"refusal": None, "annotations": [], "audio": None}]},
            ChatRow((TURN_OF_USER, TURN_OF_ANSWER)),
        ),
        ({"messages": json.dumps([USER, ANSWER])}, ChatRow((TURN_OF_USER, TURN_OF_ANSWER))),
    ],
    ids=["prompt", "weight", "tools", "tools as text", "parts", "nulls", "messages as text"],
)
def test_a_conversation_is_read_as_openai_writes_it(record: dict[str, Any], row: ChatRow):
    assert parse_record(record) == row


@pytest.mark.parametrize(
    "arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'], ids=["object", "text"]
)
def test_the_arguments_of_a_tool_call_become_an_object(arguments: Any):
    call = {"id": "1", "type": "function", "function": {"name": "w", "arguments": arguments}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "1", "name": "w", "content": "rain"}

    row = parse_record({"messages": [USER, asked, told, ANSWER]})

    assert isinstance(row, ChatRow)
    assert row.messages[1].for_template() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [call | {"function": {"name": "w", "arguments": {"city": "Oslo"}}}],
    }
    assert row.messages[2].for_template() == told


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
        ({"instruction": "a"}, "bad_type"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "bad_history"),
        ({"question": "a", "answer": "b"}, "unknown_format"),
        ({"text": "a", "chosen": "b"}, "unsupported_key"),
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "unsupported_key"),
        ({"messages": [USER, ANSWER], "weight": 0.5}, "unsupported_key"),
        ({"messages": [USER, ANSWER], "tools": "weather"}, "bad_tools"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "bad_tools"),
        ({"messages": [USER, ANSWER | {"weight": 2}]}, "bad_weight"),
        ({"messages": [USER | {"weight": 1}, ANSWER]}, "bad_weight"),
        ({"messages": [USER | {"tool_calls": [CALL]}, ANSWER]}, "bad_tool_calls"),
        ({"messages": [USER, ANSWER | {"tool_calls": [{}]}]}, "bad_tool_calls"),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [{"name": "w", "arguments": "oops"}]}]},
            "bad_tool_calls",
        ),
        ({"messages": [USER, ANSWER | {"function_call": CALL}]}, "unsupported_key"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            "unsupported_part",
        ),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no_assistant_turn"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "unknown_role"),
        ({"conversations": [{"value": "a"}]}, "no_role"),
        ({"conversations": [{"from": "function_call", "value": "w()"}]}, "bad_tool_calls"),
        (
            {
                "conversations": [{"from": "system", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "c",
            },
            "two_systems",
        ),
        ({"input_ids": []}, "empty"),
        ({"input_ids": "abc"}, "bad_type"),
        ({"input_ids": [1, -1]}, "bad_type"),
        ({"input_ids": [1, 2], "labels": [2, 1]}, "bad_labels"),
        ({"input_ids": [1, 2], "labels": [1]}, "bad_length"),
        ({"input_ids": [1], "labels": [1], "loss_mask": [1]}, "two_masks"),
        ({"prompt": "a", "completion": "b", "tools": [WEATHER]}, "unsupported_key"),
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
        ({"messages": [{**USER, "mood": "good"}, ANSWER]}, "unsupported_key"),
        ({"messages": [{**USER, "\ud800": 0}, ANSWER]}, "unsupported_key"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": []}]}, "bad_type"),
        ({"messages": [USER, {"role": "assistant"}]}, "bad_type"),
        ({"messages": [USER, {"role": "assistant", "content": ["a"]}]}, "bad_type"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty"),
        ({"prompt": "a"}, "missing_key"),
        ({"completion": "a"}, "missing_key"),
        ({"prompt": "a", "completion": ""}, "empty"),
        ({"prompt": 1, "completion": "a"}, "bad_type"),
        ({"prompt": [USER], "completion": "a"}, "bad_type"),
        ({"prompt": [USER], "completion": []}, "bad_messages"),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "no_assistant_turn"),
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

    assert len(caught.value.message) < 500
