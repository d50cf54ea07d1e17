"""The state table is the only way between states, in Python and in the WHERE."""

import itertools

import pytest

from app.db import jobs as job_queries
from app.db.types import db_now
from app.domain.errors import StateConflict
from app.domain.jobs import TRANSITIONS, Actor, JobState
from tests.db.moves import lead_to
from tests.services.driver import Driver

S = JobState
API, WORKER, SUPERVISOR, RECONCILER = Actor.API, Actor.WORKER, Actor.SUPERVISOR, Actor.RECONCILER

# Written down again from the design, not taken from the code under test.
TABLE = {
    (S.QUEUED, S.STARTING): {WORKER},
    (S.QUEUED, S.PAUSED): {API},
    (S.QUEUED, S.CANCELLED): {API},
    (S.STARTING, S.RUNNING): {SUPERVISOR},
    (S.STARTING, S.STOPPING): {SUPERVISOR},
    (S.RUNNING, S.STOPPING): {SUPERVISOR},
    (S.FINALIZING, S.STOPPING): {SUPERVISOR},
    (S.STOPPING, S.PAUSED): {SUPERVISOR, RECONCILER},
    (S.STOPPING, S.CANCELLED): {SUPERVISOR, RECONCILER},
    (S.STOPPING, S.QUEUED): {SUPERVISOR, RECONCILER},
    (S.RUNNING, S.FINALIZING): {SUPERVISOR},
    (S.FINALIZING, S.SUCCEEDED): {SUPERVISOR},
    (S.STARTING, S.FAILED): {SUPERVISOR, RECONCILER},
    (S.RUNNING, S.FAILED): {SUPERVISOR, RECONCILER},
    (S.FINALIZING, S.FAILED): {SUPERVISOR, RECONCILER},
    (S.STARTING, S.QUEUED): {SUPERVISOR, RECONCILER},
    (S.RUNNING, S.QUEUED): {SUPERVISOR, RECONCILER},
    (S.FINALIZING, S.QUEUED): {SUPERVISOR, RECONCILER},
    (S.STARTING, S.PAUSED): {RECONCILER},
    (S.RUNNING, S.PAUSED): {RECONCILER},
    (S.FINALIZING, S.PAUSED): {RECONCILER},
    (S.STARTING, S.CANCELLED): {RECONCILER},
    (S.RUNNING, S.CANCELLED): {RECONCILER},
    (S.FINALIZING, S.CANCELLED): {RECONCILER},
    (S.PAUSED, S.QUEUED): {API, RECONCILER},
    (S.PAUSED, S.CANCELLED): {API},
    (S.FAILED, S.QUEUED): {API},
    (S.CANCELLED, S.QUEUED): {API},
    (S.SUCCEEDED, S.QUEUED): {API},
}


def test_the_table_has_the_moves_of_the_design_and_no_other():
    designed = {(*pair, actor) for pair, actors in TABLE.items() for actor in actors}

    assert designed == TRANSITIONS


def move(driver: Driver, job_id: str, source: JobState, target: JobState, actor: Actor) -> bool:
    values: dict[str, object] = {}
    if actor is WORKER:
        row = job_queries.JobRow
        values = {"fence": row.fence + 1, "attempt": row.attempt + 1, "owner": driver.worker()}
        values["lease_expires_at"] = db_now(60)
    with driver.db.write() as session:
        return job_queries.transition(
            session, job_id, source, target, actor, message="tried", values=values
        )


def test_every_pair_outside_the_table_is_refused_and_changes_nothing(driver: Driver):
    job_id = driver.submit()
    refused = [
        (source, target, actor)
        for source, target, actor in itertools.product(S, S, Actor)
        if actor not in TABLE.get((source, target), set())
    ]

    for source, target, actor in refused:
        with pytest.raises(StateConflict, match=f"{source} cannot become {target}"):
            move(driver, job_id, source, target, actor)

    assert len(refused) == 9 * 9 * 4 - sum(map(len, TABLE.values()))
    assert driver.job(job_id).state is S.QUEUED
    assert len(driver.sql("SELECT id FROM job_events WHERE job_id = :id", id=job_id)) == 1


def test_every_pair_of_the_table_moves_a_job_that_is_in_its_source_and_only_such_a_job(
    driver: Driver,
):
    job_id = driver.submit()

    for (source, target), actors in TABLE.items():
        for actor in actors:
            others = [state for state in S if state is not source]
            for other in others:
                lead_to(driver, job_id, other)
                assert not move(driver, job_id, source, target, actor)
                assert driver.job(job_id).state is other
            lead_to(driver, job_id, source)
            assert move(driver, job_id, source, target, actor)
            assert driver.job(job_id).state is target


def test_a_move_is_recorded_with_both_states_and_a_refused_one_is_not(driver: Driver):
    job_id = driver.submit()

    first = move(driver, job_id, S.QUEUED, S.PAUSED, API)
    second = move(driver, job_id, S.QUEUED, S.PAUSED, API)

    assert (first, second) == (True, False)
    rows = driver.sql("SELECT from_state, to_state FROM job_events ORDER BY id")
    assert [tuple(row) for row in rows] == [(None, "queued"), ("queued", "paused")]


def test_only_a_job_that_is_owned_has_an_owner_and_a_lease(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    owned = driver.sql("SELECT owner, lease_expires_at FROM jobs WHERE id = :id", id=job_id)

    driver.crash(run)

    left = driver.sql("SELECT owner, lease_expires_at FROM jobs WHERE id = :id", id=job_id)
    assert owned[0][0] == driver.worker()
    assert owned[0][1] is not None
    assert tuple(left[0]) == (None, None)
