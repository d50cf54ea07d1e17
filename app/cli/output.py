"""What the commands print: data on stdout as table, JSON or ids; messages on stderr."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Protocol, TextIO, TypeVar

import typer

from app.cli import tables
from app.cli.tables import Piece, Style
from app.domain.errors import LoradError


class Mode(StrEnum):
    TABLE = "table"
    JSON = "json"
    ID = "id"


Output = Annotated[
    Mode, typer.Option("--output", "-o", help="How to print the data; --json is -o json.")
]


class Printable(Protocol):
    """Any pydantic model; a protocol, so that printing help does not load pydantic."""

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


T = TypeVar("T", bound=Printable)
Part = TypeVar("Part", bound=Printable)


@dataclass(frozen=True)
class Column(Generic[T]):
    title: str
    value: Callable[[T], object]
    style: Callable[[T], Style] | None = None
    """How a value looks on a terminal."""
    folds: bool = False
    """Whether it is free text, which may go over several lines where there is little room."""
    optional: bool = False
    """Whether a list leaves it out where there is too little room; JSON always has it."""


@dataclass(frozen=True)
class View(Generic[T]):
    """How things of one type are shown."""

    identity: Callable[[T], object]
    """What `--output id` prints."""
    columns: Sequence[Column[T]]
    """Columns of a list."""
    details: Sequence[Column[T]] = ()
    """Lines shown for a single thing besides the columns."""


def show_list(items: Iterable[T], view: View[T], mode: Mode) -> None:
    """Print things below each other; JSON is one array."""
    things = list(items)
    match mode:
        case Mode.JSON:
            typer.echo(json.dumps([item.model_dump(mode="json") for item in things], indent=2))
        case Mode.ID:
            for item in things:
                typer.echo(clean(view.identity(item)))
        case Mode.TABLE:
            _table(things, view)


def show_one(item: T, view: View[T], mode: Mode) -> None:
    """Print one thing, a field per line; JSON is one object."""
    match mode:
        case Mode.JSON:
            show_json(item)
        case Mode.ID:
            typer.echo(clean(view.identity(item)))
        case Mode.TABLE:
            pairs = [
                (field.title.lower(), _cell(field, item))
                for field in [*view.columns, *view.details]
            ]
            show_lines(tables.fields(pairs, width=width(), colour=has_colour()))


def show_with_parts(
    item: T, view: View[T], parts: Iterable[Part], part_view: View[Part], mode: Mode
) -> None:
    """Print one thing below a table of its parts; in JSON and as an id it is one thing."""
    if mode is Mode.TABLE:
        show_list(parts, part_view, mode)
        show_text("")
    show_one(item, view, mode)


def show_json(item: Printable) -> None:
    typer.echo(json.dumps(item.model_dump(mode="json"), indent=2))


def show_text(text: str) -> None:
    """Print data that is text already, such as an answer of a model."""
    typer.echo("\n".join(clean(line) for line in text.splitlines()))


def show_lines(lines: Iterable[str]) -> None:
    """Print lines that were made here, styles included."""
    for line in lines:
        typer.echo(line, color=has_colour())


def heading(text: str) -> None:
    """Print what the lines below it are about."""
    show_lines([tables.paint(clean(text), tables.HEADING, colour=has_colour())])


def say(message: str) -> None:
    """Tell the user something that is not data."""
    # A terminal that was closed must not end a process which drains because of that.
    with contextlib.suppress(OSError):
        typer.echo(message, err=True)


def warn(message: str) -> None:
    """Tell the user of something that works and is hardly meant."""
    _tell(f"warning: {message}", tables.WARN)


def complain(message: str) -> None:
    """The same, for something that went wrong."""
    _tell(message, Style(fg="red"))


def report(error: LoradError) -> None:
    """Print an error: what is wrong and what to do, then where, and what to ask support with.

    Lines under the first one come from the error's notes, such as the line of a file or the id of
    the request.
    """
    complain(f"error: {error.message}")
    if error.param and error.param not in error.message:
        say(f"field: {error.param}")
    # The place in what the user wrote comes first, however late it was found out.
    for note in reversed(getattr(error, "__notes__", [])):
        say(clean(note))


def has_colour(stream: TextIO | None = None) -> bool:
    """Tell whether to write styles: on a terminal, unless NO_COLOR says not to."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def width(stream: TextIO | None = None) -> int | None:
    """Return the columns of the terminal; None where the output goes elsewhere."""
    if not (stream or sys.stdout).isatty():
        return None
    return max(shutil.get_terminal_size().columns, 20)


def clean(value: object) -> str:
    """Make one line of a value; names are users' text and may hold terminal commands."""
    match value:
        case None:
            return "-"
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{value:.4g}"
        case _:
            text = str(value)
            return "".join(char if char.isprintable() else "?" for char in text)


def size(num_bytes: int) -> str:
    """Write a number of bytes as people do."""
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 and seconds != whole else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def age(time: datetime) -> str:
    """Write how long ago something was, in its largest unit."""
    seconds = max(0.0, (datetime.now(UTC) - time).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _tell(message: str, style: Style) -> None:
    with contextlib.suppress(OSError):
        colour = has_colour(sys.stderr)
        typer.echo(tables.paint(message, style, colour=colour), err=True, color=colour)


def _cell(column: Column[T], item: T) -> tables.Cell:
    style = column.style(item) if column.style else tables.PLAIN
    return [Piece(clean(column.value(item)), style)]


def _table(things: Sequence[T], view: View[T]) -> None:
    table = tables.Table(
        titles=[column.title for column in view.columns],
        rows=[[_cell(column, item) for column in view.columns] for item in things],
        folds=[column.folds for column in view.columns],
        optional=[column.optional for column in view.columns],
    )
    show_lines(tables.draw(table, width=width(), colour=has_colour()))
