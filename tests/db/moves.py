"""Straight SQL on a job, past all code of ours: what any client of the database could send."""

from collections import deque
from typing import Any

from app.domain.jobs import OWNED_STATES, TRANSITIONS, JobState
from tests.services.driver import Driver

PAIRS = frozenset((source, target) for source, target, _ in TRANSITIONS)

_LEASE = "'2030-01-01 00:00:00'"


def state_of(driver: Driver, job_id: str) -> JobState:
    return JobState(driver.sql("SELECT state FROM jobs WHERE id = :id", id=job_id)[0][0])


def set_state(driver: Driver, job_id: str, target: JobState) -> None:
    """Update the state, and with it what belongs to it, so that only the pair can be wrong."""
    columns = _columns(driver, state_of(driver, job_id), target)
    driver.sql(f"UPDATE jobs SET state = :target, {columns} WHERE id = :id", **_ids(job_id, target))


def lead_to(driver: Driver, job_id: str, target: JobState) -> None:
    """Bring a job into a state by the fewest moves of the table."""
    for step in _path(state_of(driver, job_id), target):
        set_state(driver, job_id, step)


def _columns(driver: Driver, source: JobState, target: JobState) -> str:
    if target not in OWNED_STATES:
        return "owner = NULL, lease_expires_at = NULL"
    owned = f"owner = '{driver.worker()}', lease_expires_at = {_LEASE}"
    is_claim = source is JobState.QUEUED and target is JobState.STARTING
    return f"{owned}, fence = fence + 1, attempt = attempt + 1" if is_claim else owned


def _path(source: JobState, target: JobState) -> list[JobState]:
    paths: dict[JobState, list[JobState]] = {source: []}
    waiting = deque([source])
    while target not in paths:
        here = waiting.popleft()
        for start, end in sorted(PAIRS):
            if start is here and end not in paths:
                paths[end] = [*paths[here], end]
                waiting.append(end)
    return paths[target]


def _ids(job_id: str, target: JobState) -> dict[str, Any]:
    return {"id": job_id, "target": target.value}
