"""Short chaos runs with fixed seeds: whatever dies, nothing that was accepted is lost or doubled.

`bench/chaos.py` does the same for hours.
"""

import pytest

from tests.chaos.harness import nemeses
from tests.chaos.harness.failing import ACTIONS, IN_WORKER, in_trainers, in_workers
from tests.chaos.harness.stack import Shape
from tests.chaos.harness.storm import storm
from tests.chaos.judged import executed, planned

pytestmark = pytest.mark.services
both = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


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


@pytest.mark.parametrize(("database", "actions"), [("sqlite", ACTIONS), ("postgresql", ("kill",))])
def test_a_worker_that_fails_in_any_transaction_leaves_nothing_half_done(
    database: str, actions: tuple[str, ...]
):
    verdict = executed(in_workers(seeds=1, actions=actions), database, seed=19, shape=Shape())

    died = verdict.run.figures["workers_died"]
    assert all(died[name] >= 1 for name in IN_WORKER)


def test_a_job_steps_again_soon_after_its_trainer_was_killed():
    verdict = planned("recovery-trainer", 3, "sqlite", seed=20)

    assert len(verdict.recoveries["trainer"]) == 3
    # Far above what it takes; it tells a lease that had to run out first.
    assert max(verdict.recoveries["trainer"]) < 6
