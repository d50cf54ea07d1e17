"""Answers in OpenAI's shapes: files, uploads, fine-tuning jobs, their events and checkpoints."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict


class _Object(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class _Listed(_Object):
    id: str


Item = TypeVar("Item", bound=_Listed)


class CursorPage(_Object, Generic[Item]):
    """A part of a list, newest first unless asked otherwise."""

    model_config = ConfigDict(
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra={"description": "A part of a list, newest first."},
    )

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[Item]
    """The items."""
    has_more: bool
    """True when there are more; ask again with `after` of the last item."""
    first_id: str | None
    """Id of the first item."""
    last_id: str | None
    """Id of the last item."""


class File(_Listed):
    """A file: rows to train or evaluate on, or what a job measured."""

    id: str
    """Id of the file."""
    object: Literal["file"] = "file"
    """Always `file`."""
    bytes: int
    """Size in bytes."""
    created_at: int
    """Time of the upload in seconds since 1970, UTC."""
    filename: str
    """Name of the uploaded file."""
    purpose: Literal["fine-tune", "fine-tune-results"]
    """`fine-tune` for rows, `fine-tune-results` for what a job measured."""
    status: Literal["processed", "error"]
    """`processed`: every row was checked; `error`: see status_details."""
    status_details: str | None = None
    """What is wrong with it."""
    expires_at: int | None = None
    """Time it is removed in seconds since 1970, UTC; null is never."""


class Removed(_Object):
    """What was deleted."""

    id: str
    """Id of what was deleted."""
    object: str
    """Kind of what was deleted."""
    deleted: Literal[True] = True
    """Always true."""


class Upload(_Object):
    """A file that comes in parts."""

    id: str
    """Id of the upload."""
    object: Literal["upload"] = "upload"
    """Always `upload`."""
    bytes: int
    """Size of the whole file in bytes."""
    created_at: int
    """Time it was begun in seconds since 1970, UTC."""
    expires_at: int
    """Time until which it must be completed in seconds since 1970, UTC."""
    filename: str
    """Name of the file."""
    purpose: str
    """Purpose of the file."""
    status: Literal["pending", "completed", "cancelled", "expired"]
    """pending, completed, cancelled or expired."""
    file: File | None = None
    """The file that it became."""


class UploadPart(_Object):
    """A part of a file."""

    id: str
    """Id of the part."""
    object: Literal["upload.part"] = "upload.part"
    """Always `upload.part`."""
    created_at: int
    """Time it came in seconds since 1970, UTC."""
    upload_id: str
    """Id of the upload."""


class JobProblem(_Object):
    """Why a job failed."""

    code: str
    """Stable name of the failure."""
    message: str
    """What failed and what to do."""
    param: str | None = None
    """`training_file` where that is at fault."""


class ShownHyperparameters(_Object):
    """Hyperparameters as they were asked for, or as they are where that was `auto` no longer."""

    n_epochs: Literal["auto"] | int | float
    """Passes over the data."""
    batch_size: Literal["auto"] | int
    """Rows in an optimizer step."""
    learning_rate_multiplier: Literal["auto"] | float
    """Learning rate, divided by 2e-4."""


class ShownSupervised(_Object):
    """The supervised method."""

    hyperparameters: ShownHyperparameters
    """Its hyperparameters."""


class ShownMethod(_Object):
    """How a job trains."""

    type: Literal["supervised"] = "supervised"
    """Always `supervised`."""
    supervised: ShownSupervised
    """Its settings."""


class FineTuningJob(_Listed):
    """A training job in OpenAI's words."""

    id: str
    """Id of the job."""
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    """Always `fine_tuning.job`."""
    model: str
    """Base model."""
    created_at: int
    """Time of the submission in seconds since 1970, UTC."""
    finished_at: int | None
    """Time it ended in seconds since 1970, UTC."""
    fine_tuned_model: str | None
    """Name of what it made; null until it succeeded."""
    organization_id: str
    """Project that owns it."""
    status: str
    """validating_files, queued, running, pausing, paused, succeeded, failed or cancelled."""
    training_file: str
    """Id of the file trained on."""
    validation_file: str | None
    """Id of the file evaluated on."""
    hyperparameters: ShownHyperparameters
    """Its hyperparameters."""
    method: ShownMethod
    """How it trains."""
    result_files: list[str]
    """Ids of the files of what was measured; empty until it succeeded."""
    trained_tokens: int | None
    """Tokens that the loss was computed on, counted each time; null until it succeeded."""
    error: JobProblem | None
    """Why it failed; null unless it did."""
    seed: int
    """Seed of weights, order and dropout."""
    estimated_finish: int | None
    """Time it should end in seconds since 1970, UTC; null unless it is running."""
    integrations: None = None
    """Always null: there are none."""
    metadata: dict[str, str] | None
    """Pairs of text that travel with the job."""
    user_provided_suffix: str | None
    """Part of the fine-tuned model's name that was asked for."""
    lorad: dict[str, Any]
    """What OpenAI has no words for: state, step, total_steps, loss, waiting_for and the spec."""


class FineTuningEvent(_Listed):
    """One entry of a job's history."""

    id: str
    """Id of the event."""
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    """Always `fine_tuning.job.event`."""
    created_at: int
    """Time it happened in seconds since 1970, UTC."""
    level: Literal["info", "warn", "error"]
    """info, warn or error."""
    message: str
    """What happened."""
    type: Literal["message", "metrics"]
    """`metrics` for what was measured, else `message`."""
    data: dict[str, Any] | None
    """Values that belong to it."""


class CheckpointMetrics(_Object):
    """What was measured at a checkpoint."""

    step: int
    """Optimizer steps done."""
    train_loss: float | None = None
    """Loss in nats per target token."""
    valid_loss: float | None = None
    """Loss on the rows of the validation in nats per target token."""
    valid_mean_token_accuracy: float | None = None
    """Share of their target tokens that the model finds most likely, 0 to 1."""
    full_valid_loss: float | None = None
    """The same as valid_loss: every evaluation goes through all rows."""
    full_valid_mean_token_accuracy: float | None = None
    """The same as valid_mean_token_accuracy."""


class FineTuningCheckpoint(_Listed):
    """A checkpoint of a job."""

    id: str
    """Id of the checkpoint."""
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    """Always `fine_tuning.job.checkpoint`."""
    created_at: int
    """Time of the commit in seconds since 1970, UTC."""
    fine_tuned_model_checkpoint: str
    """Name to ask it by."""
    fine_tuning_job_id: str
    """Id of the job."""
    step_number: int
    """Optimizer steps done."""
    metrics: CheckpointMetrics
    """What was measured there."""


class NamedModel(_Object):
    """A model that can be asked."""

    id: str
    """Name of the model."""
    object: Literal["model"] = "model"
    """Always `model`."""
    created: int
    """Time it was made in seconds since 1970, UTC."""
    owned_by: str
    """`lorad` for what is in the models folder, else the project."""


class NamedModels(_Object):
    """All models."""

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[NamedModel]
    """The models."""


def page_of(items: Sequence[Item], *, has_more: bool) -> CursorPage[Item]:
    """Make a page of items."""
    first, last = (items[0].id, items[-1].id) if items else (None, None)
    return CursorPage(data=list(items), has_more=has_more, first_id=first, last_id=last)


def seconds(at: datetime) -> int:
    """Return a time as OpenAI writes it."""
    return int(at.timestamp())
