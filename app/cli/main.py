"""The command `lorad`: its commands, and how errors end them."""

import errno
import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from app.cli import (
    chat,
    convert,
    datasets,
    diff,
    doctor,
    evaluation,
    exits,
    exports,
    flow,
    init,
    jobs,
    keys,
    measured,
    migrate,
    models,
    output,
    pages,
    plans,
    previews,
    reports,
    serve,
    shape,
    transfer,
    up,
    worker,
)
from app.cli.exits import ExitCode
from app.domain.errors import InvalidInput, LoradError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune language models with LoRA on your own machines. More: docs/cli.md",
)
_MACHINE = "This machine"
_PANELS = {
    "Before a job": "init plan preview convert",
    "What came of a job": "metrics evaluations receipt gradient-flow memory certificate"
    " verify-resume diff",
    "The model": "download chat generate export exports",
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names.split()}

# In the order of the help.
for module in (
    *(init, plans, previews, convert, measured, evaluation, reports, flow, diff),
    *(jobs, pages, chat, exports, transfer),
):
    for command in module.app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        if name in _PANEL_OF:
            command.rich_help_panel = _PANEL_OF[name]
        app.registered_commands.append(command)
app.add_typer(datasets.app, name="datasets", rich_help_panel="Before a job")
app.add_typer(models.app, name="models", rich_help_panel="Before a job")
for machine_command in (up.up, doctor.doctor, serve.serve, worker.worker, migrate.migrate):
    app.command(rich_help_panel=_MACHINE)(machine_command)
app.add_typer(keys.app, name="keys", rich_help_panel=_MACHINE)
for group in (app, datasets.app, models.app, keys.app):
    shape.add_json(group)


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
        # Not its own main program: errors in the arguments are told like all others.
        code = app(prog_name="lorad", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
    except typer.TyperException as error:
        shape.report_usage(error)
        sys.exit(ExitCode.BAD_INPUT)
    except typer.Abort:
        sys.exit(ExitCode.INTERRUPTED)
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
