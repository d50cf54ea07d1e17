"""Which fields of each thing are shown, in which order."""

from typing import TYPE_CHECKING

from app.cli.output import Column, View, size

if TYPE_CHECKING:
    # Only names of types: the models behind them load pydantic, which help does not need.
    from app.cli.client import ModelEntry
    from app.domain.checkpoints import Checkpoint
    from app.domain.datasets import Dataset
    from app.domain.jobs import Job
    from app.domain.metrics import StepMetrics


def _steps(job: "Job") -> str:
    return f"{job.step}/{job.total_steps or '?'}"


def _reason(job: "Job") -> str | None:
    return job.error.message if job.error else job.waiting_for or job.state_reason


def _status(checkpoint: "Checkpoint") -> str:
    marks = [name for name in ("superseded", "pinned") if getattr(checkpoint, name)]
    return ", ".join([checkpoint.status, *marks])


JOB: "View[Job]" = View(
    identity=lambda job: job.id,
    columns=[
        Column("ID", lambda job: job.id),
        Column("STATE", lambda job: job.state),
        Column("STEP", _steps),
        Column("LOSS", lambda job: job.loss),
        Column("MODEL", lambda job: job.spec.base_model),
        Column("NAME", lambda job: job.name),
        Column("CREATED", lambda job: job.created_at),
    ],
    details=[
        Column("REASON", _reason),
        Column("EPOCH", lambda job: job.epoch),
        Column("ATTEMPT", lambda job: job.attempt),
        Column("WORKER", lambda job: job.worker),
        Column("DATASET", lambda job: job.spec.dataset.id),
        Column("STARTED", lambda job: job.started_at),
        Column("FINISHED", lambda job: job.finished_at),
    ],
)

METRICS: "View[StepMetrics]" = View(
    identity=lambda row: row.step,
    columns=[
        Column("STEP", lambda row: row.step),
        Column("EPOCH", lambda row: row.epoch),
        Column("LOSS", lambda row: row.loss),
        Column("GRAD_NORM", lambda row: row.grad_norm),
        Column("LR", lambda row: row.learning_rate),
        Column("TOKENS", lambda row: row.num_tokens),
        Column("SECONDS", lambda row: row.step_seconds),
        Column("TOK/S", lambda row: f"{row.tokens_per_second:.0f}"),
        Column("PEAK_MEMORY", lambda row: size(row.peak_memory_bytes)),
    ],
)

CHECKPOINT: "View[Checkpoint]" = View(
    identity=lambda row: row.id,
    columns=[
        Column("STEP", lambda row: row.step),
        Column("LOSS", lambda row: row.loss),
        Column("STATUS", _status),
        Column("SIZE", lambda row: size(row.bytes)),
        Column("ATTEMPT", lambda row: row.attempt),
        Column("ID", lambda row: row.id),
        Column("CREATED", lambda row: row.created_at),
    ],
)

DATASET: "View[Dataset]" = View(
    identity=lambda row: row.id,
    columns=[
        Column("ID", lambda row: row.id),
        Column("NAME", lambda row: row.name),
        Column("FORMAT", lambda row: row.format),
        Column("ROWS", lambda row: row.num_rows),
        Column("SIZE", lambda row: size(row.bytes)),
        Column("CREATED", lambda row: row.created_at),
    ],
    details=[
        Column("FILENAME", lambda row: row.filename),
        Column("IGNORED_KEYS", lambda row: ", ".join(row.ignored_keys) or None),
        Column("SHA256", lambda row: row.sha256),
    ],
)

MODEL: "View[ModelEntry]" = View(
    identity=lambda row: row.id,
    columns=[
        Column("NAME", lambda row: row.id),
        Column("USABLE", lambda row: "yes" if row.usable else f"no: {row.problem}"),
        Column("ARCHITECTURE", lambda row: row.architecture),
        Column("SIZE", lambda row: size(row.bytes)),
    ],
)
