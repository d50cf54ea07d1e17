"""What all commands have in common: `--json`, and errors in arguments told like all others."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.output import Mode

_Json = Annotated[bool, typer.Option("--json", help="Print JSON; short for --output json.")]


def add_json(group: typer.Typer) -> None:
    """Give every command of a group that prints data the option `--json`."""
    for command in group.registered_commands:
        callback = command.callback
        if callback is not None and "mode" in inspect.signature(callback).parameters:
            command.callback = _with_json(callback)


def report_usage(error: typer.TyperException) -> None:
    """Print an error in the arguments in the form of all errors, with where to read more."""
    context: typer.Context | None = getattr(error, "ctx", None)
    if not error.format_message():
        # Help was asked for by giving nothing; typer has printed it.
        return
    output.complain(f"error: {output.clean(error.format_message())}")
    if context is not None:
        output.say(f"help: {context.command_path} --help")


def _with_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with one more option, which typer reads from its signature."""
    signature = inspect.signature(command)

    @functools.wraps(command)
    def run(*, as_json: bool, mode: Mode, **given: Any) -> Any:
        if as_json and mode is Mode.ID:
            raise typer.BadParameter("--json excludes --output id; give one of them")
        return command(**given, mode=Mode.JSON if as_json else mode)

    flag = inspect.Parameter(
        "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Json
    )
    parameters = [*signature.parameters.values(), flag]
    run.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {**command.__annotations__, "as_json": _Json}
    return run
