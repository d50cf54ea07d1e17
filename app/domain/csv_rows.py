"""Rows of a CSV file: a header, then one record per row, which may span lines."""

import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from app.domain.containers import BrokenFile
from app.domain.lines import too_long
from app.domain.row_types import MAX_LINE_BYTES, BadRow, names_of

_BOM = "\ufeff"
_DELIMITERS = (",", ";", "\t")
_QUOTE_WITHIN = re.compile('"("?)')
# More lines in one cell, all of which look like rows, are taken for rows that a stray quote
# swallowed; fewer may be a small table that somebody quoted.
_MANY_LINES = 50


def read(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Yield (line of the file on which it begins, cells by column) for every record.

    The delimiter is the one of comma, semicolon and tab that the header has most of. Cells are
    text; a prompt and completion that are both lists of messages in JSON are decoded. A quote that
    is opened and never closed spoils its own line; those after it are read as records again.

    Raises:
        BrokenFile: There is no usable header.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    feed = _Feed(file)
    reader = csv.reader(feed, delimiter=feed.delimiter, strict=True)
    header = _header(reader, feed)
    while True:
        feed.lines = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number = feed.lines[0].number
            yield number, _spoiled(feed, header, error)
            continue
        if cells or feed.lines[0].bad is not None:
            number = feed.lines[0].number
            yield number, _closed(feed, header, cells)


class _Line(NamedTuple):
    """A line of the file; a tuple because a file has millions.

    Args:
        bad: Why the record that it belongs to cannot be used.
        is_alone: Whether a record that begins with it has to end with it.
    """

    number: int
    text: str
    bad: BadRow | None = None
    is_alone: bool = False


class _Feed:
    """The lines of a file as text, never more of one record than may be.

    Those of the newest record, `lines`, can be given once more.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.lines: list[_Line] = []
        self.is_cut = False
        self._file = file
        self._again = deque[_Line]()
        self._number = 0
        self._num_characters = 0
        self.delimiter = self._delimiter()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self.lines:
            self._num_characters = 0
        self.is_cut = bool(self.lines) and self.lines[0].is_alone
        line = None if self.is_cut else self._next()
        if line is None:
            raise StopIteration
        self._num_characters += len(line.text)
        if self.lines and self._num_characters > MAX_LINE_BYTES:
            self._again.appendleft(line)
            self.is_cut = True
            raise StopIteration
        self.lines.append(line)
        return line.text

    def give_again(self, lines: Sequence[_Line]) -> None:
        self._again.extendleft(reversed(lines))

    def _next(self) -> _Line | None:
        if self._again:
            return self._again.popleft()
        line = self._file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return None
        self._number += 1
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._file.readline(MAX_LINE_BYTES)
            return _Line(self._number, "\n", too_long(MAX_LINE_BYTES))
        try:
            return _Line(self._number, line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8"
            # Read on with what stands for the bytes, so that the end of the record is found.
            text = line.decode("utf-8", "surrogateescape")
            return _Line(self._number, text, BadRow("not_utf8", problem))

    def _delimiter(self) -> str:
        line = self._next()
        while line is not None and not line.text.removeprefix(_BOM).strip() and line.bad is None:
            line = self._next()
        if line is None:
            return ","
        if line.bad is not None:
            raise BrokenFile(f"the header: {line.bad.message}")
        text = line.text.removeprefix(_BOM)
        if "\r" in text.rstrip("\r\n"):
            raise BrokenFile(
                "the lines end in CR alone, as on an old Mac; save the file with LF or CRLF"
            )
        self._again.append(line._replace(text=text))
        return max(_DELIMITERS, key=text.count)


def _spoiled(feed: _Feed, header: list[str], error: csv.Error) -> BadRow:
    """Say what is wrong with lines that are no record, and have those behind it read again."""
    lines = feed.lines
    is_never_closed = feed.is_cut or "end of data" in str(error)
    whole = lines if is_never_closed else lines[:-1]
    if not whole:
        return lines[0].bad or BadRow("bad_csv", f"not valid CSV: {error}; check the quotes")
    opened = _opened(whole, feed.delimiter)
    if _are_rows(lines[1:opened], header, feed.delimiter):
        opened = 0  # it was closed and opened by a later row that is odd too
    _read_again(feed, opened, is_last_whole=not is_never_closed)
    first, last = lines[0].number, lines[opened].number
    span = f"lines {first} to {last}: " if opened else ""
    return lines[0].bad or BadRow(
        "bad_csv",
        f"{span}the quote opened at line {last} is never closed; close it, and write a quote"
        ' within quotes twice ("")',
    )


def _closed(feed: _Feed, header: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    """Make a record of its cells, unless rows seem to have got into one of them."""
    lines = feed.lines
    bad = next((line.bad for line in lines if line.bad is not None), None)
    record = bad or _record(header, cells)
    if len(lines) == 1:
        return record
    if len(lines) > _MANY_LINES or isinstance(record, BadRow):
        least = 1 if isinstance(record, BadRow) else _MANY_LINES + 1
        for opened in (0, _opened(lines[:-1], feed.delimiter)):
            inner = lines[opened + 1 : -1]
            if len(inner) >= least and _are_rows(inner, header, feed.delimiter):
                _read_again(feed, opened, is_last_whole=True)
                return _swallowed(lines[opened].number, lines[-1].number)
    if isinstance(record, BadRow):
        span = f"lines {lines[0].number} to {lines[-1].number}"
        return BadRow(record.reason, f"{span}: {record.message}")
    return record


def _swallowed(first: int, last: int) -> BadRow:
    return BadRow(
        "bad_csv",
        f"the quote opened at line {first} is closed at line {last} only, and the lines between"
        " look like rows, so they are read as rows; close the quote, or give a table within a cell"
        " as JSONL",
    )


def _read_again(feed: _Feed, opened: int, *, is_last_whole: bool) -> None:
    """Give the lines behind the one of an open quote again.

    None of them closed it, so none begins a record that goes on in the next line; only the one
    that ended the record may. Each line is thus read three times at most.
    """
    again = [line._replace(is_alone=True) for line in feed.lines[opened + 1 :]]
    if again and is_last_whole:
        again[-1] = feed.lines[-1]
    feed.give_again(again)


def _opened(lines: Sequence[_Line], delimiter: str) -> int:
    """Return which of the lines opened the quote that is still open at the end of the last."""
    opening = re.compile(rf'(?:\A|{re.escape(delimiter)})"')
    opened, is_open = 0, False
    for index, line in enumerate(lines):
        found = (_QUOTE_WITHIN if is_open else opening).search(line.text)
        while found is not None:
            if not is_open:
                opened, is_open = index, True
            elif not found[1]:
                is_open = False
            found = (_QUOTE_WITHIN if is_open else opening).search(line.text, found.end())
    return opened


def _are_rows(lines: Sequence[_Line], header: list[str], delimiter: str) -> bool:
    """Tell whether each of the lines has a cell for each column, of which there are several."""
    if not lines or len(header) < 2:
        return False
    try:
        found = list(csv.reader((line.text for line in lines), delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return len(found) == len(lines) and all(len(cells) == len(header) for cells in found)


def _header(reader: Iterator[list[str]], feed: _Feed) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        return []
    except csv.Error as error:
        raise BrokenFile(f"the header is not valid CSV: {error}") from error
    for line in feed.lines:
        if line.bad is not None:
            raise BrokenFile(f"the header: {line.bad.message}")
    if not all(header):
        raise BrokenFile("the header has a column without a name; name every column")
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise BrokenFile(f"the header names {names_of(repeated)} twice; columns need unique names")
    return header


def _record(header: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    if len(cells) != len(header):
        return BadRow(
            "bad_csv",
            f"{len(cells)} cells, but the header has {len(header)} columns; put cells that hold"
            " the delimiter in quotes",
        )
    record: dict[str, Any] = dict(zip(header, cells, strict=True))
    messages = [_messages(record.get(name)) for name in ("prompt", "completion")]
    if all(value is not None for value in messages):
        record["prompt"], record["completion"] = messages
    return record


def _messages(cell: Any) -> list[Any] | None:
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    items = cast(list[Any], value)
    are_messages = all(isinstance(item, dict) and "role" in item for item in items)
    return items if items and are_messages else None
