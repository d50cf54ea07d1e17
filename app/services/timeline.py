"""The history of a job as a page shows it: newest first, filtered by kind, page by page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.db import timeline
from app.db.engine import Database
from app.domain.errors import InvalidInput
from app.domain.groups import shown
from app.domain.jobs import JobEvent
from app.services import jobs


@dataclass(frozen=True)
class Timeline:
    """A part of a job's history."""

    events: Sequence[JobEvent]
    """Newest first."""
    kinds: Mapping[str, int]
    """How many events of each kind the job has."""
    has_more: bool
    """Whether there are older ones."""


def page(
    db: Database,
    project_id: str,
    job_id: str,
    *,
    kind: str | None,
    before: int | None,
    limit: int,
) -> Timeline:
    """Return events of a job, of all kinds or of one.

    Args:
        before: Number of an event; the answer has older ones only.

    Raises:
        NotFound: No such job.
        InvalidInput: The job has no event of this kind.
    """
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        kinds = timeline.kinds(session, job_id)
        if kind is not None and kind not in kinds:
            known = ", ".join(kinds) or "none yet"
            raise InvalidInput(
                f"kind {shown(repr(kind))} is none that this job has events of, which are: {known}",
                param="kind",
                code="unknown_kind",
            )
        found = timeline.page(session, job_id, kind=kind, before=before, limit=limit + 1)
    return Timeline(found[:limit], kinds, len(found) > limit)
