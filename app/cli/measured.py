"""The command that prints what was measured at every step: as a table, a curve or CSV."""

import csv
import math
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output, views
from app.cli.jobs import JobId
from app.cli.output import Mode, Output
from app.domain.errors import InvalidInput

if TYPE_CHECKING:
    from app.cli.client import Client
    from app.domain.metrics import StepMetrics

app = typer.Typer()

# Most steps that the API gives in one answer.
_PAGE = 10_000
_PLOT_WIDTH = 80


class Metric(StrEnum):
    LOSS = "loss"
    GRAD_NORM = "grad_norm"
    PARAM_NORM = "param_norm"
    LEARNING_RATE = "learning_rate"
    TOKENS_PER_SECOND = "tokens_per_second"
    STEP_SECONDS = "step_seconds"
    PEAK_MEMORY_BYTES = "peak_memory_bytes"


@app.command()
def metrics(
    job_id: JobId,
    after_step: Annotated[int, typer.Option(min=0, help="Only steps after this one.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Most steps to show.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw a curve.")] = False,
    metric: Annotated[Metric, typer.Option(help="What --plot draws.")] = Metric.LOSS,
    log: Annotated[bool, typer.Option("--log", help="Draw on a logarithmic axis.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with every field.")] = False,
    mode: Output = Mode.TABLE,
) -> None:
    """Print what was measured at every step, as a table, a curve (--plot) or CSV (--csv)."""
    if (plot and as_csv) or ((plot or as_csv) and mode is not Mode.TABLE):
        raise InvalidInput(
            "--plot, --csv and --output exclude each other; give one", param="--plot"
        )
    if (log or metric is not Metric.LOSS) and not plot:
        raise InvalidInput("--metric and --log are for --plot; give that too", param="--plot")
    from app.cli import actions  # here, so that `lorad --help` stays quick

    with actions.connect() as client:
        if as_csv:
            _print_csv(_pages(client, job_id, after_step=after_step, limit=limit))
        elif plot:
            _draw(client, job_id, metric, after_step=after_step, limit=limit, log=log)
        else:
            rows = client.metrics(job_id, after_step=after_step, limit=limit)
            output.show_list(rows, views.METRICS, mode)


def _pages(
    client: "Client", job_id: str, *, after_step: int, limit: int | None
) -> "Iterator[StepMetrics]":
    """Yield all steps; a run of a million does not have to fit into memory."""
    left = math.inf if limit is None else limit
    while left > 0:
        page = client.metrics(job_id, after_step=after_step, limit=int(min(_PAGE, left)))
        yield from page
        if len(page) < min(_PAGE, left):
            return
        left -= len(page)
        after_step = page[-1].step


def _print_csv(rows: "Iterator[StepMetrics]") -> None:
    from app.domain.metrics import StepMetrics

    names = list(StepMetrics.model_fields)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        # What was not finite is an empty cell; numbers keep every digit.
        writer.writerow([getattr(row, name) for name in names])


def _draw(
    client: "Client",
    job_id: str,
    metric: Metric,
    *,
    after_step: int,
    limit: int | None,
    log: bool,
) -> None:
    from app.cli import plot

    rows = _pages(client, job_id, after_step=after_step, limit=limit)
    points = [(row.step, getattr(row, metric.value)) for row in rows]
    marks: list[tuple[float, float | None]] = []
    if metric is Metric.LOSS and points:
        found = client.evaluations(job_id)
        marks = [
            (each.step, each.eval_loss) for each in found if after_step < each.step <= points[-1][0]
        ]
    lines = plot.curve(
        points,
        title=plot.METRICS[metric.value],
        width=output.width() or _PLOT_WIDTH,
        log=log,
        marks=marks,
    )
    output.show_lines(lines)
