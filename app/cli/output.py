"""What the commands print: data on stdout as table, JSON or ids; messages on stderr."""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Protocol, TypeVar

import typer

from app.domain.errors import LoradError


class Mode(StrEnum):
    TABLE = "table"
    JSON = "json"
    ID = "id"


Output = Annotated[Mode, typer.Option("--output", "-o", help="How to print the data.")]


class Printable(Protocol):
    """Any pydantic model; a protocol, so that printing help does not load pydantic."""

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


T = TypeVar("T", bound=Printable)
Part = TypeVar("Part", bound=Printable)


@dataclass(frozen=True)
class Column(Generic[T]):
    title: str
    value: Callable[[T], object]


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
            _table(
                [[clean(column.value(item)) for column in view.columns] for item in things], view
            )


def show_one(item: T, view: View[T], mode: Mode) -> None:
    """Print one thing, a field per line; JSON is one object."""
    match mode:
        case Mode.JSON:
            show_json(item)
        case Mode.ID:
            typer.echo(clean(view.identity(item)))
        case Mode.TABLE:
            fields = [*view.columns, *view.details]
            width = max(len(field.title) for field in fields)
            for field in fields:
                typer.echo(f"{field.title.lower():<{width}}  {clean(field.value(item))}".rstrip())


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


def say(message: str) -> None:
    """Tell the user something that is not data."""
    # A terminal that was closed must not end a process which drains because of that.
    with contextlib.suppress(OSError):
        typer.echo(message, err=True)


def complain(message: str) -> None:
    """The same, for something that went wrong."""
    with contextlib.suppress(OSError):
        typer.secho(message, err=True, fg="red")


def report(error: LoradError) -> None:
    """Print an error with the field at fault, if there is one."""
    complain(f"error: {error.message}")
    if error.param and error.param not in error.message:
        say(f"field: {error.param}")


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


def _table(rows: list[list[str]], view: View[T]) -> None:
    titles = [column.title for column in view.columns]
    lines = [titles, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    for line in lines:
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
