"""Writing run.json, which is all that a trainer knows of its job."""

import os
import tempfile
from pathlib import Path

from app.domain.checkpoints import Checkpoint
from app.domain.datasets import DataFile, data_file
from app.domain.runs import RUN_FILE, SPEC_FILE, ResumePoint, RunFile, job_folder
from app.domain.workers import Device
from app.services import checkpoints
from app.services.runs import Claimed
from worker import devices
from worker.context import WorkerContext


def write(
    context: WorkerContext, run: Claimed, folder: Path, start: Checkpoint | None, *, slot: int
) -> None:
    """Create the attempt's folder with run.json and spec.json."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    device = context.devices[slot % len(context.devices)]
    run_file = RunFile(
        job_id=run.job_id,
        attempt=run.attempt,
        fence=run.fence,
        spec=run.spec,
        model_folder=context.settings.models_folder / run.spec.base_model,
        dataset=data_file(context.settings.datasets_folder, run.dataset),
        eval_dataset=_eval_data_file(context, run),
        attempt_folder=folder,
        cache_folder=context.settings.cache_folder,
        device=device.kind,
        device_index=device.index,
        lock_file=lock_file(context.settings.home, run.job_id, device),
        num_threads=devices.threads_per_slot(context.settings.slots),
        resume=None if start is None else _resume_point(context, start),
    )
    (folder / SPEC_FILE).write_text(run.spec.model_dump_json(indent=2))
    (folder / RUN_FILE).write_text(run_file.model_dump_json(indent=2))


def lock_file(home: Path, job_id: str, device: Device) -> Path:
    """Name the lock that a trainer holds for its whole life.

    A GPU has one trainer, whatever home it works for. CPUs are shared, so there the lock only keeps
    a new attempt from starting while the one before is still dying.
    """
    if device.kind == "cpu":
        return job_folder(home, job_id) / "trainer.lock"
    folder = Path(tempfile.gettempdir()) / f"lorad-locks-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder / f"cuda-{device.index}.lock"


def _eval_data_file(context: WorkerContext, run: Claimed) -> DataFile | None:
    if run.eval_dataset is None:
        return None
    return data_file(context.settings.datasets_folder, run.eval_dataset)


def _resume_point(context: WorkerContext, start: Checkpoint) -> ResumePoint:
    return ResumePoint(
        folder=checkpoints.folder_of(context.settings, start),
        step=start.step,
        manifest_sha256=start.manifest_sha256,
    )
