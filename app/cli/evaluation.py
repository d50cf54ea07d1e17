"""Commands about evaluations of a job and replays of its steps, over HTTP."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import complete, output, views
from app.cli.exits import ExitCode
from app.cli.jobs import JobId
from app.cli.output import Mode, Output

if TYPE_CHECKING:
    from app.domain.replays import Verification

app = typer.Typer()


def _actions():
    # Loaded by the command that runs, so that `lorad --help` stays quick.
    from app.cli import actions

    return actions


@app.command()
def evaluations(
    job_id: JobId,
    after_step: Annotated[int, typer.Option(min=-1, help="Only steps after this one.")] = -1,
    limit: Annotated[int | None, typer.Option(min=1, help="Most evaluations to show.")] = None,
    mode: Output = Mode.TABLE,
) -> None:
    """Print the loss and token accuracy on the rows that are not trained on."""
    with _actions().connect() as client:
        rows = client.evaluations(job_id, after_step=after_step, limit=limit)
    output.show_list(rows, views.EVALUATION, mode)


@app.command("verify-resume")
def verify_resume(
    job_id: JobId,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            help="Step, latest, best or id.",
            autocompletion=complete.checkpoints,
        ),
    ] = "latest",
    steps: Annotated[int, typer.Option(min=1, max=50, help="Steps to do again.")] = 3,
    mode: Output = Mode.TABLE,
) -> None:
    """Do steps again from a checkpoint. Exits with 104 if a bit differs from what was recorded."""
    actions = _actions()
    with actions.connect() as client:
        found = client.verify_resume(
            job_id, checkpoint=actions.number_or_name(checkpoint), steps=steps
        )
    if mode is Mode.JSON:
        output.show_json(found)
    else:
        output.show_list(found.steps, views.REPLAYED_STEP, mode)
    for notice in found.notices:
        output.say(notice)
    output.say(_summary(found))
    if not found.identical:
        raise typer.Exit(ExitCode.NOT_IDENTICAL)


def _summary(found: "Verification") -> str:
    state = found.next_checkpoint
    beside = ""
    if state is not None:
        relation = "is" if state.identical else "is NOT"
        beside = f"; the whole state {relation} that of checkpoint {state.step}"
    if found.identical:
        return f"identical to the last bit from checkpoint {found.checkpoint_step} on{beside}"
    return (
        f"NOT identical from checkpoint {found.checkpoint_step} on: differences up to"
        f" {found.largest_absolute_difference:.3g} ({found.largest_relative_difference:.3g}"
        f" relative){beside}"
    )
