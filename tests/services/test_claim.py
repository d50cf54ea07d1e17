"""A claim takes the best job that its worker can run, once, and into a free slot only."""

import threading
from collections.abc import Callable

from app.domain.jobs import JobState
from app.domain.workers import Capability
from app.services import catalog, runs
from app.services.runs import Claimed
from tests.services.driver import CAPABILITY, Driver
from tests.services.place import write_model


def claim_all(driver: Driver) -> list[str]:
    claimed: list[str] = []
    while run := driver.claim(driver.other_worker()):
        claimed.append(run.job_id)
    return claimed


def test_higher_priority_goes_first_and_equal_ones_go_by_age(driver: Driver):
    old = driver.submit()
    young = driver.submit()
    urgent = driver.submit(priority=5)
    last = driver.submit(priority=-1)

    order = claim_all(driver)

    assert order == [urgent, *sorted([old, young]), last]


def test_a_worker_takes_only_jobs_whose_model_and_device_it_has(driver: Driver):
    write_model(driver.settings.home, "other")
    driver.submit(base_model="other", priority=9)
    cuda = driver.submit(resources={"device": "cuda"}, priority=5)
    plain = driver.submit()

    cpu = driver.claim(driver.other_worker(), capability=CAPABILITY)
    nothing = driver.claim(driver.other_worker(), capability=CAPABILITY)
    gpu_worker = Capability(device_kinds=("cuda",), models=("tiny",))
    gpu = driver.claim(driver.other_worker(), capability=gpu_worker)

    assert cpu is not None
    assert cpu.job_id == plain
    assert nothing is None
    assert gpu is not None
    assert gpu.job_id == cuda


def test_a_worker_without_a_free_slot_gets_nothing(driver: Driver):
    driver.submit()
    waiting = driver.submit()
    driver.claimed()

    second = driver.claim()

    assert second is None
    assert driver.job(waiting).state is JobState.QUEUED


def test_a_slot_is_free_again_when_its_job_has_left_the_worker(driver: Driver):
    driver.submit()
    second = driver.submit()
    driver.fail(driver.started())

    run = driver.claim()

    assert run is not None
    assert run.job_id == second


def test_a_job_in_its_back_off_is_not_taken(driver: Driver):
    job_id = driver.submit()
    driver.crash(driver.started())
    driver.crash(driver.started())

    during = driver.claim()
    driver.forget(job_id)
    after = driver.claim()

    assert during is None
    assert after is not None


def at_once(driver: Driver, *workers: str) -> list[Claimed | None]:
    """Let several threads claim at the same moment."""
    gate = threading.Barrier(len(workers))
    taken: list[Claimed | None] = []

    def one(worker_id: str) -> None:
        gate.wait()
        taken.append(
            runs.claim(driver.db, driver.settings, worker_id=worker_id, capability=CAPABILITY)
        )

    _together([lambda worker=worker: one(worker) for worker in workers])
    return taken


def _together(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_workers_that_claim_at_once_one_gets_the_job(driver: Driver):
    job_id = driver.submit()
    workers = [driver.other_worker() for _ in range(4)]

    taken = at_once(driver, *workers)

    assert [run.job_id for run in taken if run is not None] == [job_id]
    assert len(driver.sql("SELECT attempt FROM attempts")) == 1


def test_one_worker_that_claims_twice_at_once_fills_one_slot(driver: Driver):
    driver.submit()
    driver.submit()
    worker = driver.other_worker()

    taken = at_once(driver, worker, worker, worker)

    assert len([run for run in taken if run is not None]) == 1


def test_a_queued_job_says_what_it_waits_for(driver: Driver):
    write_model(driver.settings.home, "other")
    plain = driver.submit()
    alone = driver.job(plain).waiting_for
    driver.worker()
    ready = driver.job(plain).waiting_for
    driver.claimed()

    behind = driver.job(driver.submit()).waiting_for
    cuda = driver.job(driver.submit(resources={"device": "cuda"})).waiting_for
    driver.sql("UPDATE workers SET models = '[]'")
    other = driver.job(driver.submit(base_model="other")).waiting_for

    assert alone is not None
    assert "no worker is running" in alone
    assert "lorad worker" in alone
    assert ready is None
    assert behind == "every worker that can run it is busy"
    assert cuda == "no worker has a cuda device"
    assert other == "no worker has base model other"
    assert driver.job(plain).waiting_for is None


def test_a_worker_that_is_silent_for_a_lease_is_not_listed(driver: Driver):
    driver.worker()
    before = catalog.list_workers(driver.db, driver.settings)

    driver.sql("UPDATE workers SET heartbeat_at = '2020-01-01 00:00:00'")

    assert len(before) == 1
    assert catalog.list_workers(driver.db, driver.settings) == []


def test_a_job_in_its_back_off_does_not_keep_the_next_one_waiting(driver: Driver):
    driver.submit(priority=9)
    driver.crash(driver.started())
    driver.crash(driver.started())
    behind = driver.submit()

    run = driver.claim()

    assert run is not None
    assert run.job_id == behind
