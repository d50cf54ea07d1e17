"""The reconciler settles what lost its worker, by the state table, and rings for what waits."""

import os
from typing import Any

import pytest

from app.db.engine import Database
from app.db.jobs import JobRow
from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import Unavailable
from app.domain.jobs import Desired, JobState
from app.services import jobs, reconcile, runs, workers
from app.services.reconcile import Reconciler
from app.settings import Settings
from tests.services.driver import Driver

S = JobState
RUN, PAUSE, CANCEL = Desired.RUN, Desired.PAUSE, Desired.CANCEL

# (state, desired) -> what an expired lease makes of it.
OUTCOMES = {
    (S.STARTING, RUN): S.QUEUED,
    (S.RUNNING, RUN): S.QUEUED,
    (S.FINALIZING, RUN): S.QUEUED,
    (S.STOPPING, RUN): S.QUEUED,
    (S.STARTING, PAUSE): S.PAUSED,
    (S.RUNNING, PAUSE): S.PAUSED,
    (S.FINALIZING, PAUSE): S.PAUSED,
    (S.STOPPING, PAUSE): S.PAUSED,
    (S.STARTING, CANCEL): S.CANCELLED,
    (S.RUNNING, CANCEL): S.CANCELLED,
    (S.FINALIZING, CANCEL): S.CANCELLED,
    (S.STOPPING, CANCEL): S.CANCELLED,
}


@pytest.mark.parametrize(("state", "desired"), OUTCOMES)
def test_a_job_whose_lease_expired_goes_where_the_table_says(
    driver: Driver, state: JobState, desired: Desired
):
    job_id, _ = driver.in_state(state, desired=desired)
    early = reconcile.settle_expired(driver.db, driver.settings)
    driver.expire(job_id)

    settled = reconcile.settle_expired(driver.db, driver.settings)

    assert (early, settled) == ([], [job_id])
    job = driver.job(job_id)
    assert job.state is OUTCOMES[state, desired]
    assert job.worker is None
    saved = driver.sql("SELECT step FROM checkpoints WHERE status = 'committed'")
    assert [row[0] for row in saved] == [5]
    outcomes = driver.sql("SELECT outcome FROM attempts ORDER BY attempt DESC")
    assert outcomes[0][0] == "recovered"


@pytest.mark.parametrize(("verb", "end"), [("pause", S.PAUSED), ("cancel", S.CANCELLED)])
def test_a_request_that_comes_while_a_job_is_settled_is_not_lost(
    driver: Driver, verb: str, end: JobState
):
    job_id, _ = driver.in_state(S.RUNNING)
    driver.expire(job_id)

    def ask() -> None:
        getattr(jobs, verb)(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    with driver.interrupted(ask) as slow:
        settled = reconcile.settle_expired(slow, driver.settings)

    assert settled == [job_id]
    assert driver.job(job_id).state is end


@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING, S.FINALIZING, S.STOPPING])
def test_a_job_put_back_in_the_queue_can_be_claimed(driver: Driver, state: JobState):
    job_id, _ = driver.in_state(state)
    driver.expire(job_id)

    reconcile.settle_expired(driver.db, driver.settings)
    driver.forget(job_id)

    run = driver.claim(driver.other_worker())
    assert run is not None
    start = runs.begin(driver.db, driver.settings, run)
    assert start is not None
    assert start.step == 5


def test_the_third_loss_without_a_checkpoint_fails_the_job(driver: Driver):
    job_id = driver.submit()
    for _ in range(3):
        driver.forget(job_id)
        driver.started()
        driver.expire(job_id)
        reconcile.settle_expired(driver.db, driver.settings)

    job = driver.job(job_id)
    assert job.state is S.FAILED
    assert job.error is not None
    assert job.error.code == "crash_loop"
    assert "3 times" in job.error.message


def test_a_drained_job_whose_worker_vanished_pays_nothing(driver: Driver):
    job_id, _ = driver.in_state(S.STOPPING)
    driver.expire(job_id)

    reconcile.settle_expired(driver.db, driver.settings)

    assert driver.job(job_id).crash_streak == 0


def test_a_job_renewed_in_time_is_left_alone(driver: Driver):
    job_id, run = driver.in_state(S.RUNNING)
    driver.expire(job_id)
    runs.renew(driver.db, driver.settings, run)

    settled = reconcile.settle_expired(driver.db, driver.settings)

    assert settled == []
    assert driver.job(job_id).state is S.RUNNING


def dead_worker(driver: Driver) -> str:
    """Register a worker of this machine whose process is gone."""
    return driver.other_worker(machine=workers.this_machine(), pid=os.getpid())


def test_a_dead_owner_on_this_machine_is_settled_before_its_lease_ends(driver: Driver):
    lost = driver.submit()
    driver.started(dead_worker(driver))
    kept = driver.submit()
    driver.started()
    far = driver.submit()
    driver.started(driver.other_worker())

    settled = reconcile.settle_dead(driver.db, driver.settings)

    assert settled == [lost]
    assert driver.job(lost).state is S.QUEUED
    assert {driver.job(job_id).state for job_id in (kept, far)} == {S.RUNNING}


def make_reconciler(driver: Driver, **changes: object) -> Reconciler:
    settings = driver.settings.model_copy(update=changes)
    return Reconciler(driver.db, settings, driver.outside.doorbell, driver.outside.stream)


def test_after_its_own_start_the_reconciler_waits_one_lease_before_it_reaps(driver: Driver):
    job_id, _ = driver.in_state(S.RUNNING)
    driver.expire(job_id)

    make_reconciler(driver, lease_seconds=60).run_once()
    young = driver.job(job_id).state
    make_reconciler(driver, lease_seconds=0).run_once()

    assert young is S.RUNNING
    assert driver.job(job_id).state is S.QUEUED
    assert driver.outside.stream.nudges[-1] == job_id


def test_a_dead_owner_is_settled_without_that_wait(driver: Driver):
    job_id = driver.submit()
    driver.started(dead_worker(driver))

    make_reconciler(driver, lease_seconds=60).run_once()

    assert driver.job(job_id).state is S.QUEUED


def ring(driver: Driver) -> bool:
    return reconcile.ring_for_forgotten(driver.db, driver.settings, driver.outside.doorbell)


def test_the_bell_rings_for_a_forgotten_job_when_a_worker_could_take_it(driver: Driver):
    job_id = driver.submit()
    driver.worker()
    fresh = ring(driver)
    driver.forget(job_id)

    forgotten, again = ring(driver), ring(driver)

    assert (fresh, forgotten, again) == (False, True, False)


def test_the_bell_is_silent_without_a_worker_or_a_free_slot(driver: Driver):
    job_id = driver.submit()
    driver.forget(job_id)
    without = ring(driver)

    driver.submit(priority=9)
    driver.claimed()
    driver.forget(job_id)
    busy = ring(driver)

    assert (without, busy) == (False, False)


def test_two_reconcilers_settle_a_job_once(driver: Driver):
    job_id, _ = driver.in_state(S.RUNNING)
    driver.expire(job_id)

    first = reconcile.settle_expired(driver.db, driver.settings)
    second = reconcile.settle_expired(driver.db, driver.settings)

    assert (first, second) == ([job_id], [])
    assert driver.job(job_id).crash_streak == 1


def test_one_job_that_cannot_be_settled_does_not_keep_the_others(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    first, second = driver.submit(), driver.submit()
    for job_id in (first, second):
        driver.claimed(driver.other_worker())
        driver.expire(job_id)
    outcome = reconcile._outcome

    def broken(settings: Settings, row: JobRow, what: str):
        if row.id == first:
            raise AssertionError("a fault of ours")
        return outcome(settings, row, what)

    monkeypatch.setattr(reconcile, "_outcome", broken)

    assert reconcile.settle_expired(driver.db, driver.settings) == [second]
    monkeypatch.undo()
    assert reconcile.settle_expired(driver.db, driver.settings) == [first]


def test_a_job_that_was_taken_anew_meanwhile_is_not_settled_for_the_attempt_before(driver: Driver):
    job_id = driver.submit()
    driver.started(dead_worker(driver))

    def go_on() -> None:
        reconcile.settle_dead(driver.db, driver.settings)  # another reconciler was faster
        driver.started(driver.other_worker())

    with driver.interrupted(go_on) as slow:
        settled = reconcile.settle_dead(slow, driver.settings)

    assert settled == []
    assert driver.job(job_id).state is S.RUNNING


def test_after_an_outage_the_reconciler_waits_one_lease_again(driver: Driver):
    job_id, _ = driver.in_state(S.RUNNING)
    driver.expire(job_id)
    reconciler = make_reconciler(driver, lease_seconds=60, reconcile_seconds=0.001)
    reconciler._reap_from = 0.0

    class Away(Database):
        def read(self) -> Any:
            reconciler._stopped.set()
            raise Unavailable("away")

    reconciler._db = Away(driver.settings.sqlalchemy_url)
    reconciler._run()
    reconciler._db.close()
    reconciler._db = driver.db
    reconciler.run_once()

    assert driver.job(job_id).state is S.RUNNING
