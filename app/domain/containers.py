"""Files that hold rows: which container and compression they are, and opening them in bounds.

The content decides (magic bytes); the file's name is only asked where the content says nothing.
"""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.domain.datasets import Compression, Container
from app.domain.errors import TooLarge
from app.domain.rows import COLUMNS

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 65_536
_COMPRESSIONS: dict[bytes, Compression] = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
_REFUSED = {
    b"PK\x03\x04": "a zip archive (or an Excel workbook); unpack it, or save the sheet as CSV",
    b"BZh": "compressed with bzip2; compress it with gzip or zstd instead",
    b"\xfd7zXZ": "compressed with xz; compress it with gzip or zstd instead",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"\x80\x04\x95": "a pickle, which is never read; save it as JSONL or Parquet",
    b"%PDF": "a PDF document, which holds no rows",
}
_ENDINGS: dict[str, Container] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",  # an array is recognised by its first character
    ".csv": "csv",
    ".tsv": "csv",
}
_KNOWN_COLUMNS = frozenset[str]().union(*COLUMNS.values())


class BrokenFile(Exception):
    """A file that cannot be read as a whole; `message` says where it breaks and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def recognise(path: Path, filename: str = "") -> tuple[Container, Compression | None]:
    """Tell the container and the compression of a file.

    Raises:
        BrokenFile: It is of a known kind that holds no rows, or its compressed beginning is broken.
    """
    with path.open("rb") as file:
        magic = file.read(8)
    compression: Compression | None = None
    for key, name in _COMPRESSIONS.items():
        compression = name if magic.startswith(key) else compression
    with open_plain(path, compression) as plain:
        head = plain.read(_HEAD_BYTES)
    if compression is not None and any(head.startswith(key) for key in _COMPRESSIONS):
        raise BrokenFile("the file is compressed twice; compress it once")
    for key, what in _REFUSED.items():
        if head.startswith(key):
            raise BrokenFile(f"the file is {what}")
    return _container(head, filename), compression


def open_plain(
    path: Path, compression: Compression | None, *, max_bytes: int | None = None
) -> BinaryIO:
    """Open a file for reading what it holds once decompressed, piece by piece.

    Raises:
        TooLarge: While reading: it holds more than `max_bytes`.
        BrokenFile: While reading: it is cut off or damaged.
    """
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(_Decompressed(path, compression, max_bytes), _HEAD_BYTES)


class _Decompressed(io.RawIOBase):
    """What a compressed file holds, counted while it is read."""

    def __init__(self, path: Path, compression: Compression, max_bytes: int | None) -> None:
        self._compressed = path.open("rb")
        self._stream: Any = _stream(self._compressed, compression)
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            piece = cast(bytes, self._stream.read(len(buffer)))
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the file's
            raise BrokenFile(
                f"the compressed file is cut off or damaged ({error}); compress it again"
            ) from error
        self._num_bytes += len(piece)
        if self._max_bytes is not None and self._num_bytes > self._max_bytes:
            raise TooLarge(
                f"the file holds more than {self._max_bytes} bytes once decompressed"
                " (LORAD_MAX_UPLOAD_BYTES)",
                param="file",
            )
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._compressed.close()
        super().close()


def _stream(file: BinaryIO, compression: Compression) -> Any:
    if compression == "gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    return pyarrow().CompressedInputStream(file, "zstd")


def pyarrow() -> Any:
    """Return the module pyarrow, which is loaded when the first file needs it.

    It is large, and loading it starts threads, so neither the API at its start nor the warm fork
    server may have it.
    """
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    return cast(Any, pyarrow)


def _container(head: bytes, filename: str) -> Container:
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(_BOM).lstrip()
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "jsonl"
    endings = reversed([suffix.lower() for suffix in Path(filename).suffixes])
    for ending in endings:
        if ending in _ENDINGS:
            return _ENDINGS[ending]
    first = text.partition(b"\n")[0].decode("utf-8", "replace")
    has_delimiter = any(mark in first for mark in (",", ";", "\t"))
    return "csv" if has_delimiter or first.strip().strip('"') in _KNOWN_COLUMNS else "jsonl"
