"""Rows of a CSV file: a header, then one record per row, which may span lines."""

import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from app.domain.containers import BrokenFile
from app.domain.lines import too_long
from app.domain.row_types import MAX_LINE_BYTES, BadRow, names_of

_BOM = "\ufeff"
_DELIMITERS = (",", ";", "\t")


def read(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Yield (row number from 1, cells by column) for every row below the header.

    The delimiter is the one of comma, semicolon and tab that the header has most of. Cells are
    text; a prompt and completion that are both lists of messages in JSON are decoded.

    Raises:
        BrokenFile: There is no usable header.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    feed = _Feed(file)
    reader = csv.reader(feed, delimiter=feed.delimiter(), strict=True)
    header = _header(reader)
    number = 0
    while True:
        feed.num_bytes = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except BadRow as bad:
            number += 1
            yield number, bad
            continue
        except csv.Error as error:
            number += 1
            yield number, BadRow("bad_csv", f"not valid CSV: {error}; check the quotes")
            continue
        if cells:
            number += 1
            yield number, _record(header, cells)


class _Feed:
    """The lines of a file as text, never more of one record than may be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._first: str | None = None
        self.num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        line = self._file.readline(MAX_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self.num_bytes += len(line)
        if self.num_bytes > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._file.readline(MAX_LINE_BYTES)
            self.num_bytes = 0
            raise too_long(MAX_LINE_BYTES)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRow(
                "not_utf8", f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8"
            ) from error

    def delimiter(self) -> str:
        try:
            line = next(self).removeprefix(_BOM)
            while not line.strip():
                line = next(self)
        except StopIteration:
            return ","
        except BadRow as bad:
            raise BrokenFile(f"the header: {bad.message}") from bad
        self._first = line
        return max(_DELIMITERS, key=line.count)


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        return []
    except (BadRow, csv.Error) as error:
        raise BrokenFile(f"the header is not valid CSV: {error}") from error
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
