"""Resuming from a step leaves one history; what lies past that step is kept, but out of the way."""

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import CheckpointUnusable, NotFound, StateConflict
from app.domain.jobs import JobState
from app.services import checkpoints, jobs, metrics, resume, runs
from app.services.resume import ResumeRequest
from app.services.runs import Claimed
from tests.services.driver import Driver


def resume_from(driver: Driver, job_id: str, **request: object) -> None:
    body = ResumeRequest.model_validate(request)
    resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, body)


def steps(driver: Driver, job_id: str, *, superseded: bool = False) -> list[tuple[int, float]]:
    """Return (step, loss) of the metrics; the whole part of the loss is the attempt's fence."""
    found = metrics.of_job(
        driver.db, DEFAULT_PROJECT, job_id, after_step=0, limit=100, superseded=superseded
    )
    return [(each.step, each.loss or 0.0) for each in found]


def saved(driver: Driver, job_id: str, *, superseded: bool = False) -> list[tuple[int, int]]:
    found = checkpoints.of_job(driver.db, DEFAULT_PROJECT, job_id, superseded=superseded)
    return [(each.step, each.attempt) for each in found]


def cancelled_at_12(driver: Driver) -> tuple[str, Claimed]:
    """Return a cancelled job with steps 1 to 12 and checkpoints at 4, 8 and 12."""
    job_id = driver.submit()
    run = driver.started()
    driver.train(run, 1, 12, save_every=4)
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    assert driver.stop(run) is JobState.CANCELLED
    return job_id, run


@pytest.mark.parametrize(("checkpoint", "left"), [(4, [4]), (8, [4, 8]), (12, [4, 8, 12])])
def test_resuming_from_a_step_leaves_what_is_before_it(
    driver: Driver, checkpoint: int, left: list[int]
):
    job_id, _ = cancelled_at_12(driver)

    resume_from(driver, job_id, checkpoint=checkpoint)

    assert [step for step, _ in steps(driver, job_id)] == list(range(1, checkpoint + 1))
    assert [step for step, _ in saved(driver, job_id)] == left
    assert [step for step, _ in steps(driver, job_id, superseded=True)] == list(range(1, 13))
    assert [step for step, _ in saved(driver, job_id, superseded=True)] == [4, 8, 12]
    assert driver.job(job_id).step == checkpoint


def test_after_a_resume_every_step_has_one_row_and_it_is_the_newest(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    resume_from(driver, job_id, checkpoint=4)

    second = driver.started()
    driver.train(second, 5, 10, save_every=4)

    fences = [int(loss) for _, loss in steps(driver, job_id)]
    assert [step for step, _ in steps(driver, job_id)] == list(range(1, 11))
    assert fences == [1] * 4 + [2] * 6
    assert saved(driver, job_id) == [(4, 1), (8, 2)]
    assert saved(driver, job_id, superseded=True) == [(4, 1), (8, 1), (8, 2), (12, 1)]


def test_a_bare_step_and_latest_mean_the_current_branch(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    old = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "8")
    resume_from(driver, job_id, checkpoint=4)
    latest_now = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "latest")
    with pytest.raises(NotFound, match="no checkpoint 12; it has: 4"):
        checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "12")

    second = driver.started()
    driver.train(second, 5, 8, save_every=4)

    new = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "8")
    by_id = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, old.id)
    assert latest_now.step == 4
    assert (new.attempt, new.superseded) == (2, False)
    assert (by_id.attempt, by_id.superseded) == (1, True)


def test_a_superseded_checkpoint_cannot_be_resumed_from(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    left = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "12")
    resume_from(driver, job_id, checkpoint=4)
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    with pytest.raises(CheckpointUnusable, match="left behind"):
        resume_from(driver, job_id, checkpoint=left.id)

    assert driver.job(job_id).state is JobState.CANCELLED


def test_the_next_attempt_starts_from_the_named_checkpoint(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    resume_from(driver, job_id, checkpoint=8)

    start = runs.begin(driver.db, driver.settings, driver.claimed())

    assert start is not None
    assert start.step == 8


def test_a_crash_after_a_resume_continues_the_new_branch(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    resume_from(driver, job_id, checkpoint=4)
    second = driver.started()
    driver.train(second, 5, 7, save_every=100)
    driver.crash(second)

    third = driver.started()
    driver.train(third, 5, 12, save_every=4)

    assert [int(loss) for _, loss in steps(driver, job_id)] == [1] * 4 + [3] * 8
    assert saved(driver, job_id) == [(4, 1), (8, 3), (12, 3)]


def test_starting_from_scratch_supersedes_everything(driver: Driver):
    job_id, _ = cancelled_at_12(driver)

    resume_from(driver, job_id, from_scratch=True)

    assert steps(driver, job_id) == []
    assert saved(driver, job_id) == []
    assert driver.job(job_id).step == 0
    assert runs.begin(driver.db, driver.settings, driver.claimed()) is None


def test_a_checkpoint_that_broke_is_passed_over_and_marked(driver: Driver):
    job_id, run = cancelled_at_12(driver)
    (driver.attempt(run) / "checkpoint-12" / "optimizer.safetensors").write_bytes(b"?")

    resume_from(driver, job_id)

    found = checkpoints.of_job(driver.db, DEFAULT_PROJECT, job_id, superseded=True)
    assert [each.step for each in found if each.status == "corrupt"] == [12]
    assert driver.job(job_id).step == 8
    kinds = [row[0] for row in driver.sql("SELECT type FROM job_events ORDER BY id")]
    assert kinds.count("checkpoint_corrupt") == 1


def test_a_checkpoint_that_broke_while_the_job_waited_is_passed_over_at_the_start(driver: Driver):
    job_id, run = cancelled_at_12(driver)
    resume_from(driver, job_id, checkpoint=12)
    (driver.attempt(run) / "checkpoint-12" / "optimizer.safetensors").unlink()

    start = runs.begin(driver.db, driver.settings, driver.claimed())

    assert start is not None
    assert start.step == 8
    assert [step for step, _ in steps(driver, job_id)] == list(range(1, 9))
    told = driver.sql("SELECT message FROM job_events WHERE type = 'resume_fallback'")
    assert ["continuing from step 8 instead" in row[0] for row in told] == [True]


def test_a_start_from_the_wanted_checkpoint_is_no_fallback_and_is_told_once(driver: Driver):
    job_id, first = cancelled_at_12(driver)
    resume_from(driver, job_id, checkpoint=8)
    run = driver.claimed()
    runs.begin(driver.db, driver.settings, run)
    (driver.attempt(first) / "checkpoint-8" / "optimizer.safetensors").unlink()

    again = runs.begin(driver.db, driver.settings, run)  # its first answer was lost

    assert again is not None
    assert again.step == 4
    assert driver.sql("SELECT id FROM job_events WHERE type = 'resume_fallback'") == []


def test_a_job_paused_before_its_first_checkpoint_starts_again_at_step_0(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    driver.steps(run, 1, 2)
    jobs.pause(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    driver.stop(run)

    resume_from(driver, job_id)

    assert driver.job(job_id).state is JobState.QUEUED
    assert steps(driver, job_id) == []


def test_a_failed_job_without_a_checkpoint_needs_from_scratch(driver: Driver):
    job_id = driver.submit()
    driver.fail(driver.started())

    with pytest.raises(NotFound, match="from_scratch"):
        resume_from(driver, job_id)
    resume_from(driver, job_id, from_scratch=True)

    assert driver.job(job_id).state is JobState.QUEUED
    assert driver.job(job_id).error is None


def test_a_checkpoint_past_the_new_end_is_refused(driver: Driver):
    job_id, _ = cancelled_at_12(driver)

    with pytest.raises(StateConflict, match="12 is past max_steps 10"):
        resume_from(driver, job_id, training={"max_steps": 10})

    assert driver.job(job_id).state is JobState.CANCELLED


def test_a_job_that_ran_again_while_it_was_being_resumed_is_left_alone(driver: Driver):
    job_id, _ = cancelled_at_12(driver)

    def run_again() -> None:
        resume_from(driver, job_id, checkpoint=8)
        run = driver.started()
        jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
        driver.stop(run)

    request = ResumeRequest(from_scratch=True)

    with driver.interrupted(run_again) as slow, pytest.raises(StateConflict, match="try again"):
        resume.resume(slow, driver.outside, DEFAULT_PROJECT, job_id, request)

    assert [step for step, _ in steps(driver, job_id)] == list(range(1, 9))


@pytest.mark.parametrize("loss", ["deleted", "corrupt"])
def test_a_checkpoint_lost_after_its_verification_is_not_resumed_from(driver: Driver, loss: str):
    job_id, _ = cancelled_at_12(driver)
    eight = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "8")

    def lose() -> None:
        if loss == "deleted":
            checkpoints.delete(driver.db, driver.settings, DEFAULT_PROJECT, job_id, eight.id)
            return
        with driver.db.write() as session:
            checkpoints.mark_corrupt(session, eight, "by hand")

    with driver.interrupted(lose) as slow, pytest.raises(CheckpointUnusable, match="try again"):
        resume.resume(
            slow, driver.outside, DEFAULT_PROJECT, job_id, ResumeRequest(checkpoint=eight.id)
        )

    assert driver.job(job_id).state is JobState.CANCELLED
    assert [step for step, _ in steps(driver, job_id)] == list(range(1, 13))


def test_a_checkpoint_left_behind_after_its_verification_is_not_resumed_from(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    request = ResumeRequest(checkpoint=12)

    def leave_behind() -> None:
        resume_from(driver, job_id, checkpoint=4)
        jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    with driver.interrupted(leave_behind) as slow, pytest.raises(CheckpointUnusable):
        resume.resume(slow, driver.outside, DEFAULT_PROJECT, job_id, request)

    assert driver.job(job_id).step == 4


def replayed(driver: Driver, job_id: str, after: tuple[int, int]) -> list[tuple[int, int, str]]:
    """Replay page by page to the end, as a stream does: (fence, seq, kind) of each row."""
    found: list[tuple[int, int, str]] = []
    while (piece := metrics.replay(driver.db, job_id, after=after)).events:
        found += [(event.fence, event.seq, event.kind) for event in piece.events]
        after = piece.end
    return found


def test_a_replay_ends_behind_what_was_superseded(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    newest = replayed(driver, job_id, (0, 0))[-1][:2]
    resume_from(driver, job_id, checkpoint=4)

    piece = metrics.replay(driver.db, job_id, after=(0, 0))

    assert piece.events[-1].cursor != f"{newest[0]}-{newest[1]}"
    assert piece.end == newest


def test_a_replay_gives_one_history_whatever_the_cursor_sits_on(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    before = replayed(driver, job_id, (0, 0))
    resume_from(driver, job_id, checkpoint=4)
    second = driver.started()
    driver.train(second, 5, 8, save_every=4)

    whole = replayed(driver, job_id, (0, 0))
    behind = {row[:2]: replayed(driver, job_id, row[:2]) for row in before}

    kinds = ["ready", *["step"] * 4, "checkpoint", "ready", *["step"] * 4, "checkpoint"]
    assert [kind for *_, kind in whole] == kinds
    for cursor, rest in behind.items():
        assert rest == [row for row in whole if row[:2] > cursor]


def test_a_reader_of_a_left_branch_meets_the_new_one_with_its_first_row(driver: Driver):
    job_id, _ = cancelled_at_12(driver)
    end = replayed(driver, job_id, (0, 0))[-1][:2]
    resume_from(driver, job_id, checkpoint=4)
    kept = replayed(driver, job_id, (0, 0))[-1][:2]
    waiting = [replayed(driver, job_id, cursor) for cursor in (kept, end)]

    second = driver.started()

    assert waiting == [[], []]
    for cursor in (kept, end):
        assert replayed(driver, job_id, cursor) == [(second.fence, 1, "ready")]
