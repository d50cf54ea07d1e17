"""Short chaos runs with fixed seeds: whatever dies, nothing that was accepted is lost or doubled.

`bench/chaos.py` does the same for hours.
"""

import shutil

import pytest

from tests.chaos.harness import catalogue, nemeses, oracle, run
from tests.chaos.harness.failing import in_trainers, in_workers
from tests.chaos.harness.run import Scenario, Verdict
from tests.chaos.harness.stack import Shape
from tests.chaos.harness.storm import storm
from tests.fixtures.database import PostgresMissing, find_bin_folder, skip_or_fail

pytestmark = pytest.mark.services
both = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


def executed(
    scenario: Scenario,
    database: str,
    *,
    seed: int,
    shape: Shape,
    checks: tuple[oracle.Check, ...] = (),
) -> Verdict:
    """Run a scenario and require that nothing was violated; the home is kept otherwise."""
    if database == "postgresql":
        _require_postgres()
    verdict = run.execute(scenario, seed=seed, database=database, shape=shape, checks=checks)
    assert not verdict.violations, f"{verdict.violations} (kept: {verdict.home})"
    shutil.rmtree(verdict.home, ignore_errors=True)
    return verdict


def planned(name: str, trials: int, database: str, *, seed: int) -> Verdict:
    plan = catalogue.PLANS[name]
    return executed(plan.make(trials), database, seed=seed, shape=plan.shape, checks=plan.checks)


def _require_postgres() -> None:
    try:
        find_bin_folder()
    except PostgresMissing as error:
        skip_or_fail(str(error))


@both
def test_nothing_is_lost_or_doubled_whatever_is_killed(database: str):
    strikes = {name: (nemesis, 1.0) for name, (nemesis, _) in nemeses.KILLS.items()}
    strikes["trainer"] = (nemeses.kill_trainer, 4.0)

    verdict = executed(storm(strikes, kills=18), database, seed=11, shape=Shape())

    assert verdict.run.num_counted >= 18
    assert len(verdict.evidence.jobs) >= 4


def test_a_worker_that_was_stopped_past_its_lease_is_refused_everything():
    verdict = planned("zombie", 2, "sqlite", seed=12)

    assert verdict.run.figures["refused"] >= 2


def test_an_outage_of_valkey_costs_no_attempt_and_no_metric():
    verdict = planned("valkey", 4, "sqlite", seed=13)

    assert verdict.run.num_counted >= 4


@pytest.mark.parametrize("name", ["postgres-restart", "postgres-blink"])
def test_a_restart_or_outage_of_postgres_restarts_no_training(name: str):
    verdict = planned(name, 2, "postgresql", seed=14)

    assert verdict.run.num_counted >= 2


def test_a_worker_that_is_told_to_end_gives_its_jobs_back_without_a_crash():
    verdict = planned("drain", 2, "sqlite", seed=15)

    assert sum(len(job.attempts) for job in verdict.evidence.jobs) > len(verdict.evidence.jobs)


def test_a_damaged_checkpoint_is_never_loaded():
    verdict = planned("corruption", 14, "sqlite", seed=16)

    assert sum(verdict.run.figures["damaged"].values()) >= 14
    assert verdict.run.figures["fallbacks"] >= 1


def test_a_pause_or_cancel_at_the_end_has_one_outcome():
    verdict = planned("races", 16, "sqlite", seed=17)

    assert {job.state for job in verdict.evidence.jobs} <= {"succeeded", "cancelled", "paused"}


def test_a_trainer_that_fails_anywhere_is_replaced_and_learns_the_same():
    verdict = executed(
        in_trainers(seeds=1, actions=("kill", "raise:EIO", "raise:ENOSPC")),
        "sqlite",
        seed=18,
        shape=Shape(slots=3),
    )

    assert sum(len(job.attempts) for job in verdict.evidence.jobs) > len(verdict.evidence.jobs)


@both
def test_a_worker_that_dies_in_any_transaction_leaves_nothing_half_done(database: str):
    scenario = in_workers(seeds=1, actions=("kill",))

    verdict = executed(scenario, database, seed=19, shape=Shape())

    assert sum(verdict.run.figures["workers_died"].values()) >= 3


def test_a_job_steps_again_soon_after_its_trainer_was_killed():
    verdict = planned("recovery-trainer", 3, "sqlite", seed=20)

    assert len(verdict.recoveries["trainer"]) == 3
    # Far above what it takes; it tells a lease that had to run out first.
    assert max(verdict.recoveries["trainer"]) < 6
