"""What a trainer printed: the log of an attempt, read piece by piece."""

from dataclasses import dataclass
from pathlib import Path

from app.db.engine import Database
from app.domain.errors import NotFound
from app.domain.jobs import OWNED_STATES, JobState
from app.domain.runs import LOG_FILE, attempt_folder
from app.services import jobs
from app.settings import Settings

_MAX_BYTES = 262_144
_PART_BYTES = 65_536


@dataclass(frozen=True)
class LogPiece:
    """A part of a log; `next_offset` is where the next part begins, in bytes."""

    text: str
    next_offset: int
    attempt: int


@dataclass(frozen=True)
class LogPart:
    """A part of a log as a page shows it, from byte `start` to byte `end`."""

    text: str
    start: int
    end: int
    attempt: int
    """0 when the job was never started."""
    newest: int
    """The newest attempt of the job."""
    is_open: bool
    """Whether the attempt may print more, or printed more than is in this part."""


def read(
    db: Database,
    settings: Settings,
    project_id: str,
    job_id: str,
    *,
    attempt: int | None,
    offset: int,
) -> LogPiece:
    """Return the log of an attempt from a byte offset; the newest attempt when none is named.

    Raises:
        NotFound: No such job, or no such attempt.
    """
    wanted, _, _ = _attempt(db, project_id, job_id, attempt)
    if wanted == 0:
        return LogPiece("", 0, 0)
    return _piece(attempt_folder(settings.home, job_id, wanted) / LOG_FILE, offset, wanted)


def part_before(
    db: Database,
    settings: Settings,
    project_id: str,
    job_id: str,
    *,
    attempt: int | None,
    before: int | None,
) -> LogPart:
    """Return the part of an attempt's log that ends at a byte; without one, the newest part.

    It begins with a whole line, unless that line alone is longer than a part.

    Raises:
        NotFound: No such job, or no such attempt.
    """
    wanted, newest, is_open = _attempt(db, project_id, job_id, attempt)
    path = attempt_folder(settings.home, job_id, wanted) / LOG_FILE
    size = path.stat().st_size if path.is_file() else 0
    end = size if before is None else min(before, size)
    start = max(0, end - _PART_BYTES)
    data = _bytes(path, start, end - start) if end else b""
    if start:
        skipped = _to_line(data)
        start, data = start + skipped, data[skipped:]
    # A character that is being written is left for whoever reads on.
    data = data[: _whole_characters(data)] if before is None else data
    text = data.decode("utf-8", errors="replace")
    return LogPart(text, start, start + len(data), wanted, newest, is_open)


def part_after(
    db: Database,
    settings: Settings,
    project_id: str,
    job_id: str,
    *,
    attempt: int | None,
    offset: int,
) -> LogPart:
    """Return what an attempt printed behind a byte offset, as much as one answer holds.

    Raises:
        NotFound: No such job, or no such attempt.
    """
    # Whether it may print more is asked first: what it printed last is in the file by then.
    wanted, newest, is_open = _attempt(db, project_id, job_id, attempt)
    path = attempt_folder(settings.home, job_id, wanted) / LOG_FILE
    piece = _piece(path, offset, wanted)
    is_cut = path.is_file() and piece.next_offset - offset >= _MAX_BYTES - 4
    return LogPart(piece.text, offset, piece.next_offset, wanted, newest, is_open or is_cut)


def _attempt(
    db: Database, project_id: str, job_id: str, attempt: int | None
) -> tuple[int, int, bool]:
    """Return the attempt that is meant, the newest one, and whether the former may print more."""
    with db.read() as session:
        row = jobs.require(session, project_id, job_id)
    wanted = row.attempt if attempt is None else attempt
    if not 0 <= wanted <= row.attempt:
        raise NotFound(
            f"job {job_id} has no attempt {wanted}; its newest is {row.attempt}", param="attempt"
        )
    is_running = row.state in OWNED_STATES and wanted == row.attempt
    is_to_come = row.attempt == 0 and row.state == JobState.QUEUED
    return wanted, row.attempt, is_running or is_to_come


def _piece(path: Path, offset: int, attempt: int) -> LogPiece:
    if not path.is_file() or offset >= path.stat().st_size:
        return LogPiece("", offset, attempt)
    data = _bytes(path, offset, _MAX_BYTES)
    # A character cut at the end of the piece is left for the next one.
    whole = data[: _whole_characters(data)]
    return LogPiece(whole.decode("utf-8", errors="replace"), offset + len(whole), attempt)


def _bytes(path: Path, start: int, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(num_bytes)


def _to_line(data: bytes) -> int:
    """Return how many bytes to pass over so that a line begins, or at least a character."""
    end = data.find(b"\n") + 1
    if 0 < end < len(data):
        return end
    return next((at for at in range(min(4, len(data))) if data[at] & 0xC0 != 0x80), 0)


def _whole_characters(data: bytes) -> int:
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue  # a continuation byte
        needed = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
        return len(data) - back if needed > back else len(data)
    return len(data)
