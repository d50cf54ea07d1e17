"""Jobs: what one looks like from outside, its states, and the only moves between them."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.domain.errors import StateConflict
from app.domain.spec import JobSpec


class JobState(StrEnum):
    """Where a job is on its way from the queue to its end."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINALIZING = "finalizing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Desired(StrEnum):
    """What the user wants of a job that a worker owns."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Actor(StrEnum):
    API = "api"
    WORKER = "worker"
    SUPERVISOR = "supervisor"
    RECONCILER = "reconciler"


S = JobState
OWNED_STATES = (S.STARTING, S.RUNNING, S.STOPPING, S.FINALIZING)
TERMINAL_STATES = (S.SUCCEEDED, S.FAILED, S.CANCELLED)
RESUMABLE_STATES = (S.PAUSED, S.FAILED, S.CANCELLED, S.SUCCEEDED)
# Reason of a pause that ends by itself when there is space again.
DISK_FULL = "disk_full"


def _moves(actor: Actor, sources: str, targets: str) -> set[tuple[JobState, JobState, Actor]]:
    return {(S(one), S(other), actor) for one in sources.split() for other in targets.split()}


# The state table. Guards beyond the states are in the WHERE of the writes in app/db/jobs.py.
TRANSITIONS: frozenset[tuple[JobState, JobState, Actor]] = frozenset(
    _moves(Actor.WORKER, "queued", "starting")
    | _moves(Actor.API, "queued", "paused cancelled")
    | _moves(Actor.API, "paused", "queued cancelled")
    | _moves(Actor.API, "failed cancelled succeeded", "queued")
    | _moves(Actor.SUPERVISOR, "starting", "running stopping failed queued")
    | _moves(Actor.SUPERVISOR, "running", "stopping finalizing failed queued")
    | _moves(Actor.SUPERVISOR, "finalizing", "succeeded stopping failed queued")
    | _moves(Actor.SUPERVISOR, "stopping", "paused cancelled queued")
    | _moves(Actor.RECONCILER, "starting running finalizing", "queued failed paused cancelled")
    | _moves(Actor.RECONCILER, "stopping", "queued paused cancelled")
    | _moves(Actor.RECONCILER, "paused", "queued")  # by a full disk, once there is space
)


def check_transition(source: JobState, target: JobState, actor: Actor) -> None:
    """Let a move of the state table pass.

    Raises:
        StateConflict: The table has no such move; the message names the state and what is allowed.
    """
    if (source, target, actor) in TRANSITIONS:
        return
    raise StateConflict(
        f"a job that is {source} cannot become {target}; {allowed_requests(source)}"
    )


def allowed_requests(state: JobState) -> str:
    """Say in words what the API allows in a state."""
    match state:
        case S.QUEUED | S.STARTING | S.RUNNING:
            return "allowed now: pause, cancel"
        case S.STOPPING:
            return "wait until it has stopped; allowed now: cancel"
        case S.FINALIZING:
            return "its training is done and it is about to succeed; allowed now: cancel"
        case S.PAUSED:
            return "allowed now: resume, cancel"
        case S.SUCCEEDED:
            return "allowed now: delete, or resume with a larger max_steps or num_train_epochs"
        case S.FAILED | S.CANCELLED:
            return "allowed now: resume, delete"


class JobError(BaseModel):
    """Why a job failed."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    code: str
    """Stable name of the failure."""
    message: str
    """What failed, with the values, and what to do."""


class Job(BaseModel):
    """A training job and how far it is."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["job"] = "job"
    """Always `job`."""
    id: str
    """Id of the job."""
    project_id: str
    """Project that owns it."""
    name: str | None
    """Label given in the spec."""
    state: JobState
    """queued, starting, running, stopping, finalizing, paused, succeeded, failed or cancelled."""
    state_reason: str | None
    """Why it is in this state, where that is not obvious: pause, cancel, drain, crash,
    early_stopping, ..."""
    desired: Desired
    """What was asked of a running job: run, pause or cancel."""
    waiting_for: str | None = None
    """Why a queued job has not started; null when it just has to wait its turn to be picked up."""
    step: int
    """Optimizer steps done on the current branch of its history."""
    total_steps: int | None
    """Optimizer steps of the whole run; null until it first started."""
    epoch: float | None
    """Passes over the data completed."""
    loss: float | None
    """Training loss of the last logged step in nats per target token."""
    eval_loss: float | None = None
    """Loss of the last evaluation in nats per target token; null without one."""
    best_eval_loss: float | None = None
    """Lowest evaluation loss on the current branch of its history."""
    best_step: int | None = None
    """Step of that evaluation; its checkpoint is `best`."""
    replayed_steps: int = 0
    """Steps done again after a resume that had been done before with the same settings."""
    replay_mismatches: int = 0
    """Of those, the ones whose loss was not the same to the last bit; 0 is the promise."""
    skipped_steps: int = 0
    """Steps whose update was not applied because loss or gradient was not finite."""
    attempt: int
    """Times a worker has started it."""
    crash_streak: int
    """Crashes since the last new checkpoint."""
    worker: str | None
    """Worker that runs it now."""
    error: JobError | None
    """Why it failed; null unless it is failed."""
    spec: JobSpec
    """What runs, with every default filled in."""
    created_at: datetime
    """Time of the submission, UTC."""
    started_at: datetime | None
    """Time of its first start, UTC."""
    finished_at: datetime | None
    """Time it reached a terminal state, UTC."""
    updated_at: datetime
    """Time of the last change of its state, UTC."""

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_STATES


class JobEvent(BaseModel):
    """One entry of a job's history."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["job.event"] = "job.event"
    """Always `job.event`."""
    id: int
    """Number of the event, ascending."""
    job_id: str
    """Job it belongs to."""
    at: datetime
    """Time it was recorded, UTC."""
    type: str
    """Kind of event: `state`, `requested`, `checkpoint`, `checkpoint_corrupt`, `superseded`, ..."""
    from_state: JobState | None
    """State before, for a change of state."""
    to_state: JobState | None
    """State after, for a change of state."""
    attempt: int
    """Attempt it happened in; 0 before the first."""
    message: str
    """What happened."""
    data: dict[str, Any]
    """Values that belong to it."""
