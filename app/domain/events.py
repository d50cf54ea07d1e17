"""The lines of events.jsonl: all that a trainer reports, one JSON object each, from number 1."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.metrics import StepMetrics
from app.domain.runs import StopReason


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seq: int
    """Line number in events.jsonl, from 1, without gaps."""
    at: datetime
    """Time of writing on the trainer's clock, UTC."""


class ReadyEvent(_Event):
    """Model, data and resume state are in place; stepping starts now."""

    kind: Literal["ready"] = "ready"
    """Always `ready`."""
    step: int
    """Step that the run continues from; 0 for a fresh start."""
    total_steps: int
    """Optimizer steps of the whole run."""
    num_rows: int
    """Rows in the data set."""
    num_trained_rows: int
    """Rows that are trained on."""
    num_truncated_rows: int
    """Rows cut to max_length."""
    num_dropped_rows: int
    """Rows left out."""
    dropped_reasons: dict[str, int]
    """Reason -> rows left out for it."""
    num_parameters: int
    """Parameters of the base model."""
    num_trainable_parameters: int
    """Parameters of the adapter."""
    target_modules: tuple[str, ...]
    """Names of the layers that got an adapter."""
    device: str
    """Device the run trains on."""
    dtype: str
    """Data type of the base model."""
    startup_seconds: float
    """Time from the trainer's start to this event in seconds."""


class StepEvent(_Event):
    """One optimizer step was applied."""

    kind: Literal["step"] = "step"
    """Always `step`."""
    step: int
    """Optimizer step, counted from 1."""
    metrics: StepMetrics
    """What was measured."""


class CheckpointEvent(_Event):
    """A checkpoint is complete on disk; it exists once the database says so too."""

    kind: Literal["checkpoint"] = "checkpoint"
    """Always `checkpoint`."""
    step: int
    """Optimizer steps done."""
    manifest_sha256: str
    """SHA-256 of its manifest, hexadecimal."""
    bytes: int
    """Size of the folder in bytes."""
    loss: float | None
    """Training loss of the last step in nats per target token."""
    save_seconds: float
    """Time the save took in seconds."""


class NoticeEvent(_Event):
    """Something the user should know that is no failure."""

    kind: Literal["notice"] = "notice"
    """Always `notice`."""
    step: int
    """Optimizer steps done."""
    code: str
    """Stable name of the notice."""
    message: str
    """What happened."""


class FinishedEvent(_Event):
    """The last step is done and the final adapter is on disk."""

    kind: Literal["finished"] = "finished"
    """Always `finished`."""
    step: int
    """Optimizer steps done."""
    manifest_sha256: str
    """SHA-256 of the manifest of the final folder, hexadecimal."""
    num_tokens: int
    """Tokens trained on in the whole run."""


class StoppedEvent(_Event):
    """The trainer obeyed a stop command."""

    kind: Literal["stopped"] = "stopped"
    """Always `stopped`."""
    step: int
    """Optimizer steps done."""
    reason: StopReason
    """The command."""


class FailedEvent(_Event):
    """The run failed in a way that trying again would repeat."""

    kind: Literal["failed"] = "failed"
    """Always `failed`."""
    step: int
    """Optimizer steps done."""
    code: str
    """Stable name of the failure."""
    message: str
    """What failed and what to do."""


TrainerEvent = Annotated[
    ReadyEvent
    | StepEvent
    | CheckpointEvent
    | NoticeEvent
    | FinishedEvent
    | StoppedEvent
    | FailedEvent,
    Field(discriminator="kind"),
]
TRAINER_EVENT: TypeAdapter[TrainerEvent] = TypeAdapter(TrainerEvent)
