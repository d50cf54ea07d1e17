"""The sweeper removes what nobody will come back for, and nothing else."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain import ids
from app.domain.jobs import JobState
from app.domain.runs import TOKENS_FOLDER, TOKENS_USED_FILE
from app.services import checkpoints, datasets, sweep
from app.services.reconcile import Reconciler
from tests.services.driver import Driver

S = JobState
OLD_SECONDS = 2 * 3600


def make(folder: Path, *, old: bool = True) -> Path:
    """Make a folder with a file."""
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    return age(folder) if old else folder


def age(folder: Path) -> Path:
    """Let nothing in a folder have changed for long."""
    then = time.time() - OLD_SECONDS
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))
    return folder


def swept(driver: Driver) -> None:
    sweep.sweep(driver.db, driver.settings)


@pytest.fixture
def interrupted_deletion(driver: Driver, monkeypatch: pytest.MonkeyPatch):
    """Delete a checkpoint while the disk does not let go of it."""

    def delete(job_id: str, step: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("LORAD_FAILPOINTS", "checkpoint.delete=raise:EIO")
            checkpoints.delete(driver.db, driver.settings, DEFAULT_PROJECT, job_id, step)

    return delete


def num_checkpoints(driver: Driver) -> int:
    return driver.sql("SELECT count(*) FROM checkpoints")[0][0]


def test_a_deletion_that_was_cut_short_is_finished(
    driver: Driver, interrupted_deletion: Callable[[str, str], None]
):
    job_id, run = driver.in_state(S.CANCELLED)
    interrupted_deletion(job_id, "5")
    before = num_checkpoints(driver)

    swept(driver)

    assert (before, num_checkpoints(driver)) == (1, 0)
    assert list(driver.attempt(run).iterdir()) == []


def test_a_deletion_cut_short_between_its_two_steps_is_finished(
    driver: Driver, interrupted_deletion: Callable[[str, str], None]
):
    job_id, run = driver.in_state(S.CANCELLED)
    found = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "5")
    interrupted_deletion(job_id, "5")
    folder = driver.attempt(run) / "checkpoint-5"
    folder.rename(folder.with_name(f".trash-{found.id}"))

    swept(driver)

    assert num_checkpoints(driver) == 0
    assert list(driver.attempt(run).iterdir()) == []


def test_a_job_that_a_worker_owns_is_not_touched(
    driver: Driver, interrupted_deletion: Callable[[str, str], None]
):
    job_id, run = driver.in_state(S.RUNNING)
    driver.checkpoint(run, 6)
    interrupted_deletion(job_id, "5")
    half = make(driver.attempt(run) / ".tmp-abc")
    trash = make(driver.attempt(run) / f".trash-{ids.new('ckpt')}")

    swept(driver)

    assert half.is_dir()
    assert trash.is_dir()
    assert num_checkpoints(driver) == 2
    assert (driver.attempt(run) / "checkpoint-5").is_dir()


@pytest.mark.parametrize("state", [S.QUEUED, S.PAUSED, S.FAILED, S.CANCELLED, S.SUCCEEDED])
def test_half_written_folders_of_a_job_without_a_worker_go_when_they_are_old(
    driver: Driver, state: JobState
):
    _, run = driver.in_state(state)
    attempt = driver.attempt(run)
    kept = {path.name for path in attempt.iterdir()}
    make(attempt / ".tmp-abc")
    make(attempt / f".trash-{ids.new('ckpt')}")
    make(attempt / ".tmp-young", old=False)
    still_written = make(attempt / ".tmp-growing")
    (still_written / "file").write_bytes(b"more")
    make(attempt / "other")
    age(attempt / "checkpoint-5")

    swept(driver)

    left = {path.name for path in attempt.iterdir()}
    assert left == kept | {".tmp-young", ".tmp-growing", "other"}


def test_folders_without_a_row_stay_because_a_restored_database_may_lack_them(driver: Driver):
    job = make(driver.settings.home / "jobs" / ids.new("job"))
    dataset = make(driver.settings.datasets_folder / ids.new("ds"))

    swept(driver)

    assert job.is_dir()
    assert dataset.is_dir()


def test_uploads_that_were_cut_short_go_when_they_are_old(driver: Driver):
    dataset_id = driver.dataset()
    folder = driver.settings.datasets_folder
    age(folder / dataset_id)
    make(folder / f".tmp-{ids.new('ds')}")
    young = make(folder / f".tmp-{ids.new('ds')}", old=False)

    swept(driver)

    assert {path.name for path in folder.iterdir()} == {dataset_id, young.name}
    assert datasets.get(driver.db, DEFAULT_PROJECT, dataset_id).num_rows == 1


def test_tool_tasks_that_nobody_waits_for_go(driver: Driver):
    tools = driver.settings.home / "tools"
    old = make(tools / ids.new("tool"))
    young = make(tools / ids.new("tool"), old=False)
    foreign = make(tools / "mine")

    swept(driver)

    assert not old.exists()
    assert {path.name for path in tools.iterdir()} == {young.name, foreign.name}


def test_cached_tokens_go_when_no_job_used_them_for_long(driver: Driver):
    folder = driver.settings.cache_folder / TOKENS_FOLDER
    used, unused = ((make(folder / name) / TOKENS_USED_FILE) for name in ("used", "unused"))
    leftover = make(folder / ".tmp-build")
    for path, days in ((used, 29), (unused, 31)):
        path.write_text("{}")
        then = time.time() - days * 86_400
        os.utime(path, (then, then))

    swept(driver)

    assert {path.name for path in folder.iterdir()} == {"used"}
    assert not leftover.exists()


def test_a_link_is_not_followed(driver: Driver, tmp_path: Path):
    outside = make(tmp_path / "outside")
    tools = driver.settings.home / "tools"
    tools.mkdir()
    (tools / ids.new("tool")).symlink_to(outside)

    swept(driver)

    assert (outside / "file").is_file()


def test_a_home_in_which_nothing_was_made_yet_is_swept_in_peace(driver: Driver):
    swept(driver)

    assert not (driver.settings.home / "jobs").exists()


def test_the_reconciler_sweeps_at_its_start_and_then_once_a_minute(driver: Driver):
    reconciler = Reconciler(
        driver.db, driver.settings, driver.outside.doorbell, driver.outside.stream
    )
    tools = driver.settings.home / "tools"
    first = make(tools / ids.new("tool"))
    reconciler.run_once()
    second = make(tools / ids.new("tool"))

    reconciler.run_once()

    assert not first.exists()
    assert second.exists()


def test_a_checkpoint_without_a_row_is_collected_and_one_with_a_row_stays(driver: Driver):
    _, run = driver.in_state(S.CANCELLED)
    folder = driver.attempt(run)
    age(folder / "checkpoint-5")
    orphan, young = make(folder / "checkpoint-7"), make(folder / "checkpoint-8", old=False)
    other = make(folder / "checkpoint-x")

    swept(driver)

    assert not orphan.exists()
    assert young.exists()
    assert other.exists()
    assert (folder / "checkpoint-5").exists()


def test_a_checkpoint_that_may_still_be_taken_in_stays(driver: Driver):
    _, run = driver.in_state(S.CANCELLED)
    orphan = make(driver.attempt(run) / "checkpoint-7")
    driver.sql("UPDATE attempts SET outcome = 'lost'")

    swept(driver)

    assert orphan.exists()


def test_checkpoints_of_a_job_without_a_row_stay(driver: Driver):
    attempt = driver.settings.home / "jobs" / ids.new("job") / "attempts" / "1"
    checkpoint, half = make(attempt / "checkpoint-5"), make(attempt / ".tmp-abc")

    swept(driver)

    assert checkpoint.is_dir()
    assert half.is_dir()
