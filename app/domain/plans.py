"""What a job would do and need, told before it is submitted."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.domain.memory import MemoryEstimate
from app.domain.spec import JobSpec


class Warned(BaseModel):
    """Something allowed that is hardly what the user wants."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    code: str
    """Stable name of the warning."""
    message: str
    """What would happen, with the numbers, and what to change."""
    param: str
    """Dotted path of the key concerned."""


class Work(BaseModel):
    """How much a run does."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_rows: int
    """Rows to train on."""
    num_eval_rows: int
    """Rows to evaluate on."""
    steps: int
    """Optimizer steps of the run."""
    steps_per_epoch: int
    """Optimizer steps in a pass over the data."""
    tokens_per_epoch: int
    """Tokens in a pass over the data."""
    target_tokens_per_epoch: int
    """Tokens with a label in a pass over the data."""
    tokens_per_step: float
    """Tokens of an average optimizer step."""
    longest_row_tokens: int
    """Tokens of the longest row."""
    num_trainable_parameters: int
    """Parameters of the adapter."""


class DiskPlan(BaseModel):
    """Disk that the checkpoints take."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    checkpoint_bytes: int
    """Size of one checkpoint in bytes."""
    num_checkpoints: int
    """Most checkpoints there are at once, the final adapter not counted."""
    total_bytes: int
    """Size in bytes of all that there is at once, the final adapter included."""
    free_bytes: int
    """Free bytes on the disk of the jobs now."""
    fits: bool
    """Whether it fits."""


class TimePlan(BaseModel):
    """Time that the run takes, from steps that were recorded for like runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seconds_per_step: float
    """Time of an average step in seconds."""
    total_seconds: float
    """Time of all steps in seconds."""
    tokens_per_second: float
    """Median over the recorded steps."""
    num_jobs: int
    """Earlier jobs that this comes from."""


class PlanFacts(BaseModel):
    """What a worker finds out about a job."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    work: Work
    """How much the run does."""
    memory: MemoryEstimate
    """Memory of the longest micro-batch."""
    limit_bytes: int | None
    """Memory there is in bytes: max_memory_gb, or what the device has."""
    fits: bool
    """Whether the expected memory is within the limit."""
    largest_micro_batch_size: int
    """Largest per_device_train_batch_size whose expected memory is within the limit; 0 when not
    even one row fits."""
    checkpoint_bytes: int
    """Size of one checkpoint in bytes."""
    adapter_bytes: int
    """Size of the final adapter in bytes."""
    warnings: tuple[Warned, ...]
    """What is hardly meant so."""


class Plan(BaseModel):
    """A job as it would run; nothing was stored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    object: Literal["plan"] = "plan"
    """Always `plan`."""
    spec: JobSpec
    """The job with every default filled in."""
    work: Work
    """How much the run does."""
    memory: MemoryEstimate
    """Memory of the longest micro-batch."""
    limit_bytes: int | None
    """Memory there is in bytes: max_memory_gb, or what the device has."""
    fits: bool
    """Whether the expected memory is within the limit."""
    largest_micro_batch_size: int
    """Largest per_device_train_batch_size whose expected memory is within the limit; 0 when not
    even one row fits."""
    disk: DiskPlan
    """Disk that the checkpoints take."""
    time: TimePlan | None
    """Time that the run takes; null without earlier runs of the same model, device and adapter."""
    warnings: tuple[Warned, ...]
    """What is hardly meant so."""
