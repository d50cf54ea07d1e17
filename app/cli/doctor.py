"""The command that looks at this machine: what would keep jobs from running, and what to do."""

import json
from concurrent.futures import Future
from dataclasses import asdict
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import local, output, tables
from app.cli.exits import ExitCode
from app.cli.local import Home
from app.cli.tables import Piece

if TYPE_CHECKING:
    from app.cli.checks import Check, Finding

_STYLES = {"ok": tables.GOOD, "warn": tables.WARN, "fail": tables.BAD}
# Above the deadlines that checks have themselves.
_MOST_SECONDS = 90.0


def doctor(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine: Python, torch, CUDA, database, Redis, disk, ports, clock, worker.

    Exits with 1 if something fails; a warning is no failure.
    """
    from app.cli import checks  # here, so that `lorad --help` stays quick

    settings = local.settings(home=home)
    running = [(check, _started(check, checks.Context(settings))) for check in checks.ALL]
    findings: list[Finding] = []
    for check, future in running:
        found = _result(check, future)
        findings += found
        if not as_json:
            for each in found:
                _show(each)
    counts = {status: sum(f.status == status for f in findings) for status in _STYLES}
    if as_json:
        checked = [asdict(finding) for finding in findings]
        typer.echo(json.dumps({"is_well": not counts["fail"], "checks": checked}, indent=2))
    else:
        output.say(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    if counts["fail"]:
        raise typer.Exit(ExitCode.ERROR)


def _started(check: "Check", context: object) -> "Future[list[Finding]]":
    """Run a check beside the others, in a thread that the end of the process does not wait for."""
    future: Future[list[Finding]] = Future()

    def run() -> None:
        try:
            future.set_result(check.run(context))  # pyright: ignore[reportArgumentType]
        except Exception as error:  # noqa: BLE001  (a check that breaks is a finding, not the end)
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _result(check: "Check", future: "Future[list[Finding]]") -> "list[Finding]":
    from app.cli.checks import Finding

    try:
        return future.result(_MOST_SECONDS)
    except TimeoutError:
        return [Finding(check.name, "fail", f"no answer within {_MOST_SECONDS:.0f} s", "try again")]
    except Exception as error:  # noqa: BLE001  (the same)
        said = f"{type(error).__name__}: {error}"
        return [Finding(check.name, "fail", said, "this is a fault of lorad's; report it")]


def _show(finding: "Finding") -> None:
    colour, width = output.has_colour(), output.width()
    style = _STYLES[finding.status]
    mark = tables.paint(f"{finding.status:<4}", style, colour=colour)
    detail = [Piece(output.clean(finding.detail))]
    lines = tables.fields(
        [(f"{finding.name:<14}", detail)],
        width=None if width is None else width - 6,
        colour=colour,
    )
    indent = " " * 6
    output.show_lines([f"{mark}  {lines[0]}", *(indent + line for line in lines[1:])])
    if finding.remedy:
        remedy = tables.fields(
            [(" " * 14, [Piece(f"-> {output.clean(finding.remedy)}")])],
            width=None if width is None else width - 6,
            colour=False,
        )
        output.show_lines(indent + line for line in remedy)
