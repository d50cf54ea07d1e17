"""What a trainer printed: the log of an attempt, read piece by piece."""

from dataclasses import dataclass
from pathlib import Path

from app.db.engine import Database
from app.domain.errors import NotFound
from app.domain.runs import LOG_FILE, attempt_folder
from app.services import jobs
from app.settings import Settings

_MAX_BYTES = 262_144


@dataclass(frozen=True)
class LogPiece:
    """A part of a log; `next_offset` is where the next part begins, in bytes."""

    text: str
    next_offset: int
    attempt: int


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
    with db.read() as session:
        row = jobs.require(session, project_id, job_id)
    wanted = row.attempt if attempt is None else attempt
    if not 0 <= wanted <= row.attempt:
        raise NotFound(
            f"job {job_id} has no attempt {wanted}; its newest is {row.attempt}", param="attempt"
        )
    if wanted == 0:
        return LogPiece("", 0, 0)
    return _piece(attempt_folder(settings.home, job_id, wanted) / LOG_FILE, offset, wanted)


def _piece(path: Path, offset: int, attempt: int) -> LogPiece:
    if not path.is_file() or offset >= path.stat().st_size:
        return LogPiece("", offset, attempt)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(_MAX_BYTES)
    # A character cut at the end of the piece is left for the next one.
    whole = data[: _whole_characters(data)]
    return LogPiece(whole.decode("utf-8", errors="replace"), offset + len(whole), attempt)


def _whole_characters(data: bytes) -> int:
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue  # a continuation byte
        needed = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
        return len(data) - back if needed > back else len(data)
    return len(data)
