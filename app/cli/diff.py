"""The command that compares two jobs: the keys that differ, and what came of it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import complete, output, tables
from app.cli.output import Mode, Output
from app.cli.tables import Cell, Piece

if TYPE_CHECKING:
    from pydantic import JsonValue

    from app.domain.jobs import Job

app = typer.Typer()

_Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Id of a job.", show_default=False, autocompletion=complete.jobs
    ),
]


@app.command()
def diff(first: _Job, second: _Job, mode: Output = Mode.TABLE) -> None:
    """Compare two jobs: the keys whose values differ, and their last and best figures."""
    from app.cli import actions  # here, so that `lorad --help` stays quick

    with actions.connect() as client:
        jobs = client.job(first), client.job(second)
    keys = _differences(jobs)
    figures = {name: [figure(job) for job in jobs] for name, figure in _FIGURES.items()}
    if mode is Mode.JSON:
        ids = [job.id for job in jobs]
        typer.echo(json.dumps({"jobs": ids, "keys": keys, "figures": figures}, indent=2))
        return
    if mode is Mode.ID:
        for key in keys:
            typer.echo(key)
        return
    titles = [job.id for job in jobs]
    if keys:
        _draw("KEY", titles, {key: [_written(each) for each in two] for key, two in keys.items()})
    else:
        output.show_text("no key differs")
    typer.echo()
    _draw("FIGURE", titles, {name: list(map(output.clean, two)) for name, two in figures.items()})


def _differences(jobs: Sequence["Job"]) -> "dict[str, list[JsonValue]]":
    """Return the keys that differ with both values; a key that one job does not have is null."""
    from app.domain import differences

    return {
        each.key: [
            None if isinstance(value, differences.Absent) else value for value in each.values
        ]
        for each in differences.between([job.spec for job in jobs])
    }


def _draw(title: str, ids: list[str], rows: Mapping[str, list[str]]) -> None:
    cells: list[list[Cell]] = []
    for name, (one, two) in rows.items():
        style = tables.BUSY if one != two else tables.PLAIN
        cells.append([[Piece(name)], [Piece(one, style)], [Piece(two, style)]])
    table = tables.Table(titles=[title, *ids], rows=cells, folds=[True, True, True])
    output.show_lines(tables.draw(table, width=output.width(), colour=output.has_colour()))


def _written(value: object) -> str:
    return output.clean(value if isinstance(value, str) else json.dumps(value))


def _seconds(job: "Job") -> float | None:
    if job.started_at is None:
        return None
    return round(((job.finished_at or job.updated_at) - job.started_at).total_seconds(), 3)


_FIGURES: "Mapping[str, Callable[[Job], object]]" = {
    "state": lambda job: str(job.state),
    "step": lambda job: job.step,
    "total_steps": lambda job: job.total_steps,
    "loss": lambda job: job.loss,
    "eval_loss": lambda job: job.eval_loss,
    "best_eval_loss": lambda job: job.best_eval_loss,
    "best_step": lambda job: job.best_step,
    "seconds": _seconds,
}
