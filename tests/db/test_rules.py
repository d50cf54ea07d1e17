"""The database itself refuses what no code of ours may ask for, and lets every legal write pass."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.domain.jobs import JobState
from app.domain.runs import AttemptKey
from app.services import recording
from app.services.runs import Claimed
from tests.db.moves import PAIRS, lead_to, set_state, state_of
from tests.services.driver import Driver

S = JobState
LEASE = "'2030-01-01 00:00:00'"
EVENT = (
    "INSERT INTO trainer_events (job_id, fence, seq, kind, step, body)"
    " VALUES (:job, :fence, 99, 'step', 9, '{}')"
)
CHECKPOINT = (
    "INSERT INTO checkpoints (id, job_id, attempt, fence, step, status, bytes, manifest_sha256,"
    " created_at) VALUES ('ckpt_by_hand', :job, 1, :fence, 9, 'committed', 1, 'x',"
    " CURRENT_TIMESTAMP)"
)
ATTEMPT = (
    "INSERT INTO attempts (job_id, attempt, fence, worker_id, spec, high_water_seq, started_at)"
    " VALUES (:job, :attempt, :fence, 'nobody', '{}', 0, CURRENT_TIMESTAMP)"
)


@pytest.mark.parametrize("source", S)
def test_a_state_changes_only_along_the_pairs_of_the_table(driver: Driver, source: JobState):
    job_id = driver.submit()

    for target in S:
        lead_to(driver, job_id, source)
        # Setting the state that a job has already is no move.
        if target is source or (source, target) in PAIRS:
            set_state(driver, job_id, target)
            assert state_of(driver, job_id) is target
        else:
            with pytest.raises(IntegrityError, match="jobs_move_by_the_state_table"):
                set_state(driver, job_id, target)
            assert state_of(driver, job_id) is source


def refused(driver: Driver, rule: str, statement: str, **values: object) -> None:
    """Assert that a statement breaks a rule and changes nothing."""
    tables = ("jobs", "attempts", "trainer_events", "checkpoints")
    before = [driver.sql(f"SELECT * FROM {table}") for table in tables]

    with pytest.raises(IntegrityError, match=rule):
        driver.sql(statement, **values)

    assert [driver.sql(f"SELECT * FROM {table}") for table in tables] == before


FENCE_RULE = "jobs_fence_is_raised_by_a_claim_only"
TAKE = f"UPDATE jobs SET state = 'starting', lease_expires_at = {LEASE}, owner = :owner"


@pytest.mark.parametrize(
    "change",
    [
        "fence = fence - 1",
        "fence = fence + 1",
        "attempt = attempt - 1",
        "attempt = attempt + 1",
        "fence = fence + 1, attempt = attempt + 1",
        "state = 'stopping', fence = fence + 1, attempt = attempt + 1",
        "state = 'queued', fence = 0, owner = NULL, lease_expires_at = NULL",
    ],
)
def test_nothing_but_a_claim_changes_fence_or_attempt(driver: Driver, change: str):
    driver.in_state(S.RUNNING)

    refused(driver, FENCE_RULE, f"UPDATE jobs SET {change}")
    driver.sql("UPDATE jobs SET fence = fence, attempt = attempt, step = 1")


@pytest.mark.parametrize(
    "change",
    [
        "fence = fence, attempt = attempt",
        "fence = fence + 1, attempt = attempt",
        "fence = fence, attempt = attempt + 1",
        "fence = fence + 2, attempt = attempt + 1",
        "fence = fence + 1, attempt = attempt + 2",
        "fence = fence - 1, attempt = attempt + 1",
    ],
)
def test_a_claim_raises_fence_and_attempt_by_one(driver: Driver, change: str):
    driver.in_state(S.QUEUED)
    owner = driver.worker()

    refused(driver, FENCE_RULE, f"{TAKE}, {change}", owner=owner)
    taken = driver.sql(f"{TAKE}, fence = fence + 1, attempt = attempt + 1", owner=owner)

    assert taken == 1


@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING, S.STOPPING, S.FINALIZING])
def test_an_owned_job_has_an_owner_and_a_lease(driver: Driver, state: JobState):
    driver.in_state(state)
    rule = "jobs_owned_have_a_lease"

    refused(driver, rule, "UPDATE jobs SET owner = NULL")
    refused(driver, rule, "UPDATE jobs SET lease_expires_at = NULL")
    refused(driver, rule, "UPDATE jobs SET owner = NULL, lease_expires_at = NULL")
    driver.sql(f"UPDATE jobs SET lease_expires_at = {LEASE}")


@pytest.mark.parametrize("state", [S.QUEUED, S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELLED])
def test_a_job_that_nobody_owns_has_neither(driver: Driver, state: JobState):
    driver.in_state(state)
    rule = "jobs_owned_have_a_lease"

    refused(driver, rule, "UPDATE jobs SET owner = :owner", owner=driver.worker())
    refused(driver, rule, f"UPDATE jobs SET lease_expires_at = {LEASE}")
    driver.sql("UPDATE jobs SET owner = NULL, lease_expires_at = NULL")


@pytest.mark.parametrize("leaves", ["owner", "lease_expires_at"])
def test_a_job_is_not_given_up_with_its_owner_or_its_lease(driver: Driver, leaves: str):
    driver.in_state(S.RUNNING)
    kept = {"owner": "lease_expires_at", "lease_expires_at": "owner"}[leaves]

    change = f"state = 'queued', {kept} = NULL"

    refused(driver, "jobs_owned_have_a_lease", f"UPDATE jobs SET {change}")


def test_a_job_begins_in_the_queue(driver: Driver):
    job_id = driver.submit()
    columns = (
        "project_id, dataset_id, desired, priority, base_model, device, spec, crash_streak,"
        " not_before, rung_at, step, created_at, updated_at"
    )
    row = f"SELECT :new, :state, :number, :number, {columns} FROM jobs WHERE id = :id"
    copy = f"INSERT INTO jobs (id, state, fence, attempt, {columns}) {row}"

    for state in S:
        if state is not S.QUEUED:
            values = {"new": "job_2", "state": state.value, "number": 0, "id": job_id}
            refused(driver, "jobs_begin_in_the_queue", copy, **values)
    values = {"new": "job_2", "state": "queued", "number": 1, "id": job_id}
    refused(driver, "jobs_begin_in_the_queue", copy, **values)

    assert driver.sql(copy, **{**values, "number": 0}) == 1


def test_an_attempt_has_the_number_and_the_fence_of_its_job(driver: Driver):
    job_id = driver.submit()
    run = driver.claimed()
    rule = "attempts_are_of_the_newest_fence"

    refused(driver, rule, ATTEMPT, job=job_id, attempt=2, fence=1)
    refused(driver, rule, ATTEMPT, job=job_id, attempt=1, fence=2)
    refused(driver, rule, ATTEMPT, job="job_none", attempt=1, fence=1)
    for column in ("attempt", "fence"):
        statement = f"UPDATE attempts SET {column} = {column} + 1"
        refused(driver, "attempts_keep_their_fence", statement)
    driver.sql("DELETE FROM attempts")

    assert driver.sql(ATTEMPT, job=job_id, attempt=1, fence=run.fence) == 1


def test_a_fence_has_one_attempt_even_without_that_rule(driver: Driver):
    job_id = driver.submit()
    driver.claimed()

    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        insert_without_rule(driver, ATTEMPT, job=job_id, attempt=2, fence=1)


def insert_without_rule(driver: Driver, statement: str, **values: object) -> None:
    """Insert in a transaction that drops the trigger first, which comes back with its rollback."""
    drop = "DROP TRIGGER attempts_are_of_the_newest_fence"
    if driver.db.engine.dialect.name == "postgresql":
        drop += " ON attempts"
    with driver.db.write() as session:
        session.execute(text(drop))
        session.execute(text(statement), values)


@pytest.mark.parametrize(
    ("insert", "rule"),
    [
        (EVENT, "trainer_events_are_of_the_owner"),
        (CHECKPOINT, "checkpoints_are_of_the_owner"),
    ],
)
class TestRowsOfAnAttempt:
    def test_an_owned_job_takes_those_of_its_fence_only(
        self, driver: Driver, insert: str, rule: str
    ):
        job_id = driver.submit()
        driver.crash(driver.started())
        run = driver.started()

        for fence in (run.fence - 1, run.fence + 1, 0):
            refused(driver, rule, insert, job=job_id, fence=fence)

        assert driver.sql(insert, job=job_id, fence=run.fence) == 1

    @pytest.mark.parametrize("state", [S.QUEUED, S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELLED])
    def test_a_job_that_nobody_owns_takes_none(
        self, driver: Driver, insert: str, rule: str, state: JobState
    ):
        job_id, run = driver.in_state(state)

        refused(driver, rule, insert, job=job_id, fence=run.fence)

    @pytest.mark.parametrize("state", [S.STARTING, S.RUNNING, S.STOPPING, S.FINALIZING])
    def test_a_job_in_any_owned_state_takes_them(
        self, driver: Driver, insert: str, rule: str, state: JobState
    ):
        job_id, _ = driver.in_state(state)
        fence = driver.sql("SELECT fence FROM jobs")[0][0]

        assert driver.sql(insert, job=job_id, fence=fence) == 1

    def test_a_dead_attempt_gives_its_own_while_it_is_adopted(
        self, driver: Driver, insert: str, rule: str
    ):
        job_id = driver.submit()
        dead = driver.started()
        driver.crash(dead)
        driver.started()

        adopt = "UPDATE attempts SET adopting = :on WHERE fence = :fence"
        driver.sql(adopt, on=True, fence=dead.fence)
        refused(driver, rule, insert, job=job_id, fence=0)
        assert driver.sql(insert, job=job_id, fence=dead.fence) == 1

        driver.sql("DELETE FROM checkpoints")
        driver.sql("DELETE FROM trainer_events")
        driver.sql(adopt, on=False, fence=dead.fence)
        refused(driver, rule, insert, job=job_id, fence=dead.fence)


def test_what_a_trainer_reported_never_changes(driver: Driver):
    driver.in_state(S.RUNNING)
    rule = "trainer_events_never_change"
    changes = ("seq = seq + 1000", "fence = fence + 1", "step = step + 1", "kind = 'x'")

    for change in (*changes, "body = '{}'"):
        refused(driver, rule, f"UPDATE trainer_events SET {change}")
    driver.sql("UPDATE trainer_events SET superseded = :on", on=True)
    refused(driver, rule, "UPDATE trainer_events SET superseded = :on", on=False)


def test_a_checkpoint_stays_what_it_is(driver: Driver):
    driver.in_state(S.RUNNING)
    rule = "checkpoints_keep_what_they_are"
    changes = ("step = step + 1", "attempt = attempt + 1", "fence = fence + 1")

    for change in (*changes, "manifest_sha256 = 'x'", "id = 'ckpt_x'"):
        refused(driver, rule, f"UPDATE checkpoints SET {change}")
    driver.sql("UPDATE checkpoints SET superseded = :on, pinned = :on", on=True)
    driver.sql("UPDATE checkpoints SET pinned = :on", on=False)
    statement = "UPDATE checkpoints SET superseded = :on"
    refused(driver, "checkpoints_never_get_better", statement, on=False)


WAYS_DOWN = {
    "committed": {"corrupt", "deleting"},
    "corrupt": {"deleting"},
    "deleting": set[str](),
}


@pytest.mark.parametrize("status", WAYS_DOWN)
def test_the_status_of_a_checkpoint_never_gets_better(driver: Driver, status: str):
    way = {"committed": [], "corrupt": ["corrupt"], "deleting": ["corrupt", "deleting"]}[status]
    update = "UPDATE checkpoints SET status = :to WHERE id = :id"
    _, run = driver.in_state(S.RUNNING)

    for number, target in enumerate(WAYS_DOWN):
        driver.checkpoint(run, 6 + number)
        (row,) = driver.sql("SELECT id FROM checkpoints WHERE step = :step", step=6 + number)
        for each in way:
            driver.sql(update, to=each, id=row[0])
        if target == status or target in WAYS_DOWN[status]:
            assert driver.sql(update, to=target, id=row[0]) == 1
        else:
            refused(driver, "checkpoints_never_get_better", update, to=target, id=row[0])


def test_an_attempt_whose_fence_is_forgotten_in_the_code_is_refused_by_the_database(
    driver: Driver,
):
    driver.submit()
    stale = driver.started()
    driver.crash(stale)
    driver.started()

    with pytest.raises(IntegrityError, match="trainer_events_are_of_the_owner"):
        store_unguarded(driver, stale)


def store_unguarded(driver: Driver, run: Claimed) -> None:
    """Do what `recording.record` does, without its guard."""
    with driver.db.write() as session:
        key = AttemptKey(run.job_id, run.attempt, run.fence)
        recording.store(session, key, [driver.step(run, 9)])
