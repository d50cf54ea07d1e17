"""The command `lorad`: its commands, and how errors end them."""

import errno
import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from app.cli import (
    chat,
    datasets,
    evaluation,
    exits,
    exports,
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
    transfer,
    up,
    worker,
)
from app.cli.exits import ExitCode
from app.domain.errors import InvalidInput, LoradError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models with LoRA on your own machines.",
)
app.command(rich_help_panel="This machine")(up.up)
for job_command in (
    *jobs.app.registered_commands,
    *chat.app.registered_commands,
    *evaluation.app.registered_commands,
    *exports.app.registered_commands,
    *flow.app.registered_commands,
    *plans.app.registered_commands,
    *reports.app.registered_commands,
    *previews.app.registered_commands,
    *transfer.app.registered_commands,
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
        _require_text(sys.argv[1:])
        _run()
    except LoradError as error:
        output.report(error)
        sys.exit(exits.of_error(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except OSError as error:
        if error.errno != errno.EPIPE:  # whoever reads the output may stop reading it
            where = f"{error.filename}: " if error.filename else ""
            output.complain(f"error: {where}{error.strerror or error}")
        sys.exit(ExitCode.ERROR)
    except UnicodeError as error:
        output.complain(f"error: {error}; set PYTHONUTF8=1 where the terminal is not UTF-8")
        sys.exit(ExitCode.ERROR)


def _run() -> None:
    try:
        app(prog_name="lorad")
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # Python would write once more at its end, and complain about it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def _require_text(arguments: list[str]) -> None:
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            said = argument.encode("utf-8", "backslashreplace").decode()
            raise InvalidInput(f"{said} is not UTF-8; rename the file, or write it in UTF-8")


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
