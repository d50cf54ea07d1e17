"""The command that shows rows of a data set as a model will see them, targets highlighted."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import complete, output, tables
from app.cli.jobs import Overrides
from app.cli.output import Mode, Output
from app.cli.tables import Style
from app.domain.errors import InvalidInput

if TYPE_CHECKING:
    from app.domain.previews import Preview, PreviewRow

app = typer.Typer()

_PLAIN_MARKS = ("[[", "]]")


@app.command()
def preview(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Id of a data set; or a job file, whose data set is uploaded.",
            autocompletion=complete.datasets,
        ),
    ],
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="Model to train. Default: the job file's.",
            autocompletion=complete.models,
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=50, help="Rows to show.")] = 5,
    offset: Annotated[int, typer.Option(min=0, help="Rows to pass over.")] = 0,
    max_length: Annotated[int | None, typer.Option(help="As dataset.max_length.")] = None,
    row_format: Annotated[str | None, typer.Option("--format", help="As dataset.format.")] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OURS=THEIRS", help="As dataset.field_mapping; repeatable."),
    ] = None,
    train_on_inputs: Annotated[
        bool, typer.Option("--train-on-inputs", help="As dataset.train_on_inputs.")
    ] = False,
    overrides: Overrides = None,
    mode: Output = Mode.TABLE,
) -> None:
    """Show rows as the model sees them; the tokens to learn are highlighted, or in [[ ]]."""
    from app.cli import actions  # here, so that `lorad --help` stays quick

    given = {
        "max_length": max_length,
        "format": row_format,
        "train_on_inputs": train_on_inputs or None,
    }
    renamed = _mapping(mapping or [])
    with actions.connect() as client:
        wanted = actions.rows_to_preview(client, source, overrides or [], base_model=base_model)
        options = {**wanted.options, **{key: value for key, value in given.items() if value}}
        found = client.preview(
            wanted.dataset_id,
            base_model=wanted.base_model,
            field_mapping=renamed or wanted.field_mapping,
            options={"rows": rows, "offset": offset, **options},
        )
    match mode:
        case Mode.JSON:
            output.show_json(found)
        case Mode.ID:
            for row in found.rows:
                output.show_text(str(row.line))
        case Mode.TABLE:
            _show(found)


def _mapping(pairs: Sequence[str]) -> dict[str, str] | None:
    mapping: dict[str, str] = {}
    for pair in pairs:
        ours, found, theirs = pair.partition("=")
        if not (ours and found and theirs):
            raise InvalidInput(f"--map {pair}: write OURS=THEIRS, such as prompt=question")
        mapping[ours] = theirs
    return mapping or None


def _show(found: "Preview") -> None:
    colour = output.has_colour()
    for row in found.rows:
        output.heading(_headline(row))
        if row.problem is not None:
            problem = output.clean(f"{row.problem.fate}: {row.problem.detail}")
            output.show_lines([tables.paint(problem, tables.WARN, colour=colour)])
        if row.tokens:
            output.show_lines([_highlighted(row) if colour else _marked(row)])
        typer.echo()
    if found.has_more:
        output.say(f"go on with: --offset {found.offset + len(found.rows)}")


def _headline(row: "PreviewRow") -> str:
    facts = [f"line {row.line}", f"{row.num_tokens} tokens", f"{row.num_targets} to learn"]
    if row.num_tokens_cut:
        facts.append(f"{row.num_tokens_cut} cut")
    if row.ends_turn is not None:
        facts.append(f"end of turn {'learned' if row.ends_turn else 'NOT learned'}")
    return ", ".join(facts)


def _stretches(row: "PreviewRow") -> Iterator[tuple[bool, str]]:
    """Join neighbours of one kind; a text is one only when it is decoded piece by piece."""
    for is_target, tokens in groupby(row.tokens, key=lambda token: token.is_target):
        yield is_target, "".join(token.text for token in tokens)


def _marked(row: "PreviewRow") -> str:
    before, after = _PLAIN_MARKS
    return _lines("".join(f"{before}{text}{after}" if t else text for t, text in _stretches(row)))


def _highlighted(row: "PreviewRow") -> str:
    styles = {True: Style(fg="green", bold=True), False: tables.DIM}
    return "".join(
        tables.paint(_lines(text), styles[is_target], colour=True)
        for is_target, text in _stretches(row)
    )


def _lines(text: str) -> str:
    """Clean each line: rows are users' text and may hold terminal commands."""
    return "\n".join(output.clean(line) for line in text.split("\n"))
