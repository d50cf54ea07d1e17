"""Charts of long runs are drawn from rollups; these tell what the steps themselves would."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.db import rollups as rollup_queries
from app.db.keys import DEFAULT_PROJECT
from app.services import charts, rollups
from app.services.charts import Range
from app.services.runs import Claimed
from tests.services.driver import Driver

# Small enough that a few hundred steps fill several levels.
WIDTHS = {1: 16, 2: 64, 3: 256}
MOST_STEPS = 40
# Numbers of steps, and where their losses come from: losses drawn one by one would be few.
BATCH = st.tuples(st.integers(1, 150), st.integers(0, 2**32))
ATTEMPT = st.lists(st.tuples(BATCH, st.booleans()), min_size=1, max_size=4)
NAMES = ("loss", "grad_norm")


@pytest.fixture
def small_rollups(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rollup_queries, rollups):
        monkeypatch.setattr(module, "WIDTHS", WIDTHS)
    monkeypatch.setattr(rollups, "_MOST_STEPS", MOST_STEPS)
    monkeypatch.setattr(rollups, "_MOST_STRETCHES", 4)


@pytest.mark.usefixtures("small_rollups")
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(attempts=st.lists(ATTEMPT, min_size=2, max_size=4), seed=st.integers(0, 2**32))
def test_charts_tell_what_the_steps_tell_whatever_was_stored_and_left_behind(
    driver: Driver,
    attempts: Sequence[Sequence[tuple[tuple[int, int], bool]]],
    seed: int,
):
    job_id = driver.submit(training={"max_steps": 10_000})
    current: list[float | None] = []
    for parts in attempts:
        run = driver.started()
        del current[driver.job(job_id).step :]
        for (size, losses), is_saved in parts:
            random = Random(losses)
            store(driver, run, current, [_loss(random) for _ in range(size)])
            assert_chart_is_true(driver, job_id, current, Range())
            if is_saved:
                driver.checkpoint(run, len(current))
        begin, end = sorted(Random(seed).choices(range(1, len(current) + 1), k=2))
        assert_chart_is_true(driver, job_id, current, Range(begin, end))
        # Ends the attempt; the next one starts from its last checkpoint.
        driver.crash(run)
        driver.sql("UPDATE jobs SET crash_streak = 0 WHERE id = :id", id=job_id)
        driver.forget(job_id)
    driver.sql("DELETE FROM jobs WHERE id = :id", id=job_id)


@pytest.mark.usefixtures("small_rollups")
def test_an_extreme_that_was_left_behind_is_in_no_chart(driver: Driver):
    job_id = driver.submit(training={"max_steps": 10_000})
    run, current = driver.started(), list[float | None]()
    store(driver, run, current, [2.0] * 70)
    driver.checkpoint(run, 70)
    store(driver, run, current, [2.0] * 10 + [99.0] + [2.0] * 400)
    driver.crash(run)
    driver.forget(job_id)
    second = driver.started()
    del current[70:]

    assert_chart_is_true(driver, job_id, current, Range())
    store(driver, second, current, [1.0] * 500)

    assert_chart_is_true(driver, job_id, current, Range())


def store(
    driver: Driver, run: Claimed, current: list[float | None], losses: Sequence[float | None]
) -> None:
    """Record the next steps, which a list of the losses of the current branch takes in too."""
    first = len(current) + 1
    events = [
        driver.step(run, first + place, loss=loss, grad_norm=_norm(loss, place))
        for place, loss in enumerate(losses)
    ]
    driver.record(run, *events)
    current += losses


def _loss(random: Random) -> float | None:
    return random.choice([None, *range(-60, 61)] if random.random() < 0.5 else [1.0])


def _norm(loss: float | None, place: int) -> float | None:
    return None if place % 7 == 6 else abs(loss or 0.0) + place


def assert_chart_is_true(
    driver: Driver, job_id: str, current: Sequence[float | None], steps: Range
) -> None:
    """Compare a chart with the losses of the current branch."""
    most = 60
    end = steps.last or len(current)
    found = charts.chart(
        driver.db, DEFAULT_PROJECT, job_id, steps, max_points=most, names=NAMES
    ).columns
    truth = {step: current[step - 1] for step in range(steps.first, end + 1)}
    drawn = dict(zip(found["step"], found["loss"], strict=True))
    assert len(drawn) == len(found["step"]) <= most
    assert all(truth[int(step or 0)] == loss for step, loss in drawn.items())
    assert {steps.first, end} <= set(drawn)
    assert ends_of(drawn.values()) == ends_of(truth.values())
    assert found["tokens"] == [10 * int(step or 0) for step in found["step"]]
    if len(truth) <= most:
        assert drawn == truth


def ends_of(values: Any) -> tuple[float, float, bool] | None:
    """Return the lowest and the highest value, and whether one was not finite."""
    every = list(values)
    finite = [each for each in every if each is not None]
    return (min(finite), max(finite), None in every) if finite else None
