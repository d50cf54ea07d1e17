"""The rows of a comparison: conversations of a file, their tokens, and lorad's order."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from worker.training.sampler import Sampler

Chat = list[dict[str, str]]
Row = dict[str, list[int]]

# How many exchanges the conversations with mixed lengths have, in turn.
_EXCHANGES = (1, 2, 1, 1, 3, 1, 1, 2)


def conversations(path: Path, *, is_mixed: bool) -> Iterator[Chat]:
    """Yield the conversations of a file, joined to longer ones where lengths shall be mixed."""
    with path.open() as file:
        chats = [_chat(line, number, path) for number, line in enumerate(file, 1) if line.strip()]
    if not is_mixed:
        yield from chats
        return
    remaining, turn = iter(chats), 0
    while joined := [chat for _, chat in zip(range(_EXCHANGES[turn]), remaining, strict=False)]:
        yield [message for chat in joined for message in chat]
        turn = (turn + 1) % len(_EXCHANGES)


def _chat(line: str, number: int, path: Path) -> Chat:
    try:
        messages: Any = json.loads(line)["messages"]
    except (ValueError, KeyError, TypeError):
        messages = None
    if not isinstance(messages, list):
        raise SystemExit(
            f"{path}, line {number}: no `messages`; the comparison needs chat rows, one JSON"
            " object a line"
        )
    return cast(Chat, messages)


def visiting_order(num_rows: int, *, batch_size: int, seed: int) -> list[int]:
    """Return the rows of lorad's first epoch in the order in which its sampler visits them."""
    sampler = Sampler(num_units=num_rows, units_per_step=batch_size, seed=seed)
    steps = range(1, sampler.steps_per_epoch + 1)
    return [row for step in steps for row in sampler.units_of(step)]


def placed(rows: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Return the rows so placed that a visit in `order` meets them as they were given."""
    placed: list[Any] = [None] * len(rows)
    for row, place in zip(rows, order, strict=True):
        placed[place] = row
    return placed


def encode(chat: Chat, tokenizer: Any) -> Row:
    """Return tokens and labels: assistant turns with their end mark are targets."""
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    starts, ends = np.asarray(encoded["offset_mapping"]).T
    is_target = np.zeros(len(ids), dtype=bool)
    for index, message in enumerate(chat):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(
                chat[:index], tokenize=False, add_generation_prompt=True
            )
            until = tokenizer.apply_chat_template(chat[: index + 1], tokenize=False).rstrip()
            is_target |= (ends > len(before)) & (starts < len(until))
    labels = np.where(is_target, ids, -100)
    return {"input_ids": ids, "labels": labels.tolist()}
