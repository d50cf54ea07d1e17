"""Parts of an upload on the disk: written while they are counted, read one behind the other."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from app.domain.errors import InvalidInput
from app.domain.openai import ids

_CHUNK_BYTES = 1 << 20


def write(source: BinaryIO, target: Path, *, most: int) -> tuple[int, str]:
    """Store a part and return its size in bytes and its SHA-256.

    Raises:
        InvalidInput: It is empty, or has more than `most` bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = hashlib.sha256()
    size = 0
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise InvalidInput(
                    f"the part is larger than the whole file, for which {most} bytes were"
                    " announced",
                    param="data",
                    code="wrong_size",
                )
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if size == 0:
        raise InvalidInput("the part is empty; send its bytes as data", param="data")
    return size, digest.hexdigest()


def require_whole(paths: Sequence[Path], md5: str | None) -> None:
    """Check that all parts are there, and that together they are what the client has.

    Raises:
        InvalidInput: One is gone, or the MD5 is another.
    """
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InvalidInput(
            f"part {ids.show(missing[0])} is gone from the disk; cancel this upload and begin anew",
            param="part_ids",
            code="invalid_part",
        )
    if md5 is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    joined = Joined(paths)
    while chunk := joined.read(_CHUNK_BYTES):
        digest.update(chunk)
    if digest.hexdigest() != md5.lower():
        raise InvalidInput(
            f"the file has the MD5 {digest.hexdigest()} and not {md5}: a part is damaged, or they"
            " are in another order",
            param="md5",
            code="wrong_md5",
        )


class Joined:
    """Reads files one behind the other, and holds no more than was asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._left = list(paths)
        self._file: BinaryIO | None = None

    def read(self, size: int) -> bytes:
        while self._file is not None or self._left:
            if self._file is None:
                self._file = self._left.pop(0).open("rb")
            chunk = self._file.read(size)
            if chunk:
                return chunk
            self._file.close()
            self._file = None
        return b""
