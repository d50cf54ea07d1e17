"""A job moves to another installation with all that is known of it, or not at all."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from app.db import migrate, transfer
from app.db.engine import Database
from app.db.keys import DEFAULT_PROJECT
from app.domain import model_folder
from app.domain.checkpoints import MANIFEST_NAME
from app.domain.errors import Conflict, InvalidInput, InvalidModel, NotFound, StateConflict
from app.domain.jobs import JobState
from app.services import resume as resuming
from app.services.resume import ResumeRequest
from app.services.transfer import export_job, import_job
from app.settings import Settings
from tests.services.driver import Driver
from tests.services.place import write_model

STATES = [JobState.PAUSED, JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED]


@pytest.fixture
def away(tmp_path: Path) -> Iterator[tuple[Database, Settings]]:
    """Another installation, with the same base model and an empty database."""
    home = tmp_path / "away"
    write_model(home)
    settings = Settings.model_validate(
        {"home": home, "database_url": f"sqlite:///{home}/lorad.db", "redis_url": "unix:///no.sock"}
    )
    migrate.upgrade(settings.sqlalchemy_url)
    db = Database(settings.sqlalchemy_url)
    yield db, settings
    db.close()


def stopped_job(driver: Driver, state: JobState) -> str:
    """Make a job that went back to its checkpoint once, and then stopped."""
    job_id, run = driver.in_state(JobState.QUEUED)
    run = driver.started()
    driver.train(run, 6, 10, save_every=5)
    match state:
        case JobState.FAILED:
            driver.fail(run)
        case JobState.SUCCEEDED:
            driver.succeed(run, 10)
        case _:
            verb = "pause" if state is JobState.PAUSED else "cancel"
            ask(driver, job_id, verb)
            driver.stop(run)
    assert driver.job(job_id).state == state
    return job_id


def ask(driver: Driver, job_id: str, verb: str) -> None:
    from app.services import jobs

    getattr(jobs, verb)(driver.db, driver.outside, DEFAULT_PROJECT, job_id)


def rows(db: Database, job_id: str) -> dict[str, list[dict[str, object]]]:
    with db.read() as session:
        found = transfer.dump(session, job_id)
    for event in found["job_events"]:
        event["id"] = None
    for table in found.values():
        for row in table:
            for name, value in row.items():
                # One database writes the zone, the other does not.
                if isinstance(value, str) and name.endswith("_at"):
                    row[name] = value.removesuffix("+00:00")
    return found


def moved(driver: Driver, job_id: str, folder: Path) -> Path:
    """Export a job whose checkpoints name the base model that these tests have."""
    export_job(driver.db, driver.settings, job_id, folder)
    path = folder / MANIFEST_NAME
    base = model_folder.fingerprint(driver.settings.models_folder / "tiny")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "base_model_sha256": base}))
    return folder


@pytest.mark.parametrize("state", STATES)
def test_a_job_arrives_with_every_row_and_file(
    driver: Driver, tmp_path: Path, away: tuple[Database, Settings], state: JobState
):
    job_id = stopped_job(driver, state)
    db, settings = away

    moved(driver, job_id, tmp_path / "moved")
    arrived = import_job(db, settings, tmp_path / "moved")

    assert arrived == job_id
    there, here = rows(db, job_id), rows(driver.db, job_id)
    assert there == here
    assert (len(here["attempts"]), here["jobs"][0]["fence"]) == (2, 2)
    assert [each["step"] for each in here["checkpoints"]] == [5, 10]
    with db.read() as session:
        workers = session.connection().exec_driver_sql("SELECT * FROM workers").all()
    assert not workers
    weights = "attempts/2/checkpoint-10/adapter_model.safetensors"
    copies = [each.home / "jobs" / job_id / weights for each in (settings, driver.settings)]
    assert copies[0].read_bytes() == copies[1].read_bytes()


def test_an_imported_job_goes_on_under_the_rules(
    driver: Driver, tmp_path: Path, away: tuple[Database, Settings]
):
    job_id = stopped_job(driver, JobState.PAUSED)
    db, settings = away
    moved(driver, job_id, tmp_path / "moved")
    import_job(db, settings, tmp_path / "moved")
    outside = type(driver.outside)(settings, driver.outside.doorbell, driver.outside.stream)
    there = Driver(db, outside)

    resuming.resume(db, outside, DEFAULT_PROJECT, job_id, ResumeRequest())
    run = there.started()

    assert (run.attempt, run.fence) == (3, 3)
    there.steps(run, 11, 11)
    with pytest.raises(IntegrityError):
        there.sql("UPDATE jobs SET fence = 1")


def test_a_job_is_taken_in_once(driver: Driver, tmp_path: Path, away: tuple[Database, Settings]):
    job_id = stopped_job(driver, JobState.PAUSED)
    db, settings = away
    moved(driver, job_id, tmp_path / "moved")
    import_job(db, settings, tmp_path / "moved")
    before = rows(db, job_id)

    with pytest.raises(Conflict, match="here already"):
        import_job(db, settings, tmp_path / "moved")

    assert rows(db, job_id) == before
    assert (settings.home / "jobs" / job_id / "attempts").is_dir()


def change_a_file(folder: Path) -> None:
    path = next(folder.glob("job/attempts/2/checkpoint-10/optimizer.safetensors"))
    path.write_bytes(path.read_bytes() + b"!")


def remove_a_file(folder: Path) -> None:
    next(folder.glob("job/attempts/2/checkpoint-10/adapter_model.safetensors")).unlink()


def add_a_file(folder: Path) -> None:
    (folder / "job" / "more.json").write_text("{}")


def add_a_pickle(folder: Path) -> None:
    """Add a file that the manifest lists, as somebody would who made the manifest too."""
    (folder / "job" / "state.pt").write_bytes(b"")
    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    manifest["files"].append({"name": "job/state.pt", "bytes": 0, "sha256": empty})
    path.write_text(json.dumps(manifest))


def change_the_version(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "database_revision": "0001"}))


def remove_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        change_a_file,
        remove_a_file,
        add_a_file,
        add_a_pickle,
        change_the_version,
        remove_the_manifest,
    ],
)
def test_a_damaged_folder_is_refused_and_leaves_nothing(
    driver: Driver, tmp_path: Path, away: tuple[Database, Settings], damage
):
    job_id = stopped_job(driver, JobState.PAUSED)
    moved(driver, job_id, tmp_path / "moved")
    db, settings = away

    damage(tmp_path / "moved")
    with pytest.raises(InvalidInput):
        import_job(db, settings, tmp_path / "moved")

    assert not (settings.home / "jobs").exists()
    with db.read() as session:
        assert not transfer.has_job(session, job_id)


def test_a_job_is_not_taken_in_without_its_base_model(
    driver: Driver, tmp_path: Path, away: tuple[Database, Settings]
):
    export_job(driver.db, driver.settings, stopped_job(driver, JobState.PAUSED), tmp_path / "moved")
    db, settings = away

    with pytest.raises(InvalidModel, match="not the one that the job was trained on"):
        import_job(db, settings, tmp_path / "moved")
    shutil.rmtree(settings.models_folder)
    with pytest.raises(NotFound, match="lorad models add"):
        import_job(db, settings, tmp_path / "moved")


def test_only_a_job_that_stopped_can_be_moved(driver: Driver, tmp_path: Path):
    job_id, _ = driver.in_state(JobState.RUNNING)

    with pytest.raises(StateConflict, match="pause or cancel it"):
        export_job(driver.db, driver.settings, job_id, tmp_path / "moved")

    assert not (tmp_path / "moved").exists()
