"""Reading a file in bounded memory: line by line, or a JSON array element by element."""

import re
from collections.abc import Generator, Iterator
from typing import BinaryIO

from app.domain.containers import BrokenFile
from app.domain.row_types import MAX_LINE_BYTES, BadRow

_BOM = b"\xef\xbb\xbf"
_PIECE_BYTES = 65_536
_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def numbered(
    file: BinaryIO, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (line number from 1, line without its end) for every line that is not blank.

    A UTF-8 byte order mark at the start is skipped. A line that is longer than `max_line_bytes` is
    skipped in pieces and yielded as a `BadRow`; no more than that is ever held.
    """
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(max_line_bytes)
            yield number, too_long(max_line_bytes)
            continue
        text = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
        if text:
            yield number, text


def elements(
    file: BinaryIO, *, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (number from 1, text) for every element of the JSON array that a file holds.

    Elements are told apart by brackets, quotes and commas only: one that is no valid JSON spoils
    itself, not the ones after it.

    Raises:
        BrokenFile: The array does not end, or something follows its end.
    """
    splitter = _Splitter(max_bytes)
    while piece := file.read(_PIECE_BYTES):
        yield from splitter.take(piece)
    if not splitter.is_closed:
        raise BrokenFile(
            f"row {splitter.number + 1}: the file ends before its array does; it is cut off, or a"
            " bracket or quote is missing"
        )


def too_long(max_bytes: int) -> BadRow:
    return BadRow("line_too_long", f"longer than {max_bytes} bytes; split the row")


class _Splitter:
    """Where in an array the text is: inside a string, or so many brackets deep."""

    def __init__(self, max_bytes: int) -> None:
        self.number = 0
        self.is_closed = False
        self._max_bytes = max_bytes
        self._text = bytearray()
        self._size = 0
        self._depth = -1  # 0 once the array has begun
        self._is_string = False
        self._skips_one = False

    def take(self, piece: bytes) -> Iterator[tuple[int, bytes | BadRow]]:
        if self._depth < 0:
            piece = self._begun(piece)
        if self._depth < 0:
            return
        rest = yield from self._split(piece)
        if not self.is_closed:
            self._keep(rest)
        elif rest.strip():
            raise BrokenFile(
                f"something follows the array, which ends after {self.number} rows; a JSON file"
                " holds one array, a JSONL file one object per line"
            )

    def _split(self, piece: bytes) -> Generator[tuple[int, bytes | BadRow], None, bytes]:
        """Yield the elements that end in a piece; return what is left of it."""
        # The last piece may have ended in a backslash.
        at, kept, self._skips_one = int(self._skips_one), 0, False
        while not self.is_closed:
            found = (_INSIDE if self._is_string else _OUTSIDE).search(piece, at)
            if found is None:
                break
            at = found.end()
            if self._is_string and found[0] == b"\\":
                at += 1
                self._skips_one = at > len(piece)
            elif self._ends_element(found[0]):
                self._keep(piece[kept : at - 1])
                kept = at
                yield from self._element()
        return piece[kept:]

    def _begun(self, piece: bytes) -> bytes:
        """Take what comes before the first element away."""
        self._text += piece
        text = bytes(self._text).removeprefix(_BOM).lstrip()
        if text and not _BOM.startswith(text):
            if not text.startswith(b"["):
                raise BrokenFile("the file is no JSON array: it does not begin with [")
            self._depth = 0
            self._text.clear()
            return text[1:]
        return b""

    def _ends_element(self, mark: bytes) -> bool:
        if mark == b'"':
            self._is_string = not self._is_string
        elif self._depth == 0 and mark in b",]}":
            self.is_closed = mark == b"]"
            return mark != b"}"
        elif mark in b"[{":
            self._depth += 1
        elif mark in b"]}":
            self._depth -= 1
        return False

    def _keep(self, text: bytes) -> None:
        self._size += len(text)
        if self._size <= self._max_bytes:
            self._text += text

    def _element(self) -> Iterator[tuple[int, bytes | BadRow]]:
        text, size = bytes(self._text).strip(), self._size
        self._text.clear()
        self._size = 0
        if self.is_closed and self.number == 0 and not text and size <= self._max_bytes:
            return  # an empty array
        self.number += 1
        yield self.number, text if size <= self._max_bytes else too_long(self._max_bytes)
