"""One row becomes token ids and a mask of the tokens that are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from app.domain.errors import UnusableData
from worker.training.render import RenderedRow, render
from worker.training.templates import Spans, end_marks

__all__ = ["EncodedRow", "RenderedRow", "encode", "end_marks", "first_token", "render"]


@dataclass(frozen=True)
class EncodedRow:
    """A row as tokens; `is_target` marks the ones that the loss is computed on.

    `num_turns_without_end` counts the assistant turns to learn that do not end in a special token:
    from them the model does not learn to stop.
    """

    line: int
    ids: np.ndarray
    is_target: np.ndarray
    num_turns_without_end: int = 0

    @property
    def num_targets(self) -> int:
        """Targets that have a token before them to predict them."""
        return int(np.count_nonzero(self.is_target[1:]))


def encode(
    rows: Sequence[RenderedRow], tokenizer: PreTrainedTokenizerBase, *, train_on_inputs: bool
) -> list[EncodedRow]:
    """Turn rendered rows into tokens; plain text gets the tokenizer's begin and end tokens.

    With `train_on_inputs` every token is a target, except those of turns that the row leaves out
    (weight 0). A row that cannot be encoded never gets here: `render` refuses it.

    Returns:
        One encoded row per rendered row, in their order.

    Raises:
        UnusableData: A text has to be ended and the tokenizer has no token for that.
    """
    encoded: Any = tokenizer(
        [row.text for row in rows],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    result: list[EncodedRow] = []
    for row, ids, offsets in zip(
        rows, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        if row.tokens is not None:
            tokens = np.asarray(row.tokens.input_ids, dtype=np.int32)
            is_target = np.asarray(row.tokens.is_target, dtype=bool) | train_on_inputs
        else:
            tokens, is_target = _masked(row, ids, offsets, train_on_inputs=train_on_inputs)
            if not row.is_chat:
                tokens, is_target = _framed(tokens, is_target, tokenizer, train_on_inputs)
        result.append(EncodedRow(row.line, tokens, is_target, row.num_turns_without_end))
    return result


def first_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that the tokenizer itself puts before a plain text, if any."""
    ids = tokenizer("").input_ids
    return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None


def _masked(
    row: RenderedRow,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    *,
    train_on_inputs: bool,
) -> tuple[np.ndarray, np.ndarray]:
    is_target = _overlaps(offsets, row.spans)
    if train_on_inputs:
        is_target |= ~_overlaps(offsets, row.left_out)
    return np.asarray(ids, dtype=np.int32), is_target


def _overlaps(offsets: Sequence[tuple[int, int]], spans: Spans) -> np.ndarray:
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
    ids: np.ndarray,
    is_target: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    train_on_inputs: bool,
) -> tuple[np.ndarray, np.ndarray]:
    first, last = first_token(tokenizer), tokenizer.eos_token_id
    if not isinstance(last, int):
        raise UnusableData("the tokenizer has no end-of-sequence token to end a text with")
    head = [] if first is None else [first]
    return (
        np.concatenate([np.asarray(head, np.int32), ids, np.asarray([last], np.int32)]),
        np.concatenate([np.full(len(head), train_on_inputs), is_target, np.ones(1, bool)]),
    )
