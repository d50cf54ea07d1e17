"""A data set as tokens in memory-mapped files: written once, checked and mapped when it is used."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from app.domain import checkpoints, receipts
from app.domain.checkpoints import ManifestFile
from app.domain.receipts import LineProblem
from app.domain.runs import TOKENS_USED_FILE
from worker.training.encode import EncodedRow
from worker.training.reading import Fate, Line

MANIFEST = TOKENS_USED_FILE
_IDS, _TARGETS, _INDEX = _CONTENT = ("ids.bin", "targets.bin", "rows.bin")
_PROBLEMS, _TALLY = "problems.jsonl", "receipt.json"
# One entry per row; `line` is its line in the file, `num_cut` the tokens that were cut off.
_ENTRY = np.dtype([("line", "<i8"), ("length", "<i4"), ("num_targets", "<i4"), ("num_cut", "<i4")])


class Tally(BaseModel):
    """What became of the lines of a file, before any of them is held out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_lines: int
    num_truncated: int
    dropped_reasons: dict[str, int]
    num_tokens_cut: int
    num_turns: int
    num_turns_without_end: int
    problems: tuple[LineProblem, ...]


class Manifest(BaseModel):
    """Content of MANIFEST.json, which is written last; `made_of` is what decided the tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_of: dict[str, Any]
    id_type: str
    files: tuple[ManifestFile, ...]


class DamagedTokens(Exception):
    """The files are not those that were written."""


class TokenRows(Sequence[EncodedRow]):
    """Rows that are read from the mapped files when they are asked for.

    Args:
        ids: All token ids, row after row.
        targets: A bit per token; every row starts with a new byte.
        index: An `_ENTRY` per row.
        starts: Where each row starts in `ids` and, in bytes, in `targets`.
    """

    def __init__(
        self,
        ids: np.ndarray,
        targets: np.ndarray,
        index: np.ndarray,
        starts: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self._ids, self._targets, self._index, self._starts = ids, targets, index, starts

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        line, length, _, _ = self._index[key].tolist()
        start, byte = int(self._starts[0][key]), int(self._starts[1][key])
        bits = np.unpackbits(self._targets[byte : byte + -(-length // 8)], count=length)
        return EncodedRow(line, self._ids[start : start + length].astype(np.int32), bits.view(bool))

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[number] for number in range(len(self)))

    @property
    def lines(self) -> np.ndarray:
        return self._index["line"]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return self._index["length"]

    @property
    def num_targets(self) -> np.ndarray:
        """Targets of each row."""
        return self._index["num_targets"]

    @property
    def num_cut(self) -> np.ndarray:
        """Tokens that each row lost."""
        return self._index["num_cut"]

    def take(self, numbers: np.ndarray) -> "TokenRows":
        """Return some of the rows, in the order of `numbers`."""
        starts = (self._starts[0][numbers], self._starts[1][numbers])
        return TokenRows(self._ids, self._targets, self._index[numbers], starts)


@dataclass(frozen=True)
class Tokens:
    """A data set as tokens."""

    rows: TokenRows
    tally: Tally
    sha256: str
    """Hash of every token, mask and line number."""
    problems_file: Path
    """A `LineProblem` per line that was cut or dropped."""

    def problems(self) -> Iterator[LineProblem]:
        with self.problems_file.open("rb") as file:
            for line in file:
                yield LineProblem.model_validate_json(line)


def open_folder(folder: Path) -> Tokens:
    """Map the files of a folder after checking each of them.

    All of them are hashed, which costs less than the hash of the data set that it saves.

    Raises:
        FileNotFoundError: There is no such folder, or it has no manifest.
        DamagedTokens: A file is missing or is not what was written.
    """
    written = (folder / MANIFEST).read_bytes()
    try:
        manifest = Manifest.model_validate_json(written)
        _require_whole(folder, manifest)
        rows = _map(folder, manifest.id_type)
        tally = Tally.model_validate_json((folder / _TALLY).read_bytes())
    except (ValidationError, OSError, ValueError) as error:
        raise DamagedTokens(str(error)) from error
    sha256s = {file.name: file.sha256 for file in manifest.files}
    content = manifest.id_type.join(sha256s[name] for name in _CONTENT)
    return Tokens(rows, tally, hashlib.sha256(content.encode()).hexdigest(), folder / _PROBLEMS)


class Writer:
    """Writes the files row by row, in bounded memory; `commit` makes them a folder to open.

    Args:
        folder: An empty folder.
        num_ids: Token ids that there are.
    """

    def __init__(self, folder: Path, *, num_ids: int) -> None:
        self._folder = folder
        self._id_type = np.dtype("<u2" if num_ids <= 1 << 16 else "<u4")
        self._files: dict[str, BinaryIO] = {}
        self._fates: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._first_problems: list[LineProblem] = []

    def __enter__(self) -> Self:
        for name in (*_CONTENT, _PROBLEMS):
            self._files[name] = (self._folder / name).open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, line: Line, fate: Fate) -> None:
        """Write down what becomes of a line."""
        self._counts["lines"] += 1
        problem = fate.problem
        if problem is not None:
            self._note(problem)
        if fate.row is None:
            assert problem is not None
            self._fates[problem.reason] += 1
            return
        num_cut = 0 if problem is None else problem.num_tokens_cut
        self._write(fate.row, num_cut)
        self._counts["truncated"] += num_cut > 0
        self._counts["turns"] += line.num_turns
        self._counts["turns_without_end"] += line.num_turns_without_end

    def commit(self, made_of: dict[str, Any]) -> None:
        """Put everything on the disk, the manifest last."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        _write_durably(self._folder / _TALLY, self._tally().model_dump_json().encode())
        files = tuple(_listed(self._folder / name) for name in (*_CONTENT, _PROBLEMS, _TALLY))
        manifest = Manifest(made_of=made_of, id_type=self._id_type.str, files=files)
        _write_durably(self._folder / MANIFEST, manifest.model_dump_json(indent=2).encode())

    def _note(self, problem: LineProblem) -> None:
        self._files[_PROBLEMS].write(problem.model_dump_json().encode() + b"\n")
        self._counts["tokens_cut"] += problem.num_tokens_cut
        if len(self._first_problems) < receipts.MAX_PROBLEMS:
            self._first_problems.append(problem)

    def _write(self, row: EncodedRow, num_cut: int) -> None:
        ids = row.ids.astype(self._id_type)
        assert np.array_equal(ids, row.ids), f"line {row.line} has a token outside the vocabulary"
        entry = np.array([(row.line, len(ids), row.num_targets, num_cut)], _ENTRY)
        self._files[_IDS].write(ids.tobytes())
        self._files[_TARGETS].write(np.packbits(row.is_target).tobytes())
        self._files[_INDEX].write(entry.tobytes())

    def _tally(self) -> Tally:
        return Tally(
            num_lines=self._counts["lines"],
            num_truncated=self._counts["truncated"],
            dropped_reasons=dict(sorted(self._fates.items())),
            num_tokens_cut=self._counts["tokens_cut"],
            num_turns=self._counts["turns"],
            num_turns_without_end=self._counts["turns_without_end"],
            problems=tuple(self._first_problems),
        )


def _require_whole(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        path = folder / file.name
        if path.stat().st_size != file.bytes or checkpoints.hash_file(path) != file.sha256:
            raise DamagedTokens(f"{file.name} is not what was written")


def _map(folder: Path, id_type: str) -> TokenRows:
    ids = _mapped(folder / _IDS, np.dtype(id_type))
    targets = _mapped(folder / _TARGETS, np.dtype(np.uint8))
    index = np.fromfile(folder / _INDEX, _ENTRY)
    lengths = index["length"].astype(np.int64)
    return TokenRows(ids, targets, index, (_starts(lengths), _starts(-(-lengths // 8))))


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing of an empty file can be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes


def _listed(path: Path) -> ManifestFile:
    sha256 = checkpoints.hash_file(path)
    return ManifestFile(name=path.name, bytes=path.stat().st_size, sha256=sha256)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
