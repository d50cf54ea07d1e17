"""What a dead attempt reported and nobody stored: its last lines and checkpoints are taken in.

A trainer writes to a file and its supervisor stores what it finds there, so a worker that is killed
leaves lines behind that no row knows. Whoever settles the job reads them, or its next attempt.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from app.db import attempts
from app.db import jobs as job_queries
from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.domain import failpoints
from app.domain.errors import Fenced
from app.domain.events import TRAINER_EVENT, TrainerEvent
from app.domain.runs import EVENTS_FILE, AttemptKey, attempt_folder
from app.services import recording
from app.services.runs import Claimed
from app.settings import Settings

_log = logging.getLogger(__name__)

_LINES_PER_WRITE = 1000

Guards = Sequence[ColumnElement[bool]]


def take_in_of_job(db: Database, settings: Settings, run: Claimed) -> None:
    """Take in what earlier attempts left, before this one chooses where to start from.

    Raises:
        Fenced: Another attempt owns the job.
        Unavailable: The database is away.
    """
    guards = job_queries.owned_by(run.fence)
    with db.read() as session:
        lost = attempts.lost(session, run)
    for key in lost:
        num_lines = take_in(db, settings, key, guards=guards)
        with db.write() as session:
            _require(session, key, guards)
            close(session, key, num_lines)


def take_in(db: Database, settings: Settings, key: AttemptKey, *, guards: Guards) -> int | None:
    """Store what an attempt reported beyond what is stored, in the order it was reported.

    Args:
        key: An attempt whose trainer cannot report any more, or is fenced.
        guards: What must hold of the job's row for each write.

    Returns:
        How many lines were stored; None when the file cannot be read now.

    Raises:
        Fenced: The guards do not hold any more.
    """
    path = attempt_folder(settings.home, key.job_id, key.attempt) / EVENTS_FILE
    with db.read() as session:
        stored = event_queries.high_water(session, key.job_id, key.attempt)
    num_lines, lines = 0, lines_after(path, stored)
    try:
        while events := list(islice(lines, _LINES_PER_WRITE)):
            _store(db, key, events, guards)
            num_lines += len(events)
    except OSError as error:
        _log.warning("cannot read what attempt %d of %s left: %s", key.attempt, key.job_id, error)
        return None
    return num_lines


def close(session: Session, key: AttemptKey, num_lines: int | None) -> None:
    """Record whether anything that an attempt reported may still be missing.

    Args:
        num_lines: What `take_in` returned.
    """
    if num_lines is None:
        attempts.end(session, key, attempts.LOST)
        return
    attempts.end(session, key, attempts.RECOVERED)
    if num_lines:
        job_queries.add_event(
            session,
            key.job_id,
            "recovered",
            f"{num_lines} lines that attempt {key.attempt} reported before it died were stored",
            attempt=key.attempt,
            data={"num_lines": num_lines},
        )


def lines_after(path: Path, seq: int) -> Iterator[TrainerEvent]:
    """Yield the events behind number `seq`, up to the first line that is torn or out of order."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number <= seq:
                continue
            event = _event(line)
            if event is None or event.seq != number:
                return
            yield event


def _event(line: bytes) -> TrainerEvent | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return TRAINER_EVENT.validate_json(line)
    except ValidationError:
        return None


def _store(db: Database, key: AttemptKey, events: Sequence[TrainerEvent], guards: Guards) -> None:
    with db.write() as session:
        _require(session, key, guards, recording.progress(events))
        attempts.set_adopting(session, key, adopting=True)
        recording.store(session, key, events)
        attempts.set_adopting(session, key, adopting=False)
        failpoints.hit("leftovers.commit")


def _require(
    session: Session, key: AttemptKey, guards: Guards, values: Mapping[str, Any] | None = None
) -> None:
    if not job_queries.update_guarded(session, key.job_id, guards=guards, values=values or {}):
        raise Fenced(f"job {key.job_id} went on while attempt {key.attempt} was taken in")
