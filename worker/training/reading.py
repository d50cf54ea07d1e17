"""Reading a data set: every line becomes tokens, or the reason why it cannot be used."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from transformers import PreTrainedTokenizerBase

from app.domain import records, rows
from app.domain.datasets import DataFile
from app.domain.errors import UnusableData
from app.domain.options import DatasetSpec
from app.domain.receipts import LineProblem
from app.domain.records import BrokenFile, Record
from app.domain.rows import BadRow, RowFormat
from worker.training import pulse
from worker.training.encode import EncodedRow, encode
from worker.training.render import RenderedRow, render

_ROWS_AT_ONCE = 512
TOO_LONG = "too_long"
NO_TARGETS = "no_targets"
NO_TARGETS_LEFT = "no_targets_within_max_length"


@dataclass(frozen=True)
class Source:
    """A stored data set, and how its rows become tokens."""

    file: DataFile
    options: DatasetSpec

    @property
    def row_format(self) -> RowFormat | None:
        """Format of all rows; None where the columns of each row decide."""
        return rows.format_for(
            self.file.format, override=self.options.format, mapping=self.options.field_mapping
        )


@dataclass(frozen=True)
class Line:
    """A line with content: its whole row as tokens, or what is wrong with it."""

    number: int
    rendered: RenderedRow | None = None
    row: EncodedRow | None = None
    bad: BadRow | None = None

    @property
    def num_turns(self) -> int:
        """Assistant turns to learn."""
        return len(self.rendered.spans) if self.rendered and self.rendered.is_chat else 0

    @property
    def num_turns_without_end(self) -> int:
        """Of those, the ones that do not end in a special token."""
        return self.rendered.num_turns_without_end if self.rendered else 0


@dataclass(frozen=True)
class Fate:
    """What becomes of a line: `row` is what is trained on, None when it is dropped."""

    line: int
    row: EncodedRow | None
    problem: LineProblem | None = None


def examine(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    offset: int = 0,
    at_once: int = _ROWS_AT_ONCE,
) -> Iterator[Line]:
    """Yield every line of the data set in the order of the file.

    Args:
        source: The data set.
        tokenizer: Of the model to train.
        offset: Lines to pass over first.
        at_once: Lines that are read before the first of them is yielded.

    Raises:
        UnusableData: The file as a whole cannot be used, or not with this tokenizer.
    """
    parsed = _rendered(source, tokenizer, offset)
    while chunk := list(islice(parsed, at_once)):
        pulse.beat()
        texts = [line.rendered for line in chunk if line.rendered is not None]
        encoded = iter(
            encode(texts, tokenizer, train_on_inputs=source.options.train_on_inputs)
            if texts
            else ()
        )
        for line in chunk:
            yield line if line.rendered is None else replace(line, row=next(encoded))


def fate_of(line: Line, options: DatasetSpec) -> Fate:
    """Decide what becomes of a line.

    `on_too_long: fail` leaves a long line out as `drop` does; who reads the receipt then fails.
    """
    row = line.row
    if row is None:
        assert line.bad is not None
        return _dropped(line.number, line.bad.reason, line.bad.message)
    length = len(row.ids)
    if row.num_targets == 0:
        return _dropped(
            line.number,
            NO_TARGETS,
            "no token to train on; is the completion, or every assistant turn, empty?",
            num_tokens=length,
        )
    if length <= options.max_length:
        return Fate(line.number, row)
    if options.on_too_long != "truncate":
        return _dropped(
            line.number,
            TOO_LONG,
            f"{length} tokens, more than max_length {options.max_length}; raise max_length, shorten"
            " the row, or set on_too_long",
            num_tokens=length,
        )
    return _truncated(row, options.max_length)


def _rendered(source: Source, tokenizer: PreTrainedTokenizerBase, offset: int) -> Iterator[Line]:
    file = source.file
    numbered = records.read(file.path, container=file.container, compression=file.compression)
    try:
        for number, record in islice(numbered, offset, None):
            yield _one(number, record, source, tokenizer)
    except BrokenFile as broken:
        raise UnusableData(broken.message) from broken


def _one(
    number: int,
    record: Record | BadRow,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
) -> Line:
    if isinstance(record, BadRow):
        return Line(number, bad=record)
    options = source.options
    try:
        row = rows.parse_record(record, row_format=source.row_format, mapping=options.field_mapping)
        rendered = render(number, row, tokenizer, chat_template=options.chat_template)
    except BadRow as bad:
        return Line(number, bad=bad)
    return Line(number, rendered=rendered)


def _dropped(line: int, reason: str, detail: str, *, num_tokens: int | None = None) -> Fate:
    problem = LineProblem(
        line=line, fate="dropped", reason=reason, detail=detail, num_tokens=num_tokens
    )
    return Fate(line, None, problem)


def _truncated(row: EncodedRow, max_length: int) -> Fate:
    length = len(row.ids)
    cut = EncodedRow(row.line, row.ids[:max_length], row.is_target[:max_length])
    if cut.num_targets == 0:
        return _dropped(
            row.line,
            NO_TARGETS_LEFT,
            f"the first {max_length} of its {length} tokens (max_length) hold none to train on;"
            " raise max_length, or shorten the prompt",
            num_tokens=length,
        )
    problem = LineProblem(
        line=row.line,
        fate="truncated",
        reason=TOO_LONG,
        detail=f"{length} tokens cut to max_length {max_length}; its end is not trained on",
        num_tokens=length,
        num_tokens_cut=length - max_length,
    )
    return Fate(row.line, cut, problem)
