"""Plans: what a job would do and need, before it is submitted; nothing is stored."""

import shutil
import statistics
from pathlib import Path

from sqlalchemy.orm import Session

from app.db import datasets as dataset_queries
from app.db import past_steps
from app.db.engine import Database
from app.domain.datasets import data_file
from app.domain.model_folder import ModelFolder
from app.domain.plans import DiskPlan, Plan, PlanFacts, TimePlan
from app.domain.runs import RunFile
from app.domain.spec import JobSpec
from app.domain.tools import PlanRequest, PlanResult
from app.services import catalog, job_data, tools
from app.services.jobs import Outside
from app.settings import Settings

_NO_ID = "job-" + "0" * 24


def plan(db: Database, outside: Outside, project_id: str, spec: JobSpec) -> Plan:
    """Let a worker find out what a job would do and need.

    Raises:
        NotFound: The base model or the data set does not exist.
        InvalidInput: The job would fail at its start: the message says why.
        NoWorker: No worker is running.
        Unavailable: The worker failed or took too long, or enough others are being answered.
    """
    settings = outside.settings
    model = catalog.require_model(settings, spec.base_model)
    with db.read() as session:
        job_data.require(session, project_id, spec, model)
        run = _run_file(session, settings, spec, model)
    with tools.place_for_a_call():
        facts = tools.ask(db, outside, PlanRequest(run=run), PlanResult).facts
    with db.read() as session:
        time = _time(session, project_id, spec, facts)
    return Plan(
        spec=spec,
        work=facts.work,
        memory=facts.memory,
        limit_bytes=facts.limit_bytes,
        fits=facts.fits,
        largest_micro_batch_size=facts.largest_micro_batch_size,
        disk=_disk(settings, spec, facts),
        time=time,
        warnings=facts.warnings,
    )


def _run_file(session: Session, settings: Settings, spec: JobSpec, model: ModelFolder) -> RunFile:
    dataset = dataset_queries.get(session, spec.dataset.id)
    assert dataset is not None  # job_data.require saw it
    held_out = spec.dataset.eval_id
    eval_dataset = None if held_out is None else dataset_queries.get(session, held_out)
    nowhere = Path()
    return RunFile(
        job_id=_NO_ID,
        attempt=0,
        fence=0,
        spec=spec,
        model_folder=model.path,
        dataset=data_file(settings.datasets_folder, dataset),
        eval_dataset=(
            None if eval_dataset is None else data_file(settings.datasets_folder, eval_dataset)
        ),
        attempt_folder=nowhere,
        cache_folder=settings.cache_folder,
        device="cpu",
        device_index=0,
        lock_file=nowhere,
        num_threads=1,
    )


def _disk(settings: Settings, spec: JobSpec, facts: PlanFacts) -> DiskPlan:
    training, steps = spec.training, facts.work.steps
    num_checkpoints = 1 if training.save_steps is None else -(-steps // training.save_steps)
    if training.save_total_limit is not None:
        # The new one is complete before the oldest goes.
        num_checkpoints = min(num_checkpoints, training.save_total_limit + 1)
    total_bytes = num_checkpoints * facts.checkpoint_bytes + facts.adapter_bytes
    free_bytes = shutil.disk_usage(settings.home).free
    return DiskPlan(
        checkpoint_bytes=facts.checkpoint_bytes,
        num_checkpoints=num_checkpoints,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        fits=total_bytes <= free_bytes,
    )


def _time(session: Session, project_id: str, spec: JobSpec, facts: PlanFacts) -> TimePlan | None:
    """Take the speed of the project's newest jobs with this model, device and kind of adapter."""
    speeds = past_steps.tokens_per_second(
        session,
        project_id,
        base_model=spec.base_model,
        adapter=spec.adapter,
        device=facts.memory.device,
    )
    if not speeds:
        return None
    speed = statistics.median(statistics.median(each) for each in speeds)
    seconds_per_step = facts.work.tokens_per_step / speed
    return TimePlan(
        seconds_per_step=seconds_per_step,
        total_seconds=seconds_per_step * facts.work.steps,
        tokens_per_second=speed,
        num_jobs=len(speeds),
    )
