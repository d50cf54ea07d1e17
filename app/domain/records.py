"""The records of a stored file, one by one, whatever container and compression it has."""

import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from app.domain import csv_rows, lines, parquet_rows, rows
from app.domain.containers import BrokenFile, open_plain, recognise
from app.domain.datasets import Compression, Container
from app.domain.row_types import BadRow

__all__ = ["BrokenFile", "Record", "place", "read", "recognise"]

Record = dict[str, Any]
_COPY_BYTES = 65_536


def read(
    path: Path,
    *,
    container: Container,
    compression: Compression | None,
    max_bytes: int | None = None,
) -> Iterator[tuple[int, Record | BadRow]]:
    """Yield the number and the content of every record, in the order of the file.

    A record that cannot be read is yielded as a `BadRow`, and the ones after it are read on.

    Args:
        max_bytes: Most bytes that the file may hold once decompressed; None for a stored file,
            which was checked when it was uploaded.

    Returns:
        Pairs of a number from 1 and the decoded record. The number is that of the line in JSONL
        files (blank ones are counted and not yielded), of the line on which the record begins in
        CSV files, and of the row in others.

    Raises:
        BrokenFile: The file as a whole is broken from here on.
        TooLarge: It holds more than `max_bytes`.
    """
    with open_plain(path, compression, max_bytes=max_bytes) as file:
        match container:
            case "jsonl":
                yield from _decoded(lines.numbered(file))
            case "json":
                yield from _decoded(lines.elements(file))
            case "csv":
                yield from csv_rows.read(file)
            case "parquet":
                with _seekable(file, path.parent) as whole:
                    yield from parquet_rows.read(whole, max_bytes=max_bytes)


def place(container: Container, number: int) -> str:
    """Name a record for a message: `line 3` of a JSONL or CSV file, `row 3` of any other."""
    return f"{'line' if container in ('jsonl', 'csv') else 'row'} {number}"


def _decoded(
    texts: Iterator[tuple[int, bytes | BadRow]],
) -> Iterator[tuple[int, Record | BadRow]]:
    for number, text in texts:
        try:
            yield number, text if isinstance(text, BadRow) else rows.decode(text)
        except BadRow as bad:
            yield number, bad


@contextmanager
def _seekable(file: BinaryIO, folder: Path) -> Generator[BinaryIO]:
    """Give the file itself, or a copy of what it holds: Parquet is read from its end."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile(dir=folder) as copy:
        shutil.copyfileobj(file, copy, _COPY_BYTES)
        copy.seek(0)
        yield copy
