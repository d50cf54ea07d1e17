"""Writing run.json, which is all that a trainer knows of its job."""

import os
import socket
import tempfile
from pathlib import Path

from app.domain.checkpoints import Checkpoint
from app.domain.datasets import data_file
from app.domain.runs import RUN_FILE, SPEC_FILE, ResumePoint, RunFile
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
        dataset_file=data_file(context.settings.datasets_folder, run.dataset.id),
        dataset_format=run.dataset.format,
        dataset_sha256=run.dataset.sha256,
        attempt_folder=folder,
        cache_folder=context.settings.cache_folder,
        device=device.kind,
        device_index=device.index,
        lock_file=lock_file(context.settings.home, device, slot),
        num_threads=devices.threads_per_slot(context.settings.slots),
        resume=None if start is None else _resume_point(context, start),
    )
    (folder / SPEC_FILE).write_text(run.spec.model_dump_json(indent=2))
    (folder / RUN_FILE).write_text(run_file.model_dump_json(indent=2))


def lock_file(home: Path, device: Device, slot: int) -> Path:
    """Name the lock that a trainer holds while it uses a device.

    A GPU is one for the whole machine, whatever home uses it; a CPU slot is one of its home.
    """
    if device.kind == "cuda":
        folder = Path(tempfile.gettempdir()) / f"lorad-locks-{os.getuid()}"
        name = f"cuda-{device.index}.lock"
    else:
        folder = home / "locks" / socket.gethostname()
        name = f"cpu-{slot}.lock"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / name


def _resume_point(context: WorkerContext, start: Checkpoint) -> ResumePoint:
    return ResumePoint(
        folder=checkpoints.folder_of(context.settings, start),
        step=start.step,
        manifest_sha256=start.manifest_sha256,
    )
