"""The formats of other tools, and columns under other names, become rows like any other."""

import json
from typing import Any

import pytest

from app.domain import instructions
from app.domain.rows import (
    AlpacaRow,
    ChatRow,
    PromptCompletionRow,
    TokenizedRow,
    Turn,
    format_for,
    ignored_keys,
    parse_record,
)

TURN_OF_USER, TURN_OF_ANSWER = Turn("user", "Hi"), Turn("assistant", "Hello")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}


@pytest.mark.parametrize(
    ("user", "assistant"), [("human", "gpt"), ("user", "model"), ("human", "bot")]
)
def test_sharegpt_roles_have_many_names(user: str, assistant: str):
    row = parse_record(
        {
            "conversations": [
                {"from": user, "value": "Hi"},
                {"from": assistant, "value": "Hello"},
            ],
            "system": "Be brief.",
        }
    )

    assert row == ChatRow((Turn("system", "Be brief."), TURN_OF_USER, TURN_OF_ANSWER))


def test_a_sharegpt_function_call_is_a_tool_call():
    row = parse_record(
        {
            "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "yes"},
                {"from": "gpt", "value": "It rains."},
            ],
            "tools": json.dumps([WEATHER["function"]]),
        }
    )

    assert row == ChatRow(
        (
            Turn("user", "Rain?"),
            Turn("assistant", tool_calls=({"type": "function", "function": CALL},)),
            Turn("tool", "yes"),
            Turn("assistant", "It rains."),
        ),
        (WEATHER,),
    )


def test_an_alpaca_row_is_a_conversation_or_alpacas_own_prompt():
    row = AlpacaRow("Add.", "5", input="2 3", system="Be brief.", history=(("1 1", "2"),))

    assert instructions.as_chat(row) == ChatRow(
        (
            Turn("system", "Be brief."),
            Turn("user", "1 1"),
            Turn("assistant", "2"),
            Turn("user", "Add.\n2 3"),
            Turn("assistant", "5"),
        )
    )
    # Written down from train.py of tatsu-lab/stanford_alpaca.
    assert instructions.as_prompt(AlpacaRow("Add.", "5", input="2 3")) == PromptCompletionRow(
        "Below is an instruction that describes a task, paired with an input that provides further"
        " context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 3\n\n### Response:\n",
        "5",
    )
    assert instructions.as_prompt(AlpacaRow("Add.", "5")).prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("extra", "is_target"),
    [
        ({}, (True, True, True)),
        ({"labels": [-100, 6, 7]}, (False, True, True)),
        ({"loss_mask": [0, 0, 1]}, (False, False, True)),
        ({"assistant_masks": [False, True, False]}, (False, True, False)),
        ({"labels": "[-100, 6, 7]", "attention_mask": [1, 1, 1]}, (False, True, True)),
    ],
)
def test_labels_or_a_mask_say_which_tokens_are_learned(
    extra: dict[str, Any], is_target: tuple[bool, ...]
):
    assert parse_record({"input_ids": [5, 6, 7], **extra}) == TokenizedRow((5, 6, 7), is_target)


def test_padding_of_tokenized_rows_is_left_out():
    row = parse_record(
        {"input_ids": [0, 5, 6], "labels": [-100, 5, 6], "attention_mask": [0, 1, 1]}
    )

    assert row == TokenizedRow((5, 6), (True, True))


def test_columns_can_be_mapped():
    record = {"question": "2 + 2", "answer": "4", "text": "other"}

    row = parse_record(record, mapping={"prompt": "question", "completion": "answer"})

    assert row == PromptCompletionRow("2 + 2", "4")


def test_a_column_that_is_mapped_away_is_not_there_any_more():
    row = parse_record({"text": "a", "b": "c"}, mapping={"prompt": "text", "completion": "b"})

    assert row == PromptCompletionRow("a", "c")


def test_the_format_of_a_job_is_its_own_or_what_was_found_or_decided_by_each_row():
    assert format_for("chat", override="text", mapping=None) == "text"
    assert format_for("chat", override="auto", mapping=None) == "chat"
    assert format_for("chat", override="auto", mapping={"text": "body"}) is None


def test_keys_that_the_format_does_not_use_are_told():
    record = {"text": "a", "id": 1, "instruction": "b", "none": None}

    assert ignored_keys(record, "text") == {"id", "instruction"}
