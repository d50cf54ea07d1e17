"""Which fields of each thing are shown, in which order."""

from typing import TYPE_CHECKING

from app.cli import tables
from app.cli.output import Column, View, age, size
from app.cli.tables import Style

if TYPE_CHECKING:
    # Only names of types: the models behind them load pydantic, which help does not need.
    from app.cli.client import ModelEntry
    from app.domain.checkpoints import Checkpoint
    from app.domain.datasets import Dataset
    from app.domain.evaluations import Evaluation
    from app.domain.exports import Export
    from app.domain.jobs import Job
    from app.domain.metrics import StepMetrics
    from app.domain.receipts import LineProblem, Receipt
    from app.domain.replays import ReplayedStep


def _steps(job: "Job") -> str:
    return f"{job.step}/{job.total_steps or '?'}"


def _reason(job: "Job") -> str | None:
    return job.error.message if job.error else job.waiting_for or job.state_reason


def _status(checkpoint: "Checkpoint") -> str:
    marks = [name for name in ("superseded", "pinned") if getattr(checkpoint, name)]
    return ", ".join([checkpoint.status, *marks])


def _exact(value: float | None) -> str | None:
    """Write every digit: steps done again are compared to the last bit."""
    return None if value is None else repr(value)


def _best(job: "Job") -> str | None:
    return None if job.best_step is None else f"{job.best_eval_loss:.4g} at step {job.best_step}"


def _replayed(job: "Job") -> str | None:
    if not job.replayed_steps:
        return None
    return f"{job.replayed_steps} steps, {job.replay_mismatches} different"


def _counted(reasons: dict[str, int]) -> str | None:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or None


def _proof(export: "Export") -> str | None:
    """Tell what was measured against the live adapter."""
    found = export.parity
    if found is None:
        return None
    verdict = "same" if found.is_proven else "NOT THE SAME"
    divergence = "no number" if found.mean_kl is None else f"{found.mean_kl:.1e}"
    agreed = f"{found.greedy_agreement:.1%} of {found.num_tokens} tokens"
    return f"{verdict}: {agreed}, KL {divergence} nats"


_STATE_STYLES = {
    "succeeded": tables.GOOD,
    "failed": tables.BAD,
    "cancelled": tables.DIM,
    "paused": tables.WARN,
    "queued": tables.PLAIN,
}


def state_style(state: str) -> Style:
    """Return how a state looks; all but those that rest are busy."""
    return _STATE_STYLES.get(state, tables.BUSY)


JOB: "View[Job]" = View(
    identity=lambda job: job.id,
    columns=[
        Column("ID", lambda job: job.id),
        Column("STATE", lambda job: job.state, lambda job: state_style(job.state)),
        Column("STEP", _steps),
        Column("LOSS", lambda job: job.loss),
        Column("MODEL", lambda job: job.spec.base_model, folds=True),
        Column("NAME", lambda job: job.name, folds=True),
        Column("AGE", lambda job: age(job.created_at)),
    ],
    details=[
        Column("REASON", _reason),
        Column("CREATED", lambda job: job.created_at),
        Column("EPOCH", lambda job: job.epoch),
        Column("EVAL_LOSS", lambda job: job.eval_loss),
        Column("BEST", _best),
        Column("REPLAYED", _replayed),
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
        Column("TOKENS", lambda row: row.num_tokens, optional=True),
        Column("SECONDS", lambda row: row.step_seconds, optional=True),
        Column("TOK/S", lambda row: f"{row.tokens_per_second:.0f}"),
        Column("PEAK_MEMORY", lambda row: size(row.peak_memory_bytes)),
    ],
)

EVALUATION: "View[Evaluation]" = View(
    identity=lambda row: row.step,
    columns=[
        Column("STEP", lambda row: row.step),
        Column("EPOCH", lambda row: row.epoch),
        Column("EVAL_LOSS", lambda row: row.eval_loss),
        Column("ACCURACY", lambda row: f"{row.token_accuracy:.1%}"),
        Column("BEST", lambda row: "yes" if row.is_best else None, lambda _: tables.GOOD),
        Column("SINCE_BEST", lambda row: row.num_since_best),
        Column("TOKENS", lambda row: row.num_target_tokens),
        Column("SECONDS", lambda row: row.seconds),
    ],
)

REPLAYED_STEP: "View[ReplayedStep]" = View(
    identity=lambda row: row.step,
    columns=[
        Column("STEP", lambda row: row.step),
        Column("LOSS", lambda row: _exact(row.recorded_loss)),
        Column("AGAIN", lambda row: _exact(row.replayed_loss)),
        Column("GRAD_NORM", lambda row: _exact(row.recorded_grad_norm)),
        Column("AGAIN", lambda row: _exact(row.replayed_grad_norm)),
        Column(
            "SAME",
            lambda row: {True: "yes", False: "NO", None: None}[row.identical],
            lambda row: tables.BAD if row.identical is False else tables.PLAIN,
        ),
    ],
)

CHECKPOINT: "View[Checkpoint]" = View(
    identity=lambda row: row.id,
    columns=[
        Column("STEP", lambda row: row.step),
        Column("LOSS", lambda row: row.loss),
        Column("EVAL_LOSS", lambda row: row.eval_loss),
        Column("STATUS", _status, folds=True),
        Column("SIZE", lambda row: size(row.bytes)),
        Column("ATTEMPT", lambda row: row.attempt, optional=True),
        Column("ID", lambda row: row.id, optional=True),
        Column("AGE", lambda row: age(row.created_at)),
    ],
)

DATASET: "View[Dataset]" = View(
    identity=lambda row: row.id,
    columns=[
        Column("ID", lambda row: row.id),
        Column("NAME", lambda row: row.name, folds=True),
        Column("FORMAT", lambda row: row.format),
        Column("ROWS", lambda row: row.num_rows),
        Column("SIZE", lambda row: size(row.bytes)),
        Column("AGE", lambda row: age(row.created_at)),
    ],
    details=[
        Column("CREATED", lambda row: row.created_at),
        Column("FILENAME", lambda row: row.filename),
        Column("CONTAINER", lambda row: ".".join(filter(None, (row.container, row.compression)))),
        Column("COLUMNS", lambda row: ", ".join(row.columns) or None),
        Column("BAD_ROWS", lambda row: row.num_bad_rows or None),
        Column("IGNORED_KEYS", lambda row: ", ".join(row.ignored_keys) or None),
        Column("SHA256", lambda row: row.sha256),
    ],
)

RECEIPT: "View[Receipt]" = View(
    identity=lambda row: row.num_lines,
    columns=[
        Column("LINES", lambda row: row.num_lines),
        Column("KEPT", lambda row: row.num_kept),
        Column("TRUNCATED", lambda row: row.num_truncated),
        Column("DROPPED", lambda row: row.num_dropped),
    ],
    details=[
        Column("REASONS", lambda row: _counted(row.dropped_reasons)),
        Column("TRAINED", lambda row: row.num_train_rows),
        Column("HELD_OUT", lambda row: row.num_eval_rows),
        Column("UNITS", lambda row: row.num_units),
        Column("TOKENS", lambda row: f"{row.num_tokens:,}"),
        Column("TARGETS", lambda row: f"{row.num_target_tokens:,}"),
        Column("TOKENS_CUT", lambda row: f"{row.num_tokens_cut:,}"),
        Column("LONGEST", lambda row: row.longest_tokens),
        Column("TURNS_WITHOUT_END", lambda row: row.num_turns_without_end),
    ],
)

LINE_PROBLEM: "View[LineProblem]" = View(
    identity=lambda row: row.line,
    columns=[
        Column("LINE", lambda row: row.line),
        Column(
            "FATE",
            lambda row: row.fate,
            lambda row: tables.BAD if row.fate == "dropped" else tables.WARN,
        ),
        Column("REASON", lambda row: row.reason),
        Column("TOKENS", lambda row: row.num_tokens),
        Column("CUT", lambda row: row.num_tokens_cut or None),
        Column("DETAIL", lambda row: row.detail, folds=True),
    ],
)

EXPORT: "View[Export]" = View(
    identity=lambda row: row.id,
    columns=[
        Column("ID", lambda row: row.id),
        Column("FORMAT", lambda row: row.format),
        Column("OF", lambda row: f"step {row.step}" + " (final)" * (row.checkpoint == "final")),
        Column("DTYPE", lambda row: row.dtype),
        Column("STATE", lambda row: row.state, lambda row: state_style(row.state)),
        Column("PROGRESS", lambda row: f"{row.progress:.0%}"),
        Column("PROOF", _proof, folds=True),
        Column("SIZE", lambda row: size(row.bytes), optional=True),
        Column("AGE", lambda row: age(row.created_at), optional=True),
    ],
    details=[
        Column("CREATED", lambda row: row.created_at),
        Column("BASE", lambda row: row.base),
        Column("REASON", lambda row: row.error.message if row.error else row.waiting_for),
        Column("FILES", lambda row: ", ".join(file.name for file in row.files) or None),
        Column("FINISHED", lambda row: row.finished_at),
    ],
)

MODEL: "View[ModelEntry]" = View(
    identity=lambda row: row.id,
    columns=[
        Column("NAME", lambda row: row.id),
        Column(
            "USABLE",
            lambda row: "yes" if row.usable else f"no: {row.problem}",
            lambda row: tables.GOOD if row.usable else tables.BAD,
            folds=True,
        ),
        Column("ARCHITECTURE", lambda row: row.architecture),
        Column("SIZE", lambda row: size(row.bytes)),
    ],
)
