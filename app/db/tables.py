"""The tables. Only app.db knows them.

Triggers hold the rules that a column cannot say: the moves between states, the fence, and what
never changes. They are in the migrations, so every database has them, whoever writes to it.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.db.types import Json, UtcDateTime, db_now

# SQLite numbers rows only by a column of exactly INTEGER type.
_AutoId = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it as a plain attribute)
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[Any]: Json,
    }


class ProjectRow(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=db_now())


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(200))
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    revoked_at: Mapped[datetime | None]


class SessionRow(Base):
    """A browser that signed in, or a link that signs in once."""

    __tablename__ = "sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    # Null came by a link, which whoever runs the service can read.
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    is_link: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime] = mapped_column(default=db_now())

    __table_args__ = (Index("ix_sessions_expiry", "expires_at"),)


class DatasetRow(Base):
    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(200))
    filename: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    num_rows: Mapped[int]
    # Empty when the columns are those of no known format; the job then names one.
    format: Mapped[str] = mapped_column(String(32))
    container: Mapped[str] = mapped_column(String(16), server_default="jsonl")
    compression: Mapped[str | None] = mapped_column(String(8))
    columns: Mapped[list[Any]] = mapped_column(Json, server_default=text("'[]'"))
    num_bad_rows: Mapped[int] = mapped_column(server_default="0")
    ignored_keys: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    # Null is never; from then on it is removed, unless a job was submitted with it.
    expires_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_datasets_page", "project_id", "id"),
        Index("ix_datasets_expiry", "expires_at"),
    )


class UploadRow(Base):
    """A file that comes in parts."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(String(255))
    mime_type: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    # Life of the file that it becomes.
    file_seconds: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16))
    # What it became; no foreign key, because that can be deleted.
    dataset_id: Mapped[str | None] = mapped_column(String(40))
    completed_with: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    expires_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(
            "state IN ('pending','completed','cancelled','expired')", name="ck_uploads_state"
        ),
        Index("ix_uploads_expiry", "state", "expires_at"),
    )


class UploadPartRow(Base):
    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=db_now())

    __table_args__ = (Index("ix_upload_parts_upload", "upload_id", "id"),)


class WorkerRow(Base):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    machine: Mapped[str] = mapped_column(String(400))
    pid: Mapped[int]
    process_started: Mapped[float] = mapped_column(Float)
    slots: Mapped[int]
    devices: Mapped[list[Any]]
    models: Mapped[list[Any]]
    version: Mapped[str] = mapped_column(String(40))
    started_at: Mapped[datetime] = mapped_column(default=db_now())
    heartbeat_at: Mapped[datetime] = mapped_column(default=db_now())
    ended_at: Mapped[datetime | None]


class JobRow(Base):
    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    eval_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    state: Mapped[str] = mapped_column(String(16))
    state_reason: Mapped[str | None] = mapped_column(String(64))
    desired: Mapped[str] = mapped_column(String(16), default="run")
    priority: Mapped[int] = mapped_column(default=0)
    # Copied from the spec so that a claim can ask for what its worker has.
    base_model: Mapped[str] = mapped_column(String(128))
    device: Mapped[str] = mapped_column(String(8))
    spec: Mapped[dict[str, Any]]
    # What was asked in OpenAI's words, where it was, so that answers can repeat it.
    asked: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    crash_streak: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(ForeignKey("workers.id"))
    lease_expires_at: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(default=db_now())
    # Free bytes that a job paused by a full disk waits for.
    needed_bytes: Mapped[int | None] = mapped_column(BigInteger)
    rung_at: Mapped[datetime] = mapped_column(default=db_now())
    # The checkpoint that the next attempt starts from; null is the newest good one, if any.
    resume_checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    epoch: Mapped[float | None] = mapped_column(Float)
    loss: Mapped[float | None] = mapped_column(Float)
    eval_loss: Mapped[float | None] = mapped_column(Float)
    best_eval_loss: Mapped[float | None] = mapped_column(Float)
    best_step: Mapped[int | None]
    replayed_steps: Mapped[int] = mapped_column(default=0, server_default="0")
    replay_mismatches: Mapped[int] = mapped_column(default=0, server_default="0")
    skipped_steps: Mapped[int] = mapped_column(default=0, server_default="0")
    final_attempt: Mapped[int | None]
    final_manifest_sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(default=db_now())

    __table_args__ = (
        CheckConstraint(
            "state IN ('queued','starting','running','stopping','finalizing',"
            "'paused','succeeded','failed','cancelled')",
            name="ck_jobs_state",
        ),
        CheckConstraint("desired IN ('run','pause','cancel')", name="ck_jobs_desired"),
        Index("ix_jobs_page", "project_id", "id"),
        Index("ix_jobs_claim", "state", "priority", "id"),
    )


class AttemptRow(Base):
    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    worker_id: Mapped[str] = mapped_column(String(40))
    spec: Mapped[dict[str, Any]]
    start_step: Mapped[int | None]
    checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    # Highest line of events.jsonl that is in trainer_events.
    high_water_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    started_at: Mapped[datetime] = mapped_column(default=db_now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(32))
    # True only inside the transaction that stores what a dead attempt left behind.
    adopting: Mapped[bool] = mapped_column(default=False, server_default=false())

    __table_args__ = (Index("uq_attempts_fence", "job_id", "fence", unique=True),)


class JobEventRow(Base):
    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(_AutoId, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(default=db_now())
    type: Mapped[str] = mapped_column(String(40))
    from_state: Mapped[str | None] = mapped_column(String(16))
    to_state: Mapped[str | None] = mapped_column(String(16))
    attempt: Mapped[int]
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_job_events_job", "job_id", "id"),)


class TrainerEventRow(Base):
    """One line of an attempt's events.jsonl; step metrics are those of kind `step`."""

    __tablename__ = "trainer_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    step: Mapped[int]
    superseded: Mapped[bool] = mapped_column(default=False, server_default=false())
    body: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("ix_trainer_events_step", "job_id", "kind", "step"),)


class StepRollupRow(Base):
    """A stretch of the steps of a job's current branch, by the points that stand for it."""

    __tablename__ = "step_rollups"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    level: Mapped[int] = mapped_column(primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(Text)


class CheckpointRow(Base):
    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    fence: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default="committed")
    corrupt_reason: Mapped[str | None] = mapped_column(Text)
    superseded: Mapped[bool] = mapped_column(default=False, server_default=false())
    pinned: Mapped[bool] = mapped_column(default=False, server_default=false())
    loss: Mapped[float | None] = mapped_column(Float)
    eval_loss: Mapped[float | None] = mapped_column(Float)
    bytes: Mapped[int] = mapped_column(BigInteger)
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=db_now())

    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "step", name="uq_checkpoints_folder"),
        CheckConstraint(
            "status IN ('committed','corrupt','deleting')", name="ck_checkpoints_status"
        ),
        Index("ix_checkpoints_step", "job_id", "superseded", "step"),
    )


class ExportRow(Base):
    __tablename__ = "exports"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    # Null is the final adapter of the attempt.
    checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    attempt: Mapped[int]
    step: Mapped[int]
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    format: Mapped[str] = mapped_column(String(16))
    dtype: Mapped[str] = mapped_column(String(16))
    base: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    cancel_requested: Mapped[bool] = mapped_column(default=False, server_default=false())
    progress: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    phase: Mapped[str | None] = mapped_column(String(64))
    tries: Mapped[int] = mapped_column(default=0, server_default="0")
    fence: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    owner: Mapped[str | None] = mapped_column(ForeignKey("workers.id"))
    lease_expires_at: Mapped[datetime | None]
    rung_at: Mapped[datetime] = mapped_column(default=db_now())
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    parity: Mapped[dict[str, Any] | None] = mapped_column(Json)
    files: Mapped[list[Any]] = mapped_column(Json, default=list, server_default=text("'[]'"))
    bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(
            "state IN ('queued','running','succeeded','failed','cancelled')",
            name="ck_exports_state",
        ),
        CheckConstraint(
            "(state = 'running') = (owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name="ck_exports_owner",
        ),
        Index("ix_exports_job", "job_id", "id"),
        Index("ix_exports_state", "state", "id"),
    )


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    scope: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(default=db_now())
