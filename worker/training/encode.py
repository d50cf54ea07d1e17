"""One row becomes token ids and a mask of the tokens that are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from app.domain.errors import UnusableData
from app.domain.rows import ChatRow, Message, PromptCompletionRow, Row, TextRow


@dataclass(frozen=True)
class RenderedRow:
    """A row as text, and the stretches of it, as (start, end) in characters, that are targets."""

    line: int
    text: str
    spans: tuple[tuple[int, int], ...]
    is_chat: bool

    def ends_a_turn(self, marks: tuple[str, ...]) -> bool:
        """Tell whether some assistant turn ends in one of `marks`."""
        return any(self.text[start:end].endswith(marks) for start, end in self.spans)


@dataclass(frozen=True)
class EncodedRow:
    """A row as tokens; `is_target` marks the ones that the loss is computed on."""

    line: int
    ids: np.ndarray
    is_target: np.ndarray

    @property
    def num_targets(self) -> int:
        """Targets that have a token before them to predict them."""
        return int(np.count_nonzero(self.is_target[1:]))


def render(line: int, row: Row, tokenizer: PreTrainedTokenizerBase) -> RenderedRow:
    """Write a row as the text that the model sees.

    Raises:
        UnusableData: The chat template refuses the row, or renders a conversation in such a way
            that its beginning changes when a turn is added.
    """
    match row:
        case ChatRow():
            return _Conversation(line, row.messages, tokenizer).render()
        case PromptCompletionRow():
            text = row.prompt + row.completion
            return RenderedRow(line, text, ((len(row.prompt), len(text)),), is_chat=False)
        case TextRow():
            return RenderedRow(line, row.text, ((0, len(row.text)),), is_chat=False)


def encode(
    rows: Sequence[RenderedRow], tokenizer: PreTrainedTokenizerBase, *, train_on_inputs: bool
) -> list[EncodedRow]:
    """Turn rendered rows into tokens; plain text gets the tokenizer's begin and end tokens.

    Raises:
        UnusableData: A text has to be ended and the tokenizer has no token for that.
    """
    encoded = tokenizer(
        [row.text for row in rows],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    first, last = first_token(tokenizer), tokenizer.eos_token_id
    if not isinstance(last, int) and not all(row.is_chat for row in rows):
        raise UnusableData("the tokenizer has no end-of-sequence token to end a text with")
    result: list[EncodedRow] = []
    for row, ids, offsets in zip(
        rows, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        is_target = _overlaps(offsets, row.spans)
        tokens = np.asarray(ids, dtype=np.int32)
        if not row.is_chat:
            assert isinstance(last, int)
            tokens, is_target = _framed(tokens, is_target, first, last)
        if train_on_inputs:
            is_target = np.ones_like(is_target)
        result.append(EncodedRow(row.line, tokens, is_target))
    return result


def first_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that the tokenizer itself puts before a plain text, if any."""
    ids = tokenizer("").input_ids
    return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None


def end_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the tokens that can mean "end of turn": the special and the added ones."""
    return tuple(
        {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    )


class _Conversation:
    """Finds the assistant turns of one conversation by comparing renderings of its beginnings.

    What the template adds for turn i is the text of turns 0..i less the text of turns 0..i-1 with
    the header of an assistant turn (`add_generation_prompt`). No marker is ever searched for, so a
    message that contains the template's own markers cannot move a boundary.
    """

    def __init__(
        self, line: int, messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._line = line
        self._messages = [{"role": m.role, "content": m.content} for m in messages]
        self._tokenizer = tokenizer

    def render(self) -> RenderedRow:
        whole = self._text(self._messages)
        spans = tuple(
            self._turn(index, whole)
            for index, message in enumerate(self._messages)
            if message["role"] == "assistant"
        )
        return RenderedRow(self._line, whole, spans, is_chat=True)

    def _turn(self, index: int, whole: str) -> tuple[int, int]:
        is_last = index == len(self._messages) - 1
        until = whole if is_last else self._text(self._messages[: index + 1])
        before = self._before(index)
        if not (whole.startswith(until) and until.startswith(before)):
            raise UnusableData(
                f"line {self._line}: the model's chat template changes the text before an assistant"
                f" turn (message {index}) when the turn is added, so its tokens cannot be told"
                " apart; split the conversation so that this turn comes last, or leave it out"
            )
        # Whitespace that the template puts after the end-of-turn token is not the model's to learn.
        return len(before), len(until.rstrip())

    def _before(self, index: int) -> str:
        if index > 0:
            return self._text(self._messages[:index], add_generation_prompt=True)
        # Many templates cannot render an empty conversation: compare two first turns instead.
        turns = [[{**self._messages[0], "content": text}] for text in ("a", "b")]
        one, other = (self._text(turn) for turn in turns)
        same = (a == b for a, b in zip(one, other, strict=False))
        return one[: sum(takewhile(bool, same))]

    def _text(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        try:
            text: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise UnusableData(
                f"line {self._line}: the model's chat template refuses the conversation: {error}"
            ) from error
        assert isinstance(text, str)
        return text


def _overlaps(offsets: Sequence[tuple[int, int]], spans: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Mark the tokens that have a character in one of the spans.

    A token may begin in the prompt and end in the target, where the tokenizer merges characters
    across the boundary. It counts as a target: leaving it out would silently lose a beginning.
    """
    starts_ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    is_target = np.zeros(len(starts_ends), dtype=bool)
    for begin, end in spans:
        is_target |= (starts_ends[:, 1] > begin) & (starts_ends[:, 0] < end)
    return is_target


def _framed(
    ids: np.ndarray, is_target: np.ndarray, first: int | None, last: int
) -> tuple[np.ndarray, np.ndarray]:
    head = [] if first is None else [first]
    return (
        np.concatenate([np.asarray(head, np.int32), ids, np.asarray([last], np.int32)]),
        np.concatenate([np.zeros(len(head), bool), is_target, np.ones(1, bool)]),
    )
