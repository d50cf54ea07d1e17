"""Rollups: whatever is stored and left behind, a thinned curve keeps every extreme."""

import random
from collections.abc import Mapping, Sequence

import pytest

from app.db import rollups as rollup_queries
from app.db.keys import DEFAULT_PROJECT
from app.domain.curves import MOST_KEPT, Course, Point
from app.domain.jobs import JobState
from app.services import curves, jobs, metrics, resume, rollups
from app.services.curves import Curves
from app.services.resume import ResumeRequest
from tests.services.driver import Driver

SMALL = {1: 4, 2: 16, 3: 64}
EVERY = 10_000


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rollup_queries, "WIDTHS", SMALL)
    monkeypatch.setattr(rollups, "WIDTHS", SMALL)


def shown(driver: Driver, job_id: str, *, max_points: int = EVERY, **bounds: int) -> Curves:
    return curves.of_job(driver.db, DEFAULT_PROJECT, job_id, max_points=max_points, **bounds)


def real(driver: Driver, job_id: str) -> tuple[list[Point], list[int]]:
    """Return the points and the spikes of all steps, straight from the rows."""
    found = metrics.of_job(
        driver.db, DEFAULT_PROJECT, job_id, after_step=0, limit=EVERY, superseded=False
    )
    course = Course()
    advanced = [course.advance(each) for each in found]
    return [point for point, _ in advanced], [p.step for p, is_spike in advanced if is_spike]


def read(driver: Driver, job_id: str, first: int, last: int) -> tuple[list[Point], list[int]]:
    with driver.db.read() as session:
        pieces = list(rollups.read(session, job_id, first=first, last=last, max_points=2))
    return [p for some, _ in pieces for p in some], [step for _, some in pieces for step in some]


def stored(driver: Driver, job_id: str) -> Mapping[int, int]:
    """Return how many stretches of each level there are."""
    with driver.db.read() as session:
        return {
            level: len(rollup_queries.between(session, job_id, level=level, first=0, end=EVERY))
            for level in SMALL
        }


def stop_and_resume(driver: Driver, job_id: str, run: object, step: int) -> None:
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    assert driver.stop(run) is JobState.CANCELLED  # type: ignore[arg-type]
    body = ResumeRequest.model_validate({"checkpoint": step})
    resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, body)


def some_steps(driver: Driver, run: object, first: int, last: int, chance: random.Random) -> None:
    """Record steps in batches of any size, with peaks and losses that are not finite."""
    while first <= last:
        end = min(last, first + chance.randrange(9))
        events = [
            driver.step(
                run,  # type: ignore[arg-type]
                step,
                loss=chance.choice([None, 50.0, *(chance.random() for _ in range(8))]),
                grad_norm=chance.choice([None, *(chance.random() for _ in range(5))]),
                num_tokens=chance.randrange(1, 99),
                step_seconds=chance.random(),
            )
            for step in range(first, end + 1)
        ]
        driver.record(run, *events)  # type: ignore[arg-type]
        first = end + 1


@pytest.mark.parametrize("seed", range(4))
def test_a_thinned_curve_has_real_points_only_and_every_extreme(
    driver: Driver, seed: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rollups, "_MOST_STEPS", 12)
    monkeypatch.setattr(rollups, "_MOST_STRETCHES", 6)
    chance = random.Random(seed)  # noqa: S311, RUF100
    job_id = driver.submit(training={"max_steps": 1000})
    at = 0
    for _ in range(4):
        run = driver.started()
        saved = at + chance.randrange(1, 20)
        some_steps(driver, run, at + 1, saved, chance)
        driver.checkpoint(run, saved)
        some_steps(driver, run, saved + 1, saved + chance.randrange(40), chance)
        stop_and_resume(driver, job_id, run, saved)
        at = saved
    some_steps(driver, driver.started(), at + 1, at + 70, chance)

    points, spikes = real(driver, job_id)
    for _ in range(30):
        first = chance.randrange(1, len(points))
        last = chance.randrange(first, len(points) + 1)
        found, peaks = read(driver, job_id, first, last)
        within = points[first - 1 : last]
        assert set(found) <= set(within)
        assert [each.step for each in found] == sorted({each.step for each in found})
        assert (found[0], found[-1]) == (within[0], within[-1])
        assert range_of(found) == range_of(within)
        assert peaks == [step for step in spikes if first <= step <= last]


def range_of(points: Sequence[Point]) -> list[object]:
    """Return lowest, highest and whether one was not finite, of each curve that keeps them."""
    found: list[object] = []
    for name in ("loss", "grad_norm", "tokens_per_second"):
        values = [getattr(point, name) for point in points]
        finite = [value for value in values if value is not None]
        found += [min(finite, default=None), max(finite, default=None), None in values]
    return found


def test_stretches_are_made_as_steps_come_and_go_with_the_steps(driver: Driver):
    job_id = driver.submit(training={"max_steps": 1000})
    run = driver.started()
    driver.steps(run, 1, 3)
    assert stored(driver, job_id) == {1: 0, 2: 0, 3: 0}
    driver.steps(run, 4, 70)
    assert stored(driver, job_id) == {1: 17, 2: 4, 3: 1}
    driver.checkpoint(run, 33)

    stop_and_resume(driver, job_id, run, 33)

    assert stored(driver, job_id) == {1: 8, 2: 2, 3: 0}
    assert shown(driver, job_id).columns.step[-1] == 33


def test_a_long_run_is_read_from_its_stretches_and_not_from_its_steps(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    job_id = driver.submit(training={"max_steps": 1000})
    driver.steps(driver.started(), 1, 130)
    monkeypatch.setattr(rollups, "_MOST_STEPS", 12)
    monkeypatch.setattr(rollups, "_MOST_STRETCHES", 2)
    one_by_one = rollups.event_queries.metrics
    asked: list[int] = []

    def counted(*args: object, **keys: object) -> object:
        found = one_by_one(*args, **keys)  # type: ignore[arg-type]
        asked.append(len(found))
        return found

    monkeypatch.setattr(rollups.event_queries, "metrics", counted)

    found, _ = read(driver, job_id, 1, 130)

    assert (found[0].step, found[-1].step) == (1, 130)
    assert sum(asked) <= SMALL[1]


def test_steps_that_came_without_stretches_are_drawn_the_same_and_get_them(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    job_id = driver.submit(training={"max_steps": 1000})
    monkeypatch.setattr(rollups, "extend", lambda *_: None)
    driver.steps(driver.started(), 1, 70)
    before = shown(driver, job_id)
    assert stored(driver, job_id) == {1: 0, 2: 0, 3: 0}

    with driver.db.write() as session:
        rollups.rebuild(session, job_id)

    assert stored(driver, job_id) == {1: 17, 2: 4, 3: 1}
    assert shown(driver, job_id) == before


@pytest.mark.parametrize("max_points", [2, 11, 40, 69])
def test_no_more_points_come_than_one_stretch_needs_beyond_what_is_asked(
    driver: Driver, max_points: int
):
    job_id = driver.submit(training={"max_steps": 1000})
    driver.steps(driver.started(), 1, 70)

    found = shown(driver, job_id, max_points=max_points).columns.step

    assert len(found) <= max(max_points, MOST_KEPT)
    assert (found[0], found[-1]) == (1, 70)
    assert len(shown(driver, job_id, max_points=70).columns.step) == 70
    assert shown(driver, job_id, from_step=20, to_step=30).columns.step == list(range(20, 31))


def test_a_spike_is_told_of_from_steps_and_from_stretches(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    job_id = driver.submit(training={"max_steps": 1000})
    run = driver.started()
    losses = [1.0 + 0.01 * (step % 3) for step in range(1, 71)]
    losses[39] = 9.0
    events = [driver.step(run, step, loss=loss) for step, loss in enumerate(losses, 1)]
    driver.record(run, *events)

    from_steps = [each.step for each in shown(driver, job_id).markers if each.kind == "spike"]
    monkeypatch.setattr(rollups, "_MOST_STEPS", 12)
    monkeypatch.setattr(rollups, "_MOST_STRETCHES", 2)
    from_stretches = [each.step for each in shown(driver, job_id).markers if each.kind == "spike"]

    assert from_steps == from_stretches == [40]
