"""Commands about what a job reports of itself, over HTTP."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output, views
from app.cli.jobs import JobId
from app.cli.output import Mode, Output

if TYPE_CHECKING:
    from app.domain.receipts import Receipt

app = typer.Typer()


def _actions():
    # Loaded by the command that runs, so that `lorad --help` stays quick.
    from app.cli import actions

    return actions


@app.command()
def receipt(
    job_id: JobId,
    lines: Annotated[
        bool, typer.Option("--lines", help="Print the fate of every line as JSON lines.")
    ] = False,
    mode: Output = Mode.TABLE,
) -> None:
    """Print what became of every line of a job's data set."""
    with _actions().connect() as client:
        if lines:
            for piece in client.receipt_lines(job_id):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        found = client.receipt(job_id)
    output.show_one(found, views.RECEIPT, mode)
    if mode is Mode.TABLE and found.problems:
        typer.echo()
        output.show_list(found.problems, views.LINE_PROBLEM, mode)
    _say_what_is_missing(found, job_id)


def _say_what_is_missing(found: "Receipt", job_id: str) -> None:
    num_problems = found.num_truncated + found.num_dropped
    if num_problems > len(found.problems):
        output.say(
            f"the first {len(found.problems)} of {num_problems} lines that were cut or left out;"
            f" all of them: lorad receipt {job_id} --lines"
        )
