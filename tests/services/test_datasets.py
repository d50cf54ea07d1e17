"""Data sets and the jobs that need them, when both are asked for at the same moment."""

import threading

import pytest

from app.db import jobs as job_queries
from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import InUse, LoradError, NotFound
from app.domain.spec import JobSpec
from app.services import datasets
from tests.services.driver import Driver


def test_a_data_set_given_to_a_job_at_the_moment_of_its_deletion_stays(driver: Driver):
    dataset_id = driver.dataset()
    spec = JobSpec.model_validate(driver.spec())
    met: list[LoradError] = []

    def delete() -> None:
        try:
            datasets.delete(driver.db, driver.settings, DEFAULT_PROJECT, dataset_id)
        except LoradError as error:
            met.append(error)

    with driver.db.write() as session:
        job_queries.insert(session, DEFAULT_PROJECT, spec)
        thread = threading.Thread(target=delete)
        thread.start()
        thread.join(0.3)  # it waits for the lock
    thread.join()

    assert [type(error) for error in met] == [InUse]
    assert (driver.settings.datasets_folder / dataset_id / "data.jsonl").is_file()


def test_a_deleted_data_set_is_gone_for_good(driver: Driver):
    dataset_id = driver.dataset()

    datasets.delete(driver.db, driver.settings, DEFAULT_PROJECT, dataset_id)

    with pytest.raises(NotFound):
        datasets.get(driver.db, DEFAULT_PROJECT, dataset_id)
    with pytest.raises(NotFound):
        datasets.delete(driver.db, driver.settings, DEFAULT_PROJECT, dataset_id)
    assert list(driver.settings.datasets_folder.iterdir()) == []
