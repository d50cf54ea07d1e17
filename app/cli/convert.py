"""The command that makes a job file of another trainer's configuration; every key has a fate."""

import json
import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import output, tables
from app.cli.exits import ExitCode
from app.cli.tables import Piece, Style
from app.domain.errors import InvalidInput

if TYPE_CHECKING:
    from app.domain.converting.draft import Conversion, Fate

app = typer.Typer()

_STYLES = {
    "carried": tables.GOOD,
    "changed": tables.BUSY,
    "filled": tables.BUSY,
    "dropped": tables.DIM,
    "lost": tables.BAD,
}
_LONGEST_VALUE = 40


class Tool(StrEnum):
    AXOLOTL = "axolotl"
    LLAMAFACTORY = "llamafactory"


@app.command()
def convert(
    file: Annotated[
        str, typer.Argument(help="Configuration of axolotl or LLaMA-Factory; - reads stdin.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Job file to write. Default: stdout.", show_default=False),
    ] = None,
    tool: Annotated[
        Tool | None,
        typer.Option(help="Whose it is. Default: told by its keys.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the job file.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the job and the fate of every key as JSON.")
    ] = False,
) -> None:
    """Turn a configuration of axolotl or LLaMA-Factory into a job file.

    The report on stderr has the fate of every key: carried, changed, filled in (a default of the
    other tool that is not ours), dropped (without effect on the result), or lost. Exits with 105 if
    something was lost.
    """
    from app.cli import specs  # here, so that `lorad --help` stays quick
    from app.domain.converting import detect

    if out is not None and out.exists() and not force:
        raise InvalidInput(f"{out} exists already; choose another, or --force", param="--out")
    config = specs.read_mapping(file)
    found = detect.convert(
        config,
        tool.value if tool else detect.tool_of(config),
        datasets=_dataset_info(config, file),
    )
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        _write(_job_file(found, file), out)
        _report(found)
    if not found.is_whole:
        raise typer.Exit(ExitCode.NOT_WHOLE)


def _dataset_info(config: Mapping[str, Any], file: str) -> Mapping[str, Any] | None:
    """Read LLaMA-Factory's list of data sets, beside the configuration or below this folder."""
    folder = str(config.get("dataset_dir") or "data")
    for start in (Path.cwd(), Path(file).absolute().parent):
        path = start / folder / "dataset_info.json"
        if path.is_file():
            from app.cli import specs

            return specs.read_mapping(str(path))
    return None


def _job_file(found: "Conversion", file: str) -> str:
    import yaml

    from app.domain.spec import JobSpec

    order = {name: index for index, name in enumerate(JobSpec.model_fields)}
    spec = dict(sorted(found.spec.items(), key=lambda pair: order[pair[0]]))
    name = "standard input" if file == "-" else output.clean(os.path.basename(file))  # noqa: PTH119
    head = f"# Made from {name} ({found.tool}) by `lorad convert`.\n"
    return head + yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    out.write_text(text, "utf-8")
    output.say(f"wrote {out}; check it with: lorad submit {out} --dry-run")


def _report(found: "Conversion") -> None:
    order = ("lost", "changed", "filled", "dropped", "carried")
    fates = sorted(found.fates, key=lambda fate: order.index(fate.kind))
    colour = output.has_colour(sys.stderr)
    table = tables.Table(
        titles=["FATE", "KEY", "VALUE", "IN THE JOB", "NOTE"],
        rows=[_row(fate) for fate in fates],
        folds=[False, True, True, True, True],
    )
    for line in tables.draw(table, width=output.width(sys.stderr), colour=colour):
        typer.echo(line, err=True, color=colour)
    counts = {kind: sum(fate.kind == kind for fate in fates) for kind in order}
    told = ", ".join(f"{counts[kind]} {kind}" for kind in reversed(order) if counts[kind])
    output.say(f"{found.tool}: {told}")
    if not found.is_whole:
        output.complain("what is lost changes the result; the notes say what to do about it")


def _row(fate: "Fate") -> list[list[Piece]]:
    style: Style = _STYLES[fate.kind]
    cells = (fate.key, _short(fate.value), fate.target or "-", fate.note or "-")
    return [[Piece(fate.kind, style)], *([Piece(output.clean(text))] for text in cells)]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _as_json(found: "Conversion") -> dict[str, Any]:
    fates = [
        {"key": f.key, "value": f.value, "fate": f.kind, "target": f.target, "note": f.note}
        for f in found.fates
    ]
    return {"tool": found.tool, "spec": dict(found.spec), "is_whole": found.is_whole, "keys": fates}
