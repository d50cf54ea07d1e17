"""A process that is stopped inside a transaction on PostgreSQL does not hold up the others."""

from typing import Any

import pytest
from sqlalchemy import event, text

from app.db import engine
from app.db import jobs as job_queries
from app.db.engine import Database
from app.domain.errors import Unavailable
from app.domain.jobs import JobState
from app.services import reconcile
from tests.services.driver import Driver

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@on_postgresql
def test_a_locked_job_does_not_keep_others_from_being_settled(driver: Driver):
    held, _ = driver.in_state(JobState.RUNNING)
    free = driver.submit()
    driver.claimed(driver.other_worker())
    driver.expire(held)
    driver.expire(free)

    with driver.db.write() as session:
        job_queries.get(session, held, lock=True)
        settled = reconcile.settle_expired(driver.db, driver.settings)

    assert settled == [free]
    assert reconcile.settle_expired(driver.db, driver.settings) == [held]


@on_postgresql
def test_a_session_that_idles_in_a_transaction_is_ended_and_its_locks_with_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "_MOST_IDLE_SECONDS", 1)
    frozen = Database(driver.settings.sqlalchemy_url)
    job_id, _ = driver.in_state(JobState.RUNNING)

    def freeze() -> None:
        with frozen.write() as session:
            job_queries.get(session, job_id, lock=True)
            # Nobody else may write to the row until the server ends this session.
            with driver.db.write() as other:
                job_queries.set_progress(other, job_id, {"step": 7})
            session.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        freeze()
    frozen.close()

    assert driver.job(job_id).step == 7


@on_postgresql
def test_who_waits_for_a_lock_gives_up_after_a_while(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "_MOST_LOCKED_SECONDS", 1)
    waiting = Database(driver.settings.sqlalchemy_url)
    job_id, _ = driver.in_state(JobState.RUNNING)

    with driver.db.write() as session:
        job_queries.get(session, job_id, lock=True)
        with pytest.raises(Unavailable), waiting.write() as other:
            job_queries.set_progress(other, job_id, {"step": 7})
    waiting.close()


@on_postgresql
def test_no_statement_is_sent_as_a_pipeline(driver: Driver):
    """Inside of one, PostgreSQL does not count a frozen client as idle, and keeps its locks."""
    job_id = driver.submit()
    run = driver.started()
    pipelines: list[str] = []

    def look(*given: Any) -> None:
        statement, is_pipeline = given[2], given[5]
        if is_pipeline:
            pipelines.append(statement)

    event.listen(driver.db.engine, "before_cursor_execute", look)
    driver.record(run, *(driver.step(run, step) for step in range(1, 6)))
    driver.checkpoint(run, 5)
    driver.expire(job_id)
    reconcile.settle_expired(driver.db, driver.settings)

    assert not pipelines
    assert driver.sql("SELECT count(*) FROM trainer_events WHERE kind = 'step'") == [(5,)]
