"""Commands about jobs, over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli import complete, output, views
from app.cli.output import Mode, Output

app = typer.Typer()

JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Id of the job.", show_default=False, autocompletion=complete.jobs
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key, such as training.max_steps=20; may be given often.",
        autocompletion=complete.keys,
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Show it live afterwards.")]


def _bounded(seconds: float | None) -> float | None:
    # Not a range of typer's: it lets `nan` through, and no timer of the system goes further.
    if seconds is not None and not 0.001 <= seconds <= _MOST_SECONDS:
        raise typer.BadParameter(
            f"{seconds:g} is not between 0.001 and {_MOST_SECONDS}; leave it out to wait forever"
        )
    return seconds


_MOST_SECONDS = 31_536_000
Timeout = Annotated[
    float | None,
    typer.Option(
        callback=_bounded, metavar="SECONDS", help="Give up after this time with exit code 124."
    ),
]


def _actions():
    # Loaded by the command that runs, not before: HTTP client and models take longer to load than
    # `lorad --help` may take.
    from app.cli import actions

    return actions


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="YAML or JSON file of the job; - reads stdin.")],
    overrides: Overrides = None,
    watch: Watch = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the file, without the API.")
    ] = False,
    mode: Output = Mode.TABLE,
) -> None:
    """Submit a training job; dataset.path in the file is uploaded first."""
    actions = _actions()
    if dry_run:
        actions.dry_run(file, overrides or [], mode)
        return
    with actions.connect() as client:
        job = actions.submit(client, file, overrides or [])
        output.show_one(job, views.JOB, mode)
        if watch:
            raise typer.Exit(actions.watch_job(client, job.id, timeout=None))
        output.say(f"watch it with: lorad watch {job.id}")


@app.command("ls")
def list_jobs(
    state: Annotated[
        str | None,
        typer.Option(help="Only jobs in this state.", autocompletion=complete.states),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to show.")] = 20,
    mode: Output = Mode.TABLE,
) -> None:
    """List jobs, newest first."""
    with _actions().connect() as client:
        output.show_list(client.jobs(state=state, limit=limit), views.JOB, mode)


@app.command()
def show(job_id: JobId, mode: Output = Mode.TABLE) -> None:
    """Show a job."""
    with _actions().connect() as client:
        output.show_one(client.job(job_id), views.JOB, mode)


@app.command()
def watch(
    job_id: JobId,
    timeout: Timeout = None,
    every: Annotated[
        float | None,
        typer.Option(
            callback=_bounded,
            metavar="SECONDS",
            help="Print plain lines, one at most so often. Default where there is no terminal: 5",
        ),
    ] = None,
) -> None:
    """Watch a job live; Ctrl-C leaves it running. Exits with 100 if it failed, 103 if cancelled."""
    actions = _actions()
    with actions.connect() as client:
        code = actions.watch_job(client, job_id, timeout=timeout, every_seconds=every)
        raise typer.Exit(code)


@app.command()
def wait(job_id: JobId, timeout: Timeout = None) -> None:
    """Wait until a job ends. Exits with 0 only if it succeeded."""
    actions = _actions()
    with actions.connect() as client:
        raise typer.Exit(actions.wait_for(client, job_id, timeout=timeout))


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
) -> None:
    """Print the trainer's log."""
    actions = _actions()
    with actions.connect() as client:
        actions.print_logs(client, job_id, attempt=attempt, follow=follow)


@app.command()
def checkpoints(job_id: JobId, mode: Output = Mode.TABLE) -> None:
    """List the checkpoints that a job can be resumed from."""
    with _actions().connect() as client:
        output.show_list(client.checkpoints(job_id), views.CHECKPOINT, mode)


@app.command()
def resume(
    job_id: JobId,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--checkpoint",
            help="Step, best or id. Default: the newest.",
            autocompletion=complete.checkpoints,
        ),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start again at step 0.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of training."),
    ] = None,
    watch: Watch = False,
    mode: Output = Mode.TABLE,
) -> None:
    """Continue a paused, failed or cancelled job, or a succeeded one with more steps."""
    if from_scratch and checkpoint is not None:
        raise typer.BadParameter("--from-scratch excludes --from")
    actions = _actions()
    with actions.connect() as client:
        job = client.resume(
            job_id,
            checkpoint=None if checkpoint is None else actions.number_or_name(checkpoint),
            from_scratch=from_scratch,
            training=actions.training_overrides(overrides or []),
        )
        output.show_one(job, views.JOB, mode)
        if watch:
            raise typer.Exit(actions.watch_job(client, job_id, timeout=None))


@app.command()
def pause(job_id: JobId, mode: Output = Mode.TABLE) -> None:
    """Pause a job; it saves a checkpoint first."""
    with _actions().connect() as client:
        output.show_one(client.pause(job_id), views.JOB, mode)


@app.command()
def cancel(job_id: JobId, mode: Output = Mode.TABLE) -> None:
    """Cancel a job; its checkpoints stay."""
    with _actions().connect() as client:
        output.show_one(client.cancel(job_id), views.JOB, mode)


@app.command()
def delete(job_id: JobId) -> None:
    """Delete a job that has ended, with its checkpoints."""
    with _actions().connect() as client:
        client.delete_job(job_id)
    output.say(f"{job_id} is deleted")


@app.command()
def generate(
    job_id: JobId,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...")],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            help="latest, best, final, a step, or base: no adapter.",
            autocompletion=complete.checkpoints,
        ),
    ] = "latest",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 64,
    mode: Output = Mode.TABLE,
) -> None:
    """Ask the tuned model; each question is a conversation of its own."""
    actions = _actions()
    with actions.connect() as client:
        answer = client.generate(
            job_id,
            questions,
            checkpoint=actions.number_or_name(checkpoint),
            max_new_tokens=max_new_tokens,
        )
    if mode is Mode.JSON:
        output.show_json(answer)
        return
    for text in answer.answers:
        output.show_text(text)


@app.command()
def download(
    job_id: JobId,
    checkpoint: Annotated[
        str, typer.Argument(help="A step, best, or final.", autocompletion=complete.checkpoints)
    ] = "final",
    to: Annotated[Path | None, typer.Option(help="File to write.", show_default=False)] = None,
) -> None:
    """Download an adapter in PEFT's format as a zip file."""
    actions = _actions()
    with actions.connect() as client:
        target = actions.download(client, job_id, checkpoint, to=to)
    output.show_text(str(target))
