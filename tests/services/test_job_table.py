"""The queries of the table of jobs and of sessions answer alike on both databases."""

from datetime import UTC, datetime, timedelta

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import NotFound, Unauthenticated
from app.domain.jobs import JobState
from app.services import job_table, jobs, keys, sessions
from app.services.job_table import Filter, Sort
from tests.services.driver import Driver


def ids(driver: Driver, wanted: Filter, sort: Sort, *, limit: int = 2) -> list[str]:
    """Return the ids of all pages, one behind the other."""
    found: list[str] = []
    while True:
        page = job_table.page(
            driver.db,
            driver.settings,
            DEFAULT_PROJECT,
            wanted,
            sort,
            after=found[-1] if found else None,
            limit=limit,
        )
        found += [line.job.id for line in page.lines]
        if not page.has_more:
            return found


def test_every_order_is_paged_without_a_gap_or_a_repeat(driver: Driver):
    losses = [None, 2.0, 1.0, 2.0, None]
    made = [driver.submit(priority=number % 2) for number in range(5)]
    for job_id, loss in zip(made, losses, strict=True):
        values = {"loss": loss, "best": loss, "id": job_id}
        driver.sql("UPDATE jobs SET loss = :loss, best_eval_loss = :best WHERE id = :id", **values)

    a, b, c, d, e = made

    assert ids(driver, Filter(), "newest") == [e, d, c, b, a]
    assert ids(driver, Filter(), "priority") == [d, b, e, c, a]
    assert ids(driver, Filter(), "loss") == [c, d, b, e, a]
    assert ids(driver, Filter(), "best_eval_loss") == [c, d, b, e, a]


def test_state_text_and_model_filter_together_and_jobs_are_counted(driver: Driver):
    plain = driver.submit()
    named = driver.submit(name="50%_Off")
    driver.submit(name="500 of")
    paused = driver.submit(name="Off too")
    jobs.pause(driver.db, driver.outside, DEFAULT_PROJECT, paused)

    assert ids(driver, Filter(text="%_off"), "newest") == [named]
    assert ids(driver, Filter([JobState.PAUSED], "off"), "loss") == [paused]
    assert ids(driver, Filter(text=plain[-6:].upper()), "newest") == [plain]
    assert len(ids(driver, Filter(model="tiny"), "newest")) == 4
    assert ids(driver, Filter(model="other"), "newest") == []
    counts = job_table.counts(driver.db, DEFAULT_PROJECT)
    assert counts == {JobState.QUEUED: 3, JobState.PAUSED: 1}
    assert job_table.num_newer(driver.db, DEFAULT_PROJECT, Filter(text="off"), plain) == 2


def test_a_line_has_the_speed_and_few_losses_of_the_run_the_newest_last(driver: Driver):
    job_id = driver.submit(training={"max_steps": 2000})
    run = driver.started()
    driver.steps(run, 1, 999, loss=3.0)
    driver.steps(run, 1000, 1000, loss=None)

    (line,) = job_table.lines(driver.db, driver.settings, DEFAULT_PROJECT, [job_id, "job-none"])

    assert len(line.losses) == 32
    assert list(line.losses) == [3.0] * 31 + [None]
    assert line.tokens_per_second
    assert line.seconds_left


def test_a_session_lives_until_it_ends_or_its_key_does(driver: Driver):
    made = [keys.create(driver.db, driver.settings, name=name) for name in ("one", "two")]
    tokens = [sessions.sign_in(driver.db, driver.settings, key.secret) for key in made]
    link = sessions.make_link(driver.db)
    by_link = sessions.redeem(driver.db, link)

    with pytest.raises(Unauthenticated, match="used already"):
        sessions.redeem(driver.db, link)
    keys.revoke(driver.db, made[0].id)

    assert sessions.find(driver.db, tokens[0]) is None
    assert sessions.find(driver.db, link) is None
    listed = sessions.list_all(driver.db, DEFAULT_PROJECT)
    assert {each.key_id for each in listed} == {made[1].id, None}
    lasts = listed[-1].expires_at - datetime.now(UTC)
    assert timedelta(days=13) < lasts < timedelta(days=15)
    sessions.end(driver.db, DEFAULT_PROJECT, sessions.public_id(by_link))
    assert sessions.find(driver.db, by_link) is None
    with pytest.raises(NotFound):
        sessions.end(driver.db, "another", sessions.public_id(tokens[1]))
    assert sessions.find(driver.db, tokens[1]) is not None
    sessions.sign_out_everywhere(driver.db, DEFAULT_PROJECT)
    assert sessions.list_all(driver.db, DEFAULT_PROJECT) == []
