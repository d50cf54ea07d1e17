"""Reading the data set: every line is trained on, cut, or left out for a reason that is counted."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.domain import checkpoints, lines, rows
from app.domain.errors import UnusableData
from app.domain.options import DatasetSpec
from app.domain.receipts import Receipt
from app.domain.rows import BadRow, RowFormat
from app.domain.runs import RunFile
from worker.training.encode import EncodedRow, RenderedRow, encode, end_marks, render

_ROWS_AT_ONCE = 512
TOO_LONG = "too_long"
NO_TARGETS = "no_targets"
NO_TARGETS_LEFT = "no_targets_within_max_length"


@dataclass
class TrainingData:
    """The rows to train on, and what happened to the others."""

    rows: list[EncodedRow] = field(default_factory=list)
    eval_rows: list[EncodedRow] = field(default_factory=list)
    units: Sequence[tuple[int, ...]] = ()
    num_rows: int = 0
    num_truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    has_chat: bool = False
    ends_turns: bool = False

    @property
    def num_dropped(self) -> int:
        return self.dropped.total()

    @property
    def receipt(self) -> Receipt:
        return Receipt(
            num_lines=self.num_rows,
            num_kept=len(self.rows) - self.num_truncated,
            num_truncated=self.num_truncated,
            num_dropped=self.num_dropped,
            dropped_reasons=dict(sorted(self.dropped.items())),
            num_train_rows=len(self.rows),
            num_eval_rows=len(self.eval_rows),
            num_tokens=sum(len(row.ids) for row in self.rows),
            num_target_tokens=sum(row.num_targets for row in self.rows),
            num_tokens_cut=0,
            longest_tokens=max((len(row.ids) for row in self.rows), default=0),
            num_turns_without_end=0,
            problems=(),
        )

    def fingerprint(self) -> str:
        """Hash every token and mask: equal fingerprints train equally."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.line} {len(row.ids)} ".encode())
            digest.update(row.ids.tobytes())
            digest.update(row.is_target.tobytes())
        return digest.hexdigest()


def load(run: RunFile, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Read, render, encode and cut the rows of a data set.

    Raises:
        UnusableData: The file is not the one that was accepted, a row cannot be used, or too
            little is left to train on.
    """
    path, sha256, row_format = run.dataset.path, run.dataset.sha256, run.dataset.format
    assert row_format is not None
    spec = run.spec.dataset
    if checkpoints.hash_file(path) != sha256:
        raise UnusableData("the data set's file is not the one that was uploaded (SHA-256 differs)")
    if row_format == "chat" and not tokenizer.chat_template:
        raise UnusableData(
            "the model's tokenizer has no chat template, so chat rows cannot be rendered; use"
            " prompt-completion or text rows, or an instruct model"
        )
    data = TrainingData()
    marks = end_marks(tokenizer)
    rendered = _rendered(path, tokenizer, row_format)
    while chunk := list(islice(rendered, _ROWS_AT_ONCE)):
        data.has_chat |= any(row.is_chat for row in chunk)
        data.ends_turns = data.ends_turns or any(row.ends_a_turn(marks) for row in chunk)
        for row in encode(chunk, tokenizer, train_on_inputs=spec.train_on_inputs):
            _admit(row, data, spec)
    _require_enough(data, spec)
    data.units = [(row,) for row in range(len(data.rows))]
    return data


def _rendered(
    path: Path, tokenizer: PreTrainedTokenizerBase, row_format: RowFormat
) -> Iterator[RenderedRow]:
    with path.open("rb") as file:
        numbered = lines.numbered(file)
        while True:
            try:
                number, line = next(numbered)
            except StopIteration:
                return
            except BadRow as error:
                raise UnusableData(error.message) from error
            try:
                row = rows.parse_line(line)
            except BadRow as error:
                raise UnusableData(f"line {number}: {error.message}") from error
            if rows.format_of(row) != row_format:
                raise UnusableData(
                    f"line {number} is a {rows.format_of(row)} row among {row_format} rows"
                )
            yield render(number, row, tokenizer)


def _admit(row: EncodedRow, data: TrainingData, spec: DatasetSpec) -> None:
    data.num_rows += 1
    length = len(row.ids)
    if row.num_targets == 0:
        data.dropped[NO_TARGETS] += 1
        return
    if length <= spec.max_length:
        data.rows.append(row)
        return
    match spec.on_too_long:
        case "fail":
            raise UnusableData(
                f"line {row.line} has {length} tokens, more than max_length {spec.max_length};"
                " raise max_length, shorten the row, or set on_too_long to truncate or drop",
                param="dataset.max_length",
            )
        case "drop":
            data.dropped[TOO_LONG] += 1
        case "truncate":
            _truncate(row, data, spec.max_length)


def _truncate(row: EncodedRow, data: TrainingData, max_length: int) -> None:
    cut = EncodedRow(row.line, row.ids[:max_length].copy(), row.is_target[:max_length].copy())
    if cut.num_targets == 0:
        data.dropped[NO_TARGETS_LEFT] += 1
        return
    data.num_truncated += 1
    data.rows.append(cut)


def _require_enough(data: TrainingData, spec: DatasetSpec) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(data.dropped.items()))
    if not data.rows:
        raise UnusableData(
            f"none of the {data.num_rows} rows has a token to train on ({reasons or 'no rows'})"
        )
    fraction = data.num_dropped / data.num_rows
    if fraction > spec.max_dropped_fraction:
        raise UnusableData(
            f"{data.num_dropped} of {data.num_rows} rows would be left out ({reasons}), more than"
            f" max_dropped_fraction {spec.max_dropped_fraction} allows",
            param="dataset.max_dropped_fraction",
        )
