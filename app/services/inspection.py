"""What is in an uploaded file: every row is looked at, and the ones that are unusable are named."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.domain import records, rows
from app.domain.datasets import (
    MAX_COLUMNS,
    Compression,
    Container,
    DatasetReport,
    OnBadRows,
    RowProblem,
)
from app.domain.errors import InvalidDataset
from app.domain.records import BrokenFile
from app.domain.rows import BadRow, RowFormat

_MAX_NAMED = 10
_MAX_PROBLEMS = 100
_MAX_KEY = 200


def inspect(
    path: Path, *, filename: str, size: int, sha256: str, on_bad_rows: OnBadRows, max_bytes: int
) -> DatasetReport:
    """Read every row of a file and describe it.

    Args:
        max_bytes: Most bytes that the file may hold once decompressed.

    Raises:
        InvalidDataset: The file is empty or broken, its rows are of several formats, or a row is
            unusable. With `keep` the last two are counted, as long as some row is usable.
        TooLarge: It holds more than `max_bytes`.
    """
    found = _Findings()
    try:
        container, compression = records.recognise(path, filename)
        every = records.read(
            path, container=container, compression=compression, max_bytes=max_bytes
        )
        for number, record in every:
            found.look_at(number, record)
            if on_bad_rows == "refuse" and len(found.problems) > _MAX_NAMED:
                break
    except BrokenFile as error:
        raise InvalidDataset(error.message, param="file") from error
    found.settle()
    _require_usable(found, container, on_bad_rows)
    return _report(found, container, compression, size=size, sha256=sha256)


@dataclass
class _Findings:
    """What a look at every row found.

    `undetected` are rows whose columns are those of no known format: a fault where other rows are
    of one, and nothing to say where none is.
    """

    num_rows: int = 0
    num_bad: int = 0
    num_undetected: int = 0
    counts: Counter[RowFormat] = field(default_factory=Counter[RowFormat])
    first: dict[RowFormat, int] = field(default_factory=dict[RowFormat, int])
    problems: list[RowProblem] = field(default_factory=list[RowProblem])
    undetected: list[RowProblem] = field(default_factory=list[RowProblem])
    columns: dict[str, None] = field(default_factory=dict[str, None])
    ignored_keys: dict[RowFormat, set[str]] = field(default_factory=dict[RowFormat, set[str]])

    @property
    def format(self) -> RowFormat | None:
        return self.counts.most_common(1)[0][0] if self.counts else None

    def look_at(self, number: int, record: dict[str, Any] | BadRow) -> None:
        self.num_rows += 1
        if isinstance(record, BadRow):
            self._note(number, record)
            return
        if len(self.columns) < MAX_COLUMNS:
            self.columns.update(dict.fromkeys(map(_storable, record)))
        try:
            rows.refuse_not_built(record)
            found = rows.detect(record)
            rows.parse_record(record, row_format=found)
        except BadRow as bad:
            self._note(number, bad, is_undetected=rows.detect(record.keys()) is None)
            return
        assert found is not None
        self.counts[found] += 1
        self.first.setdefault(found, number)
        ignored = self.ignored_keys.setdefault(found, set())
        if len(ignored) < MAX_COLUMNS:
            ignored |= {_storable(key) for key in rows.ignored_keys(record, found)}

    def settle(self) -> None:
        """Count undetected rows as bad ones, where other rows are of a known format."""
        if self.format is None:
            return
        self.num_bad += self.num_undetected
        others = [
            RowProblem(
                number=number,
                reason="other_format",
                message=f"the first {name} row among {self.format} rows",
            )
            for name, number in self.first.items()
            if name != self.format
        ]
        merged = [*self.problems, *self.undetected, *others]
        self.problems = sorted(merged, key=lambda problem: problem.number)[:_MAX_PROBLEMS]

    def _note(self, number: int, bad: BadRow, *, is_undetected: bool = False) -> None:
        is_undetected = is_undetected and bad.reason != "unsupported_key"
        self.num_undetected += is_undetected
        self.num_bad += not is_undetected
        problems = self.undetected if is_undetected else self.problems
        if len(problems) < _MAX_PROBLEMS:
            problems.append(RowProblem(number=number, reason=bad.reason, message=bad.message))


def _storable(key: str) -> str:
    """Write a key of the user's in a way that every database can store."""
    return key[:_MAX_KEY].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _require_usable(found: _Findings, container: Container, on_bad_rows: OnBadRows) -> None:
    if found.num_rows == 0:
        raise InvalidDataset("the file is empty; it needs at least one row", param="file")
    is_lost = on_bad_rows == "keep" and found.num_bad == found.num_rows
    if found.num_bad and (on_bad_rows == "refuse" or is_lost):
        named = [
            f"{records.place(container, problem.number)}: {problem.message}"
            for problem in found.problems[:_MAX_NAMED]
        ]
        more = "; and more" if found.num_bad > _MAX_NAMED else ""
        remedy = "" if is_lost else "; fix them, or upload with on_bad_rows=keep to leave them out"
        raise InvalidDataset("; ".join(named) + more + remedy, param="file")
    if len(found.counts) > 1 and on_bad_rows == "refuse":
        each = ", ".join(
            f"{name} from {records.place(container, number)}"
            for name, number in found.first.items()
        )
        raise InvalidDataset(
            f"rows of several formats ({each}); upload one file each", param="file"
        )


def _report(
    found: _Findings,
    container: Container,
    compression: Compression | None,
    *,
    size: int,
    sha256: str,
) -> DatasetReport:
    row_format = found.format
    ignored = found.ignored_keys.get(row_format, set()) if row_format else set[str]()
    return DatasetReport(
        bytes=size,
        sha256=sha256,
        num_rows=found.num_rows,
        format=row_format,
        container=container,
        compression=compression,
        columns=list(found.columns)[:MAX_COLUMNS],
        num_bad_rows=found.num_bad + found.counts.total() - max(found.counts.values(), default=0),
        ignored_keys=sorted(ignored)[:MAX_COLUMNS],
        problems=found.problems,
    )
