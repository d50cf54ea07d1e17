"""Following a job: the messages of its live stream become what a screen shows."""

import httpx2
from pydantic import ValidationError

from app.cli import live, output
from app.cli.client import Client
from app.cli.screens import Screen, number
from app.domain.errors import LoradError
from app.domain.evaluations import Evaluation
from app.domain.events import (
    TRAINER_EVENT,
    CheckpointEvent,
    EvaluationEvent,
    NoticeEvent,
    ReadyEvent,
    StepEvent,
    TrainerEvent,
)
from app.domain.jobs import Job, JobState
from app.domain.metrics import StepMetrics

# Weight of the newest step in the mean that the remaining time is computed from.
_NEWEST_WEIGHT = 0.2


def follow(client: Client, job_id: str, screen: Screen, *, until_paused: bool) -> Job:
    """Show a job until it ends, or until it is paused, and return it as it is then."""
    board = _Board(screen)
    messages = live.messages(client, job_id, on_lost=board.lose)
    for message in messages:
        try:
            job = board.take(message)
        except ValidationError as error:
            raise LoradError(
                f"the live stream sent a {message.event} that this command does not understand; "
                "use the version of the API"
            ) from error
        if job is not None and (job.is_terminal or (until_paused and _is_paused(job))):
            return job
    raise AssertionError("a stream ends with `complete`")


class _Board:
    """Turns messages into what a screen shows, and remembers what the next ones need."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._total: int | None = None
        self._state: JobState | None = None
        self._step_seconds: float | None = None
        self._newest: StepMetrics | None = None
        self._is_lost = False

    def lose(self, reason: str) -> None:
        """Say that the connection is lost; what comes next says that it is back."""
        self._is_lost = True
        self._screen.note(f"{reason}; the job goes on, connecting again ...")

    def take(self, message: httpx2.ServerSentEvent) -> Job | None:
        """Show a message; return the job when the message is about its state."""
        if self._is_lost:
            self._is_lost = False
            self._screen.note("connected again")
        if message.event in ("state", "complete"):
            return self._show_state(Job.model_validate_json(message.data))
        event = TRAINER_EVENT.validate_json(message.data)
        if isinstance(event, StepEvent):
            self._newest = event.metrics
            self._screen.remember(event.metrics)
            self._show_newest()
        elif isinstance(event, ReadyEvent):
            self._total = event.total_steps
        elif isinstance(event, EvaluationEvent):
            self._screen.evaluation(event.evaluation)
        # The stream begins with all that was before, and then tells the state; a watcher who comes
        # late wants the newest step of that, not its notes.
        if self._state is not None:
            self._show_note(event)
        return None

    def _show_state(self, job: Job) -> Job:
        self._total = job.total_steps or self._total
        is_first = self._state is None
        self._screen.state(job)
        if job.state != self._state:
            self._state = job.state
            self._screen.note(describe(job))
        if is_first and self._newest is not None and self._newest.step <= job.step:
            self._show_newest()
        return job

    def _show_newest(self) -> None:
        metrics = self._newest
        if metrics is None or self._state is None:
            return
        mean = metrics.step_seconds if self._step_seconds is None else self._step_seconds
        self._step_seconds = mean + _NEWEST_WEIGHT * (metrics.step_seconds - mean)
        remaining = max(0, (self._total or metrics.step) - metrics.step)
        self._screen.progress(
            metrics, total=self._total, eta_seconds=remaining * self._step_seconds
        )

    def _show_note(self, event: TrainerEvent) -> None:
        match event:
            case ReadyEvent():
                self._screen.note(_describe_ready(event))
            case CheckpointEvent():
                self._screen.note(f"checkpoint {event.step} saved ({output.size(event.bytes)})")
            case EvaluationEvent():
                self._screen.note(_describe_evaluation(event.evaluation))
            case NoticeEvent():
                self._screen.note(f"{event.code}: {event.message}")
            case _:
                pass  # How a run ended is shown with the state that follows from it.


def describe(job: Job) -> str:
    """Say in a line what state a job is in and why."""
    has_ended = job.state in (JobState.SUCCEEDED, JobState.FAILED)
    line = f"{job.id} {'has' if has_ended else 'is'} {job.state}"
    if job.state == JobState.QUEUED and job.waiting_for:
        line += f": {job.waiting_for}"
    elif job.error is not None:
        line += f": {job.error.message}"
    elif job.state_reason:
        line += f" ({job.state_reason})"
    return line + (f" at step {job.step}/{job.total_steps}" if job.total_steps else "")


def summary(job: Job) -> str | None:
    """Say in a line what came of a job; None where nothing was measured."""
    facts: list[str] = []
    if job.loss is not None:
        facts.append(f"loss {number(job.loss, 4)}")
    if job.best_eval_loss is not None:
        facts.append(f"best eval loss {number(job.best_eval_loss, 4)} at step {job.best_step}")
    if job.started_at is not None and job.finished_at is not None:
        facts.append(output.duration((job.finished_at - job.started_at).total_seconds()))
    return ", ".join(facts) or None


def _describe_ready(event: ReadyEvent) -> str:
    place = f"from step {event.step}" if event.step else "from the start"
    return (
        f"training {place} on {event.device} ({event.dtype}): {event.num_trained_rows} rows, "
        f"{event.num_trainable_parameters:,} trainable parameters"
    )


def _describe_evaluation(found: Evaluation) -> str:
    place = "the best so far" if found.is_best else f"{found.num_since_best} since the best"
    return (
        f"evaluation at step {found.step}: loss {number(found.eval_loss, 4)}, "
        f"{found.token_accuracy:.1%} of the tokens right ({place})"
    )


def _is_paused(job: Job) -> bool:
    return job.state == JobState.PAUSED
