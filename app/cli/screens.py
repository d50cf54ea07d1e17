"""Where progress is shown: a live view on a terminal, plain lines elsewhere, or nowhere."""

import os
import sys
import time
from collections.abc import Callable
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.cli import output
from app.cli.plot import History, sparkline
from app.domain.evaluations import Evaluation
from app.domain.jobs import Job, JobState
from app.domain.metrics import StepMetrics

_DEFAULT_SECONDS = 5.0
_LONGEST_SPARKLINE = 48
_STATE_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "dim",
    JobState.PAUSED: "yellow",
}


class Screen(Protocol):
    """Where progress goes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def state(self, job: Job) -> None: ...

    def remember(self, metrics: StepMetrics) -> None: ...

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None: ...

    def evaluation(self, found: Evaluation) -> None: ...

    def note(self, message: str) -> None: ...


def screen(*, every_seconds: float | None = None) -> Screen:
    """Return what suits standard error; lines are for where there is no terminal, or by wish."""
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if is_terminal and every_seconds is None:
        return LiveScreen(Console(stderr=True))
    return PlainScreen(every_seconds=every_seconds or _DEFAULT_SECONDS)


class LiveScreen:
    """The newest measurements with their course so far; notes scroll above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._job: Job | None = None
        self._metrics: StepMetrics | None = None
        self._evaluation: Evaluation | None = None
        self._total: int | None = None
        self._eta = 0.0
        names = ("loss", "eval loss", "learning rate", "grad norm", "tokens/s", "memory")
        self._course = {name: History() for name in names}
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._view)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def state(self, job: Job) -> None:
        self._job = job

    def remember(self, metrics: StepMetrics) -> None:
        """Take a step into the course of the run, also one from before the watcher came."""
        self._course["loss"].add(metrics.loss)
        self._course["learning rate"].add(metrics.learning_rate)
        self._course["grad norm"].add(metrics.grad_norm)
        self._course["tokens/s"].add(metrics.tokens_per_second)
        self._course["memory"].add(float(metrics.peak_memory_bytes))

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None:
        self._metrics, self._total, self._eta = metrics, total, eta_seconds

    def evaluation(self, found: Evaluation) -> None:
        self._evaluation = found
        self._course["eval loss"].add(found.eval_loss)

    def note(self, message: str) -> None:
        self._console.print(output.clean(message), markup=False, highlight=False)

    def _view(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._job is not None:
            parts.append(_heading(self._job))
        if self._metrics is not None:
            parts += [self._bar(self._metrics), self._measurements(self._metrics)]
        return Group(*parts)

    def _bar(self, metrics: StepMetrics) -> RenderableType:
        line = Table.grid(padding=(0, 2, 0, 0), expand=False)
        bar = ProgressBar(total=self._total, completed=metrics.step, width=self._room(24))
        share = f"{metrics.step / self._total:4.0%}" if self._total else ""
        words = f"step {metrics.step}/{self._total or '?'}  {share}  epoch {metrics.epoch:.2f}"
        eta = f"ETA {output.duration(self._eta)}"
        if self._console.width < 60:
            line.add_row(Text(words))
            line.add_row(Text(eta))
            return line
        line.add_row(bar, Text(words), Text(eta, style="bold"))
        return line

    def _measurements(self, metrics: StepMetrics) -> RenderableType:
        values = {
            "loss": number(metrics.loss, 4),
            "learning rate": number(metrics.learning_rate, 3),
            "grad norm": number(metrics.grad_norm, 3),
            "tokens/s": f"{metrics.tokens_per_second:,.0f}",
            "memory": output.size(metrics.peak_memory_bytes),
        }
        if self._evaluation is not None:
            best = " best" if self._evaluation.is_best else ""
            values["eval loss"] = number(self._evaluation.eval_loss, 4) + best
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True)
        for name, course in self._course.items():
            if name in values:
                style = "red" if values[name] == "not finite" else "bold"
                line = sparkline(course.values, self._room(_LONGEST_SPARKLINE))
                table.add_row(
                    Text(name, style="dim"), Text(values[name], style=style), Text(line, "cyan")
                )
        return table

    def _room(self, wanted: int) -> int:
        """Return the columns that are left beside names and values."""
        return max(min(wanted, self._console.width - 32), 4)


class PlainScreen:
    """A line at most every few seconds, for logs and pipes."""

    def __init__(
        self,
        *,
        every_seconds: float = _DEFAULT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_seconds, self._clock = every_seconds, clock
        self._printed_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def state(self, job: Job) -> None:
        return

    def remember(self, metrics: StepMetrics) -> None:
        return

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None:
        now = self._clock()
        is_due = self._printed_at is None or now - self._printed_at >= self._every_seconds
        if metrics.step == total or is_due:
            self._printed_at = now
            output.say(f"step {metrics.step}/{total or '?'}  {numbers(metrics, eta_seconds)}")

    def evaluation(self, found: Evaluation) -> None:
        return

    def note(self, message: str) -> None:
        output.say(output.clean(message))


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def state(self, job: Job) -> None:
        return

    def remember(self, metrics: StepMetrics) -> None:
        return

    def progress(self, metrics: StepMetrics, *, total: int | None, eta_seconds: float) -> None:
        return

    def evaluation(self, found: Evaluation) -> None:
        return

    def note(self, message: str) -> None:
        return


def numbers(metrics: StepMetrics, eta_seconds: float) -> str:
    """Write a step's measurements in one line."""
    minutes, seconds = divmod(round(eta_seconds), 60)
    return (
        f"loss {number(metrics.loss, 4)}  grad {number(metrics.grad_norm, 3)}  "
        f"lr {metrics.learning_rate:.3g}  {metrics.tokens_per_second:.0f} tok/s  "
        f"{output.size(metrics.peak_memory_bytes)}  ETA {minutes}:{seconds:02d}"
    )


def number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}g}"


def _heading(job: Job) -> RenderableType:
    named = [job.spec.base_model, *([job.name] if job.name else [])]
    line = Text(overflow="ellipsis", no_wrap=True)
    line.append(job.id, style="bold")
    line.append(f"  {job.state}", style=_STATE_STYLES.get(job.state, "cyan"))
    line.append(f"  {output.clean('  '.join(named))}", style="dim")
    return line
