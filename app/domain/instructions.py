"""The alpaca format: an instruction, an optional input, and the output to learn.

For a model with a chat template a row is a conversation. For a model without one it is written out
with the prompts that the format is named after.
"""

from collections.abc import Mapping
from typing import Any, cast

from app.domain.row_types import (
    AlpacaRow,
    BadRow,
    ChatRow,
    PromptCompletionRow,
    Turn,
    decoded,
    text_of,
)

# Source: github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request."
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)


def parse(record: Mapping[str, Any]) -> AlpacaRow:
    """Read `instruction` and `output` with the optional `input`, `system` and `history`.

    Raises:
        BadRow: A value is missing or of the wrong type.
    """
    return AlpacaRow(
        instruction=text_of(record.get("instruction"), "instruction"),
        output=text_of(record.get("output"), "output"),
        input=_optional(record, "input"),
        system=_optional(record, "system"),
        history=_history(record.get("history")),
    )


def as_chat(row: AlpacaRow) -> ChatRow:
    """Write a row as a conversation; answers of its history are learned too."""
    turns = [Turn("system", row.system)] if row.system else []
    for question, answer in row.history:
        turns += [Turn("user", question), Turn("assistant", answer)]
    question = f"{row.instruction}\n{row.input}" if row.input else row.instruction
    return ChatRow((*turns, Turn("user", question), Turn("assistant", row.output)))


def as_prompt(row: AlpacaRow) -> PromptCompletionRow:
    """Write a row with Alpaca's own prompt; only its output is learned."""
    parts = [row.system or (_WITH_INPUT if row.input else _WITHOUT_INPUT)]
    for question, answer in row.history:
        parts += [f"### Instruction:\n{question}", f"### Response:\n{answer}"]
    parts.append(f"### Instruction:\n{row.instruction}")
    if row.input:
        parts.append(f"### Input:\n{row.input}")
    return PromptCompletionRow("\n\n".join([*parts, "### Response:\n"]), row.output)


def _optional(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return "" if value is None else text_of(value, key, may_be_empty=True)


def _history(value: Any) -> tuple[tuple[str, str], ...]:
    value = decoded(value)
    if value in (None, "", []):
        return ()
    if not isinstance(value, list):
        raise BadRow("bad_history", "history must be a list of [question, answer] pairs")
    pairs: list[tuple[str, str]] = []
    for index, item in enumerate(cast(list[Any], value)):
        match item:
            case [question, answer]:
                name = f"history[{index}]"
                pairs.append((text_of(question, f"{name}[0]"), text_of(answer, f"{name}[1]")))
            case _:
                raise BadRow("bad_history", f"history[{index}] must be [question, answer]")
    return tuple(pairs)
