"""What a watcher sees: one live line on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Protocol, Self

import httpx2
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from app.cli import live, output
from app.cli.client import Client
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

_PLAIN_SECONDS = 1.0
# Weight of the newest step in the mean that the remaining time is computed from.
_NEWEST_WEIGHT = 0.2


class Screen(Protocol):
    """Where progress goes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None: ...

    def note(self, message: str) -> None: ...


def follow(client: Client, job_id: str, screen: Screen, *, until_paused: bool) -> Job:
    """Show a job until it ends, or until it is paused, and return it as it is then."""
    board = _Board(screen)
    messages = live.messages(
        client, job_id, on_lost=lambda reason: screen.note(f"{reason}; connecting again ...")
    )
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


def screen() -> Screen:
    """Return what suits standard error."""
    return BarScreen(Console(stderr=True)) if sys.stderr.isatty() else PlainScreen()


class BarScreen:
    """A bar with the newest measurements behind it; notes scroll above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._task = self._progress.add_task("step", total=None, numbers="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None:
        self._progress.update(
            self._task,
            completed=metrics.step,
            total=total,
            visible=True,
            numbers=numbers(metrics, eta_seconds),
        )

    def note(self, message: str) -> None:
        self._progress.console.print(output.clean(message), markup=False, highlight=False)


class PlainScreen:
    """A line at most every second, for logs and pipes."""

    def __init__(self) -> None:
        self._printed_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None:
        now = time.monotonic()
        if metrics.step == total or now - self._printed_at >= _PLAIN_SECONDS:
            self._printed_at = now
            output.say(f"step {metrics.step}/{total or '?'}  {numbers(metrics, eta_seconds)}")

    def note(self, message: str) -> None:
        output.say(output.clean(message))


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None:
        return

    def note(self, message: str) -> None:
        return


def numbers(metrics: StepMetrics, eta_seconds: float) -> str:
    """Write a step's measurements in one line."""
    minutes, seconds = divmod(round(eta_seconds), 60)
    return (
        f"loss {_number(metrics.loss, 4)}  grad {_number(metrics.grad_norm, 3)}  "
        f"{metrics.tokens_per_second:.0f} tok/s  ETA {minutes}:{seconds:02d}"
    )


class _Board:
    """Turns messages into what a screen shows, and remembers what the next ones need."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._total: int | None = None
        self._state: JobState | None = None
        self._step_seconds: float | None = None
        self._newest: StepMetrics | None = None

    def take(self, message: httpx2.ServerSentEvent) -> Job | None:
        """Show a message; return the job when the message is about its state."""
        if message.event in ("state", "complete"):
            return self._show_state(Job.model_validate_json(message.data))
        event = TRAINER_EVENT.validate_json(message.data)
        if isinstance(event, StepEvent):
            self._newest = event.metrics
            self._show_newest()
        elif isinstance(event, ReadyEvent):
            self._total = event.total_steps
        # The stream begins with all that was before, and then tells the state; a watcher who comes
        # late wants the newest step of that, not its notes.
        if self._state is not None:
            self._show_note(event)
        return None

    def _show_state(self, job: Job) -> Job:
        self._total = job.total_steps or self._total
        is_first = self._state is None
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


def _describe_ready(event: ReadyEvent) -> str:
    place = f"from step {event.step}" if event.step else "from the start"
    return (
        f"training {place} on {event.device} ({event.dtype}): {event.num_trained_rows} rows, "
        f"{event.num_trainable_parameters:,} trainable parameters"
    )


def _describe_evaluation(found: Evaluation) -> str:
    place = "the best so far" if found.is_best else f"{found.num_since_best} since the best"
    return (
        f"evaluation at step {found.step}: loss {_number(found.eval_loss, 4)}, "
        f"{found.token_accuracy:.1%} of the tokens right ({place})"
    )


def _is_paused(job: Job) -> bool:
    return job.state == JobState.PAUSED


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}g}"
