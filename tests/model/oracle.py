"""What must be true of rows and files at any moment: one function per promise."""

from pathlib import Path

from app.domain import checkpoints as checkpoint_files
from app.domain.jobs import OWNED_STATES, TRANSITIONS, JobState
from app.domain.runs import checkpoint_folder
from tests.model.lifecycle import Expected
from tests.services.driver import Driver

PAIRS = {(None, "queued"), *((source.value, target.value) for source, target, _ in TRANSITIONS)}


def check(driver: Driver, expected: dict[str, Expected]) -> None:
    """Assert every promise on every job.

    Raises:
        AssertionError: One does not hold.
    """
    check_no_job_is_lost(driver, expected)
    for job_id, job in expected.items():
        check_moves(driver, job_id, job)
        check_fences(driver, job_id, job)
        check_metrics(driver, job_id, job)
        check_checkpoints(driver, job_id, job)


def check_no_job_is_lost(driver: Driver, expected: dict[str, Expected]) -> None:
    """Check that each job is where its story says, and that somebody will go on with it."""
    rows = driver.sql(
        "SELECT id, state, desired, owner, lease_expires_at, fence, attempt, best_step,"
        " best_eval_loss, crash_streak FROM jobs"
    )
    assert {row.id for row in rows} == set(expected)
    for row in rows:
        job = expected[row.id]
        assert (row.state, row.desired) == (job.state, job.desired), row.id
        is_owned = JobState(row.state) in OWNED_STATES
        assert (row.owner is not None) == (row.lease_expires_at is not None) == is_owned
        assert row.fence == row.attempt == job.fence
        best = None if row.best_step is None else (row.best_step, row.best_eval_loss)
        assert best == job.best_evaluation, row.id
        assert row.state == JobState.FAILED or row.crash_streak == job.crashes, row.id
        assert is_owned or job.state is not JobState.QUEUED or row.desired == "run"


def check_moves(driver: Driver, job_id: str, job: Expected) -> None:
    """Check that the recorded moves are one unbroken walk through the state table."""
    moves = driver.sql(
        "SELECT from_state, to_state FROM job_events WHERE job_id = :id AND type = 'state'"
        " ORDER BY id",
        id=job_id,
    )
    here = None
    for source, target in moves:
        assert source == here
        assert (source, target) in PAIRS
        here = target
    assert here == job.state


def check_fences(driver: Driver, job_id: str, job: Expected) -> None:
    """Check that every fence has one attempt, and that no row has a fence that was never minted."""
    minted = driver.sql("SELECT fence FROM attempts WHERE job_id = :id ORDER BY fence", id=job_id)
    assert [row[0] for row in minted] == list(range(1, job.fence + 1))
    open_doors = driver.sql("SELECT count(*) FROM attempts WHERE adopting = :on", on=True)
    assert open_doors[0][0] == 0
    for table in ("trainer_events", "checkpoints"):
        query = f"SELECT count(*) FROM {table} WHERE job_id = :id AND fence > :fence"
        assert driver.sql(query, id=job_id, fence=job.fence)[0][0] == 0


def check_metrics(driver: Driver, job_id: str, job: Expected) -> None:
    """Check that every step of the current branch has exactly one row."""
    rows = driver.sql(
        "SELECT step FROM trainer_events WHERE job_id = :id AND kind = 'step'"
        " AND superseded = :off ORDER BY step",
        id=job_id,
        off=False,
    )
    assert [row[0] for row in rows] == list(range(1, job.last_step + 1))


def check_checkpoints(driver: Driver, job_id: str, job: Expected) -> None:
    """Check that the rows are the checkpoints of the story, and that the good ones verify."""
    rows = driver.sql(
        "SELECT step, attempt, status, pinned, eval_loss, manifest_sha256 FROM checkpoints"
        " WHERE job_id = :id AND superseded = :off ORDER BY step",
        id=job_id,
        off=False,
    )
    assert {row.step for row in rows if row.status == "committed"} == set(job.saved)
    assert {row.step for row in rows if row.status == "corrupt"} == job.known_bad
    assert {row.step for row in rows if row.pinned} == job.pinned
    scores = {row.step: row.eval_loss for row in rows if row.eval_loss is not None}
    assert scores == job.scores
    for row in rows:
        folder = checkpoint_folder(driver.settings.home, job_id, row.attempt, row.step)
        if row.status == "committed" and folder not in job.broken:
            checkpoint_files.verify(folder, manifest_sha256=row.manifest_sha256)


def check_final(driver: Driver, job_id: str) -> None:
    """Check the adapter of a job that succeeded."""
    query = "SELECT final_attempt, final_manifest_sha256 FROM jobs WHERE id = :id"
    ((attempt, sha256),) = driver.sql(query, id=job_id)
    folder: Path = checkpoint_folder(driver.settings.home, job_id, attempt, 0).with_name("final")
    checkpoint_files.verify(folder, manifest_sha256=sha256)
