"""Models in OpenAI's words: base models, and what jobs made of them."""

import shutil
from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_queries
from app.db import jobs as job_queries
from app.db import listings
from app.db.engine import Database
from app.domain import model_names
from app.domain.checkpoints import Checkpoint
from app.domain.errors import InUse, InvalidInput, NotFound
from app.domain.groups import shown
from app.domain.jobs import TERMINAL_STATES, JobState
from app.domain.openai.objects import NamedModel, NamedModels, Removed, seconds
from app.domain.runs import FINAL_FOLDER, attempt_folder
from app.services import catalog, checkpoints, jobs, named_models
from app.services.openai import showing
from app.settings import Settings

OWNER = "lorad"


def list_all(db: Database, settings: Settings, project_id: str) -> NamedModels:
    """List the base models that can be loaded, and every job that made something loadable.

    A job that has not ended well is asked at its newest checkpoint, and its name says so.
    """
    with db.read() as session:
        rows = listings.tuned_jobs(session, project_id)
    data = [_base(settings, model.id) for model in catalog.list_models(settings) if model.usable]
    for row in rows:
        job = job_queries.to_job(row)
        name = showing.tuned_name(job)
        data.append(
            NamedModel(
                id=name if row.final_attempt is not None else f"{name}:latest",
                created=seconds(job.finished_at or job.created_at),
                owned_by=project_id,
            )
        )
    return NamedModels(data=data)


def get(db: Database, settings: Settings, project_id: str, name: str) -> NamedModel:
    """Return a model by any name that it can be asked by.

    Raises:
        NotFound: There is none of this name.
        CheckpointUnusable: Its files do not verify.
        InvalidModel: The folder of the base model is not safe or not complete.
    """
    found = named_models.resolve(db, settings, project_id, name)
    if found.job_id is None:
        return _base(settings, name)
    with db.read() as session:
        job = job_queries.to_job(jobs.require(session, project_id, found.job_id))
    created = job.finished_at or job.created_at
    return NamedModel(id=name, created=seconds(created), owned_by=project_id)


def delete(db: Database, settings: Settings, project_id: str, name: str) -> Removed:
    """Remove what a job that has ended made: its final adapter and all its checkpoints.

    The job itself stays, with its metrics and events; it can only be resumed from scratch.

    Raises:
        NotFound: There is no such model.
        InvalidInput: It is a base model, or one checkpoint of several.
        InUse: The job has not ended, or a checkpoint is pinned.
    """
    asked = model_names.parse(name)
    if asked is None:
        get(db, settings, project_id, name)
        raise InvalidInput(
            f"{shown(name)} is a base model, which others use too; its folder can be removed on the"
            " machine of the service",
            param="model",
            code="not_deletable",
        )
    if asked.which != "final":
        raise InvalidInput(
            f"{shown(name)} is a checkpoint; give the name of the fine-tuned model, which removes"
            " all of them, or remove one with DELETE /jobs/{id}/checkpoints/{step}",
            param="model",
            code="not_deletable",
        )
    with db.write() as session:
        attempt = _withdraw(session, project_id, asked.job_id, name)
    if attempt is not None:
        folder = attempt_folder(settings.home, asked.job_id, attempt) / FINAL_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
    with db.read() as session:
        going = checkpoint_queries.deleting(session, asked.job_id)
    for each in going:
        checkpoints.remove_files(db, settings, each)
    return Removed(id=name, object="model")


def _withdraw(session: Session, project_id: str, job_id: str, name: str) -> int | None:
    """Take everything of a job out of use; returns the attempt that made its final adapter."""
    row = job_queries.get(session, job_id, project_id=project_id, lock=True)
    found: Sequence[Checkpoint] = ()
    if row is not None:
        found = checkpoint_queries.of_job(session, job_id, superseded=True)
    if row is None or (row.final_attempt is None and not found):
        raise NotFound(
            f"there is no model {shown(name)}; see GET /v1/models",
            param="model",
            code=named_models.NO_SUCH_MODEL,
        )
    if JobState(row.state) not in TERMINAL_STATES:
        raise InUse(
            f"model {shown(name)} is being made: its job is {row.state}; cancel it first",
            param="model",
        )
    pinned = [each.step for each in found if each.pinned]
    if pinned:
        raise InUse(
            f"the checkpoint {pinned[0]} of {shown(name)} is pinned; unpin it first", param="model"
        )
    for each in found:
        checkpoint_queries.mark_deleting(session, each.id)
    attempt = row.final_attempt
    job_queries.set_progress(
        session,
        job_id,
        {"final_attempt": None, "final_manifest_sha256": None, "resume_checkpoint_id": None},
    )
    job_queries.add_event(
        session, job_id, "model_deleted", "adapter and checkpoints deleted", attempt=row.attempt
    )
    return attempt


def _base(settings: Settings, name: str) -> NamedModel:
    config = settings.models_folder / name / "config.json"
    return NamedModel(id=name, created=int(config.stat().st_mtime), owned_by=OWNER)
