"""A download gives the whole adapter, whatever is deleted meanwhile."""

import io
import shutil
import zipfile
from pathlib import Path

import psutil
import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.checkpoints import ADAPTER_FILES, MANIFEST_NAME
from app.domain.errors import CheckpointUnusable
from app.domain.jobs import JobState
from app.services import checkpoints
from tests.services.driver import Driver

NAMES = (*ADAPTER_FILES, MANIFEST_NAME)


def num_open(folder: Path) -> int:
    """Count the files in a folder that this process has open."""
    return sum(str(folder) in file.path for file in psutil.Process().open_files())


@pytest.fixture
def folder(driver: Driver) -> Path:
    _, run = driver.in_state(JobState.CANCELLED)
    return driver.attempt(run) / "checkpoint-5"


def test_a_deletion_during_a_download_takes_nothing_away(folder: Path):
    content = {name: (folder / name).read_bytes() for name in NAMES}

    pieces = checkpoints.zipped(folder)
    shutil.rmtree(folder)
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))

    with archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == content


def test_a_download_closes_its_files_at_its_end_and_when_it_is_given_up(folder: Path):
    whole = checkpoints.zipped(folder)
    given_up = checkpoints.zipped(folder)
    during = num_open(folder)

    b"".join(whole)
    given_up.close()

    assert during == 2 * len(NAMES)
    assert num_open(folder) == 0


def test_an_adapter_deleted_before_its_download_begins_is_refused(driver: Driver, folder: Path):
    job_id = driver.sql("SELECT id FROM jobs")[0][0]
    verified = checkpoints.adapter_folder(driver.db, driver.settings, DEFAULT_PROJECT, job_id, "5")
    (folder / ADAPTER_FILES[1]).unlink()

    with pytest.raises(CheckpointUnusable, match="deleted at this moment"):
        checkpoints.zipped(verified)

    assert num_open(folder) == 0
