"""What the worker tells the trainer: run.json at the start, then commands on the control pipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.domain.datasets import DataFile
from app.domain.spec import JobSpec

RUN_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
LOG_FILE = "trainer.log"
FATES_FILE = "receipt.jsonl"
SPEC_FILE = "spec.json"
# A counter that the trainer moves as it works; one that stands still is a trainer that hangs.
PULSE_FILE = "pulse"
FINAL_FOLDER = "final"
# Below the cache folder: a folder per encoded data set, in which the time of one file tells when it
# was used last.
TOKENS_FOLDER = "tokens"
TOKENS_USED_FILE = "MANIFEST.json"

# Exit status of a trainer that did not get its lock: nothing is wrong with the job (EX_TEMPFAIL).
EXIT_BUSY = 75
# Exit status of a trainer that ran out of disk: the job waits for space (EX_IOERR).
EXIT_DISK_FULL = 74

StopReason = Literal["pause", "cancel", "drain"]


@dataclass(frozen=True)
class AttemptKey:
    """Which attempt of which job, and the fence that all its writes carry."""

    job_id: str
    attempt: int
    fence: int


class ResumePoint(BaseModel):
    """A verified checkpoint to continue from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    step: int
    manifest_sha256: str


class RunFile(BaseModel):
    """Everything a trainer needs; it knows no database and no broker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    attempt: int
    fence: int
    spec: JobSpec
    model_folder: Path
    dataset: DataFile
    eval_dataset: DataFile | None = None
    attempt_folder: Path
    cache_folder: Path
    device: Literal["cpu", "cuda"]
    device_index: int
    lock_file: Path
    num_threads: int
    resume: ResumePoint | None = None


class StopCommand(BaseModel):
    """One JSON line on the control pipe; the trainer stops at the next step boundary.

    `pause` and `drain` save a checkpoint first, `cancel` does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stop: StopReason


def checkpoint_folder_name(step: int) -> str:
    return f"checkpoint-{step}"


def step_of_folder(name: str) -> int | None:
    """Return the step that a folder's name is of; None when it is no checkpoint's."""
    prefix, _, step = name.partition("-")
    is_one = prefix == "checkpoint" and step.isascii() and step.isdecimal()
    return int(step) if is_one else None


def attempt_folder(home: Path, job_id: str, attempt: int) -> Path:
    return job_folder(home, job_id) / "attempts" / str(attempt)


def job_folder(home: Path, job_id: str) -> Path:
    return home / "jobs" / job_id


def checkpoint_folder(home: Path, job_id: str, attempt: int, step: int) -> Path:
    return attempt_folder(home, job_id, attempt) / checkpoint_folder_name(step)
