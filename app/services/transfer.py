"""Moving a whole job between installations: a folder with a manifest, verified before its use."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy.orm import Session

from app.db import migrate, transfer
from app.db.engine import Database
from app.db.keys import DEFAULT_PROJECT
from app.domain import checkpoints, ids, model_folder
from app.domain.checkpoints import MANIFEST_NAME, BadCheckpoint, Manifest, hash_file
from app.domain.errors import Conflict, InvalidInput, InvalidModel, NotFound, StateConflict
from app.domain.exports import EXPORTS_FOLDER
from app.domain.groups import shown
from app.domain.model_folder import PICKLE_SUFFIXES
from app.domain.runs import FINAL_FOLDER, RUN_FILE, attempt_folder, checkpoint_folder, job_folder
from app.services import catalog, rollups
from app.settings import Settings

ROWS_FILE = "rows.json"
_HOME = "$LORAD_HOME"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
_LEFT_OUT = (EXPORTS_FOLDER, "trainer.lock", "pulse")


class MovedFile(BaseModel):
    """One file of a moved job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str


class JobManifest(BaseModel):
    """Content of MANIFEST.json of a moved job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: Literal["job"] = "job"
    job_id: str
    base_model: str
    base_model_sha256: str | None
    database_revision: str
    files: tuple[MovedFile, ...]


def export_job(db: Database, settings: Settings, job_id: str, target: Path) -> JobManifest:
    """Write a job into a new folder: rows, attempts with checkpoints, and data.

    Exports of it stay: they are made again from the same checkpoints.

    Raises:
        NotFound: No such job.
        StateConflict: A worker has it, or will take it.
        InvalidInput: The folder exists.
    """
    if target.exists():
        raise InvalidInput(f"{target} exists; give a folder that does not", param="--out")
    with db.read() as session:
        rows = _rows(session, job_id)
    (job,) = rows["jobs"]
    partial = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        source = job_folder(settings.home, job_id)
        for path in _moved(source):
            _copy(path, partial / "job" / path.relative_to(source), settings)
        for values in rows["datasets"]:
            folder = settings.datasets_folder / values["id"]
            for path in _moved(folder):
                _copy(path, partial / "datasets" / folder.name / path.name, settings)
        (partial / ROWS_FILE).write_text(json.dumps(rows), "utf-8")
        manifest = JobManifest(
            job_id=job_id,
            base_model=job["base_model"],
            base_model_sha256=_base_sha256(source),
            database_revision=migrate.revision(),
            files=tuple(_listed(partial, path) for path in _moved(partial)),
        )
        (partial / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def import_job(db: Database, settings: Settings, source: Path) -> str:
    """Take a job that `export_job` wrote in, under its own id, and return the id.

    Raises:
        InvalidInput: The folder is none of a job, was changed, or is of another schema.
        NotFound: The base model is not here.
        InvalidModel: The base model here is another one.
        Conflict: There is such a job, or another data set under an id of its data, already.
    """
    manifest, rows = _verified(source)
    _require_base(settings, manifest)
    with db.read() as session:
        _require_free(session, settings, manifest.job_id, rows)
    placed: list[Path] = []
    try:
        for values in rows["datasets"]:
            folder = settings.datasets_folder / values["id"]
            if not folder.exists():
                placed.append(folder)
                _place(source / "datasets" / values["id"], folder, settings)
        target = job_folder(settings.home, manifest.job_id)
        placed.append(target)
        _place(source / "job", target, settings)
        _require_checkpoints(settings, rows)
        with db.write() as session:
            _require_free(session, None, manifest.job_id, rows)
            transfer.load(session, DEFAULT_PROJECT, rows)
            rollups.rebuild(session, manifest.job_id)
    except BaseException:
        for folder in placed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return manifest.job_id


def _rows(session: Session, job_id: str) -> dict[str, list[dict[str, Any]]]:
    if not ids.is_id(job_id, "job") or not transfer.has_job(session, job_id):
        raise NotFound(f"there is no job {shown(job_id)}", param="JOB")
    rows = transfer.dump(session, job_id)
    state = rows["jobs"][0]["state"]
    if state not in transfer.MOVABLE_STATES:
        raise StateConflict(
            f"job {job_id} is {state}; pause or cancel it, and export it when it has stopped"
        )
    return rows


def _verified(source: Path) -> tuple[JobManifest, dict[str, list[dict[str, Any]]]]:
    """Hash every file against the manifest before anything is believed."""
    try:
        manifest = JobManifest.model_validate_json((source / MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        raise InvalidInput(
            f"{source} holds no job that `lorad export-job` wrote: its {MANIFEST_NAME} is missing"
            " or of another version",
            param="FOLDER",
        ) from error
    if manifest.database_revision != migrate.revision():
        raise InvalidInput(
            f"the job was written by a version with database schema {manifest.database_revision},"
            f" and this one has {migrate.revision()}; use the same version on both sides",
            param="FOLDER",
        )
    listed = {each.name: each for each in manifest.files}
    found = {path.relative_to(source).as_posix(): path for path in _moved(source)}
    found.pop(MANIFEST_NAME, None)
    if different := sorted(listed.keys() ^ found.keys()):
        raise InvalidInput(f"{different[0]}: in the folder or in its manifest only", param="FOLDER")
    for name, path in found.items():
        _require_safe(name)
        if path.stat().st_size != listed[name].bytes or hash_file(path) != listed[name].sha256:
            raise InvalidInput(f"{name} is not what its manifest says", param="FOLDER")
    if ROWS_FILE not in listed:
        raise InvalidInput(f"{ROWS_FILE} is missing", param="FOLDER")
    return manifest, _read_rows(manifest, (source / ROWS_FILE).read_bytes())


def _require_safe(name: str) -> None:
    parts = name.split("/")
    if not all(_PLAIN.fullmatch(part) for part in parts):
        raise InvalidInput(f"{shown(name)} is no plain file name", param="FOLDER")
    if name.endswith(PICKLE_SUFFIXES):
        raise InvalidInput(f"{name} may be pickled, which can run code", param="FOLDER")


def _read_rows(manifest: JobManifest, content: bytes) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = json.loads(content)
    (job,) = rows["jobs"]
    data_ids = [values["id"] for values in rows["datasets"]]
    consistent = (
        ids.is_id(manifest.job_id, "job")
        and job["id"] == manifest.job_id
        and job["state"] in transfer.MOVABLE_STATES
        and all(ids.is_id(each, "ds") for each in data_ids)
        and all(
            values["job_id"] == manifest.job_id
            for table in ("attempts", "trainer_events", "checkpoints", "job_events")
            for values in rows[table]
        )
    )
    if not consistent:
        raise InvalidInput(f"{ROWS_FILE} is not of the job {manifest.job_id}", param="FOLDER")
    return rows


def _require_base(settings: Settings, manifest: JobManifest) -> None:
    found = catalog.require_model(settings, manifest.base_model)
    expected = manifest.base_model_sha256
    if expected is not None and model_folder.fingerprint(found.path) != expected:
        raise InvalidModel(
            f"base model {manifest.base_model} here is not the one that the job was trained on; add"
            " the same files",
            code="base_model_changed",
        )


def _require_free(
    session: Session,
    settings: Settings | None,
    job_id: str,
    rows: dict[str, list[dict[str, Any]]],
) -> None:
    is_there = settings is not None and job_folder(settings.home, job_id).exists()
    if is_there or transfer.has_job(session, job_id):
        raise Conflict(f"there is a job {job_id} here already; delete it first")
    for values in rows["datasets"]:
        sha256 = transfer.dataset_sha256(session, values["id"])
        if sha256 not in (None, values["sha256"]):
            raise Conflict(f"there is another data set {values['id']} here already")


def _require_checkpoints(settings: Settings, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Check the folders against what the rows recorded of them."""
    (job,) = rows["jobs"]
    expected = [
        (
            checkpoint_folder(settings.home, job["id"], each["attempt"], each["step"]),
            each["manifest_sha256"],
        )
        for each in rows["checkpoints"]
        if each["status"] == "committed"
    ]
    if job["final_attempt"] is not None:
        folder = attempt_folder(settings.home, job["id"], job["final_attempt"]) / FINAL_FOLDER
        expected.append((folder, job["final_manifest_sha256"]))
    for folder, sha256 in expected:
        try:
            checkpoints.verify(folder, manifest_sha256=sha256)
        except (BadCheckpoint, OSError) as error:
            raise InvalidInput(f"a checkpoint does not verify: {error}", param="FOLDER") from error


def _base_sha256(job: Path) -> str | None:
    for path in sorted(job.glob(f"attempts/*/*/{MANIFEST_NAME}")):
        return Manifest.model_validate_json(path.read_bytes()).base_model_sha256
    return None


def _moved(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that move with it; links and hidden things do not."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name.startswith(".") or path.name in _LEFT_OUT:
            continue
        if path.is_dir():
            yield from _moved(path)
        elif path.is_file():
            yield path


def _copy(source: Path, target: Path, settings: Settings) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == RUN_FILE:
        told = _replaced(json.loads(source.read_bytes()), f"{settings.home}/", f"{_HOME}/")
        target.write_text(json.dumps(told, indent=2), "utf-8")
    else:
        shutil.copyfile(source, target)


def _place(source: Path, target: Path, settings: Settings) -> None:
    """Copy a folder into the home; it appears under its name when it is complete."""
    partial = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    for path in _moved(source):
        copy = partial / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.name == RUN_FILE:
            told = _replaced(json.loads(path.read_bytes()), f"{_HOME}/", f"{settings.home}/")
            copy.write_text(json.dumps(told, indent=2), "utf-8")
        else:
            shutil.copyfile(path, copy)
    partial.mkdir(parents=True, exist_ok=True)
    partial.rename(target)


def _replaced(value: Any, start: str, by: str) -> Any:
    """Replace the start of every path in a JSON value."""
    match value:
        case dict():
            members = cast(dict[str, Any], value)
            return {key: _replaced(each, start, by) for key, each in members.items()}
        case list():
            return [_replaced(each, start, by) for each in cast(list[Any], value)]
        case str() if value.startswith(start):
            return by + value.removeprefix(start)
        case _:
            return value


def _listed(folder: Path, path: Path) -> MovedFile:
    return MovedFile(
        name=path.relative_to(folder).as_posix(),
        bytes=path.stat().st_size,
        sha256=hash_file(path),
    )
