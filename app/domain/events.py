"""The lines of events.jsonl: all that a trainer reports, one JSON object each, from number 1."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from app.domain.certificates import Certificate
from app.domain.evaluations import Evaluation
from app.domain.gradient_flow import GradientFlow
from app.domain.memory import MemoryReport
from app.domain.metrics import StepMetrics
from app.domain.receipts import Receipt
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
    num_units: int | None = None
    """What steps and epochs are counted in: rows trained on, or with packing the packs of them."""
    dropped_reasons: dict[str, int]
    """Reason -> rows left out for it."""
    num_parameters: int
    """Parameters of the base model."""
    num_quantized_parameters: int = 0
    """Parameters of the base model that are stored in 4 bits."""
    quantized_bytes: int = 0
    """Memory of those, quantization constants included, in bytes."""
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
    num_skipped_steps: int = 0
    """Steps up to this one whose update was not applied because something was not finite."""


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
    eval_loss: float | None = None
    """Evaluation loss at this very step in nats per target token; null without an evaluation."""
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
    data: dict[str, JsonValue] = {}
    """Values that belong to it."""


class ReceiptEvent(_Event):
    """Every line of the data set has its fate."""

    kind: Literal["receipt"] = "receipt"
    """Always `receipt`."""
    step: int
    """Optimizer steps done."""
    receipt: Receipt
    """What became of the lines."""


class EvaluationEvent(_Event):
    """The evaluation rows were gone through."""

    kind: Literal["evaluation"] = "evaluation"
    """Always `evaluation`."""
    step: int
    """Optimizer steps done."""
    evaluation: Evaluation
    """What was measured."""


class GradientFlowEvent(_Event):
    """Gradients and movement of every trained matrix at one step."""

    kind: Literal["gradient_flow"] = "gradient_flow"
    """Always `gradient_flow`."""
    step: int
    """Optimizer step, counted from 1."""
    gradient_flow: GradientFlow
    """What was measured."""


class MemoryEvent(_Event):
    """Memory peaks of the attempt so far; a later event replaces an earlier one."""

    kind: Literal["memory"] = "memory"
    """Always `memory`."""
    step: int
    """Optimizer steps done."""
    memory: MemoryReport
    """What was measured."""


class CertificateEvent(_Event):
    """The final adapter was examined."""

    kind: Literal["certificate"] = "certificate"
    """Always `certificate`."""
    step: int
    """Optimizer steps done."""
    certificate: Certificate
    """What was found."""


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
    """The trainer obeyed a stop command, or stopped because there was no room to save."""

    kind: Literal["stopped"] = "stopped"
    """Always `stopped`."""
    step: int
    """Optimizer steps done."""
    reason: StopReason | Literal["disk_full"]
    """The command, or `disk_full`."""
    needed_bytes: int | None = None
    """Free space to wait for before it makes sense to go on."""


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
    | ReceiptEvent
    | EvaluationEvent
    | GradientFlowEvent
    | MemoryEvent
    | CertificateEvent
    | FinishedEvent
    | StoppedEvent
    | FailedEvent,
    Field(discriminator="kind"),
]
TRAINER_EVENT: TypeAdapter[TrainerEvent] = TypeAdapter(TrainerEvent)
