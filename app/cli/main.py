"""The command `lorad`: its commands, and how errors end them."""

import importlib.metadata
import sys
from typing import Annotated

import typer

from app.cli import (
    datasets,
    evaluation,
    exits,
    flow,
    jobs,
    keys,
    migrate,
    models,
    output,
    plans,
    previews,
    reports,
    serve,
    up,
    worker,
)
from app.cli.exits import ExitCode
from app.domain.errors import LoradError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models with LoRA on your own machines.",
)
app.command(rich_help_panel="This machine")(up.up)
for job_command in (
    *jobs.app.registered_commands,
    *evaluation.app.registered_commands,
    *flow.app.registered_commands,
    *plans.app.registered_commands,
    *reports.app.registered_commands,
    *previews.app.registered_commands,
):
    app.registered_commands.append(job_command)
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
for machine_command in (serve.serve, worker.worker, migrate.migrate):
    app.command(rich_help_panel="This machine")(machine_command)
app.add_typer(keys.app, name="keys", rich_help_panel="This machine")


def main() -> None:
    """Run the command line; every error on purpose becomes a message and an exit code."""
    try:
        app(prog_name="lorad")
    except LoradError as error:
        output.report(error)
        sys.exit(exits.of_error(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.show_text(f"lorad {importlib.metadata.version('lorad')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of `lorad` itself."""


if __name__ == "__main__":
    main()
