"""Tables that fit where they are shown: cells fold; where that is too little, rows are blocks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import typer

_GAP = "  "
# A column that may fold keeps at least this width; a word is still a word there.
_LEAST_WIDTH = 8
_NUMBER = re.compile(r"-|[-+]?[\d.,]+(e[-+]?\d+)?( ?(B|kB|MB|GB|TB|%|s|min|h|d))?")


@dataclass(frozen=True)
class Style:
    """How text looks on a terminal with colours; colours are names or numbers of the 256."""

    fg: str | int | None = None
    bg: str | int | None = None
    bold: bool = False
    dim: bool = False


PLAIN = Style()
HEADING = Style(bold=True)
DIM = Style(dim=True)
GOOD = Style(fg="green")
BUSY = Style(fg="cyan")
WARN = Style(fg="yellow")
BAD = Style(fg="red", bold=True)


@dataclass(frozen=True)
class Piece:
    """A part of a cell: one line of clean text in one style."""

    text: str
    style: Style = PLAIN


Cell = Sequence[Piece]
_V = TypeVar("_V")


def paint(text: str, style: Style, *, colour: bool) -> str:
    """Return the text with the codes of its style, or as it is where there are no colours."""
    if not colour or style == PLAIN or not text:
        return text
    return typer.style(
        text, fg=style.fg, bg=style.bg, bold=style.bold or None, dim=style.dim or None
    )


@dataclass(frozen=True)
class Table:
    """Rows of cells below titles.

    Args:
        titles: Names of the columns.
        rows: A cell for each of them.
        folds: Which columns may be folded over several lines; the others are never cut.
        optional: Which columns may be left out, the last one first; empty for none.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folds: Sequence[bool]
    optional: Sequence[bool] = ()

    def without(self, index: int) -> "Table":
        def kept(values: Sequence[_V]) -> list[_V]:
            return [value for i, value in enumerate(values) if i != index]

        return Table(
            kept(self.titles),
            [kept(row) for row in self.rows],
            kept(self.folds),
            kept(self.optional),
        )


def draw(table: Table, *, width: int | None, colour: bool) -> list[str]:
    """Return the lines of a table.

    Args:
        table: What to draw.
        width: Columns of the terminal; None where lines may have any length.
        colour: Whether to write styles.
    """
    titles, rows, folds = table.titles, table.rows, table.folds
    natural = [
        max([cells(title), *(_width_of(row[index]) for row in rows)])
        for index, title in enumerate(titles)
    ]
    widths = natural if width is None else _fitted(natural, titles, folds, width)
    left_out = [index for index, may in enumerate(table.optional) if may]
    if widths is None and left_out:
        return draw(table.without(left_out[-1]), width=width, colour=colour)
    if widths is None:
        return _blocks(titles, rows, width=width or 0, colour=colour)
    right = [_is_numeric([row[index] for row in rows]) for index in range(len(titles))]
    head = [[Piece(title, HEADING)] for title in titles]
    return [
        line
        for row in [head, *rows]
        for line in _row_lines(row, widths, right=right, colour=colour)
    ]


def fields(
    pairs: Sequence[tuple[str, Cell]], *, width: int | None, colour: bool, indent: int = 0
) -> list[str]:
    """Return names and values below each other; long values go on below themselves."""
    column = max([0, *(cells(name) for name, _ in pairs)])
    room = None if width is None else max(width - column - len(_GAP) - indent, _LEAST_WIDTH)
    lines: list[str] = []
    for name, cell in pairs:
        label = " " * indent + paint(name + " " * (column - cells(name)), DIM, colour=colour) + _GAP
        folded = [cell] if room is None else _folded(cell, room)
        for number, part in enumerate(folded):
            lead = " " * (indent + column + len(_GAP)) if number else label
            lines.append((lead + _painted(part, colour=colour)).rstrip())
    return lines


def cells(text: str) -> int:
    """Return the columns that a text takes; some characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # rarely needed, and `lorad --help` stays quick

    return cell_len(text)


def _width_of(cell: Cell) -> int:
    return sum(cells(piece.text) for piece in cell)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _fitted(
    natural: Sequence[int], titles: Sequence[str], folds: Sequence[bool], width: int
) -> list[int] | None:
    """Take width from the widest columns that may fold until all fit; None where they cannot."""
    widths = list(natural)
    least = [max(cells(title), _LEAST_WIDTH) for title in titles]
    while _total(widths) > width:
        able = [i for i, may in enumerate(folds) if may and widths[i] > least[i]]
        if not able:
            return None
        widths[max(able, key=lambda i: widths[i])] -= 1
    return widths


def _row_lines(
    row: Sequence[Cell], widths: Sequence[int], *, right: Sequence[bool], colour: bool
) -> list[str]:
    folded = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines: list[str] = []
    for number in range(max(map(len, folded))):
        parts: list[str] = []
        for parts_of_cell, width, is_right in zip(folded, widths, right, strict=True):
            part: Cell = parts_of_cell[number] if number < len(parts_of_cell) else ()
            space = " " * (width - _width_of(part))
            text = _painted(part, colour=colour)
            parts.append(space + text if is_right else text + space)
        lines.append(_GAP.join(parts).rstrip())
    return lines


def _folded(cell: Cell, width: int) -> list[Cell]:
    """Break a cell of one piece at spaces, and words that are too long anywhere."""
    if _width_of(cell) <= width or len(cell) != 1:
        return [cell]
    lines, line = list[str](), ""
    for word in cell[0].text.split(" "):
        longer = f"{line} {word}" if line else word
        if cells(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        *whole, line = _chopped(word, width)
        lines += whole
    return [[Piece(text, cell[0].style)] for text in [*lines, line]]


def _chopped(word: str, width: int) -> list[str]:
    if cells(word) <= width:
        return [word]
    from rich.cells import chop_cells

    return chop_cells(word, max(width, 2))


def _painted(cell: Cell, *, colour: bool) -> str:
    return "".join(paint(piece.text, piece.style, colour=colour) for piece in cell)


def _is_numeric(column: Sequence[Cell]) -> bool:
    texts = ["".join(piece.text for piece in cell).strip() for cell in column]
    return any(text != "-" for text in texts) and all(map(_NUMBER.fullmatch, texts))


def _blocks(
    titles: Sequence[str], rows: Sequence[Sequence[Cell]], *, width: int, colour: bool
) -> list[str]:
    names = [title.lower() for title in titles]
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        lines += fields(list(zip(names, row, strict=True)), width=width, colour=colour)
    return lines
