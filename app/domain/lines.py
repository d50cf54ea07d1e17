"""Reading a file line by line in bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO

from app.domain.rows import MAX_LINE_BYTES, BadRow

_BOM = b"\xef\xbb\xbf"


def numbered(
    file: BinaryIO, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end) for every line that is not blank.

    A UTF-8 byte order mark at the start is skipped.

    Raises:
        BadRow: A line is longer than `max_line_bytes`; no more than that is ever read at once.
    """
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            raise BadRow(
                "line_too_long",
                f"line {number} is longer than {max_line_bytes} bytes; split the row",
            )
        text = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
        if text:
            yield number, text
