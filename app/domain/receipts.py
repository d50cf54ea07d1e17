"""The receipt of a data set: what became of every line, in counts and by line number."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

MAX_PROBLEMS = 100


class LineProblem(BaseModel):
    """A line that was not trained on whole, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    line: int
    """Line of the file, from 1, on which the row begins; for JSON arrays and Parquet the number of
    the row."""
    fate: Literal["truncated", "dropped"]
    """`truncated`: trained on without its end; `dropped`: not trained on."""
    reason: str
    """Stable name of the reason: too_long, no_targets, bad_json, ..."""
    detail: str
    """What is wrong with the line and what to do."""
    num_tokens: int | None = None
    """Tokens of the whole line, where it could be tokenized."""
    num_tokens_cut: int = 0
    """Tokens that were cut off."""


class Receipt(BaseModel):
    """What became of every line of a data set; the fates add up to num_lines."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_lines: int
    """Lines with content in the file."""
    num_kept: int
    """Lines used whole."""
    num_truncated: int
    """Lines used without their end."""
    num_dropped: int
    """Lines left out."""
    dropped_reasons: dict[str, int]
    """Reason -> lines left out for it; no_targets are lines without a token to train on."""
    num_train_rows: int
    """Rows trained on: kept and truncated, less those held out."""
    num_eval_rows: int
    """Rows held out for evaluation by val_size."""
    num_units: int
    """What an epoch goes through: the rows trained on, or with packing the packs made of them."""
    num_tokens: int
    """Tokens of the rows trained on, once over."""
    num_target_tokens: int
    """Of those, the ones that the loss is computed on."""
    num_tokens_cut: int
    """Tokens lost by truncation."""
    longest_tokens: int
    """Tokens of the longest row as trained on."""
    num_turns_without_end: int
    """Assistant turns whose end-of-turn token is not among the targets."""
    problems: tuple[LineProblem, ...]
    """The first 100 lines that were cut or left out, in the order of the file."""


class LineFate(BaseModel):
    """What became of one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    line: int
    """Line of the file, from 1, on which the row begins; for JSON arrays and Parquet the number of
    the row."""
    fate: Literal["kept", "truncated", "dropped"]
    """`kept`: used whole; `truncated`: used without its end; `dropped`: not used."""
    held_out: bool = False
    """Whether it is evaluated on and not trained on."""
    num_tokens: int | None = None
    """Tokens that are used of it; of a dropped line the tokens it has, where it has any."""
    num_target_tokens: int = 0
    """Of those used, the ones that the loss is computed on."""
    num_tokens_cut: int = 0
    """Tokens that were cut off."""
    reason: str | None = None
    """Stable name of the reason why it was cut or dropped."""
    detail: str | None = None
    """What is wrong with the line and what to do."""
