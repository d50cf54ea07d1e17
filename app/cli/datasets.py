"""Commands about data sets, over HTTP."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.cli import complete, output, views
from app.cli.output import Mode, Output

app = typer.Typer(help="Upload, list and show data sets.", no_args_is_help=True)

DatasetId = Annotated[
    str,
    typer.Argument(metavar="DATASET", help="Id of the data set.", autocompletion=complete.datasets),
]


class BadRows(StrEnum):
    REFUSE = "refuse"
    KEEP = "keep"


def _actions():
    # Loaded by the command that runs: the HTTP client is too slow to load for `lorad --help`.
    from app.cli import actions

    return actions


@app.command()
def upload(
    file: Annotated[
        Path, typer.Argument(help="JSONL, JSON array, CSV or Parquet; plain, .gz or .zst.")
    ],
    name: Annotated[str | None, typer.Option(help="Label. Default: the file's name.")] = None,
    on_bad_rows: Annotated[
        BadRows, typer.Option(help="Rows that cannot be trained on: refuse the file, or keep them.")
    ] = BadRows.REFUSE,
    mode: Output = Mode.TABLE,
) -> None:
    """Upload a data set; every row is checked."""
    actions = _actions()
    with actions.connect() as client:
        dataset = actions.upload(client, file, name=name, on_bad_rows=on_bad_rows.value)
        output.show_one(dataset, views.DATASET, mode)
    if dataset.format is None:
        output.say(
            "its columns are those of no known format; a job has to give dataset.format, and"
            " dataset.field_mapping where they are called otherwise"
        )


@app.command("list")
def list_datasets(
    limit: Annotated[int, typer.Option(min=1, help="Most data sets to show.")] = 20,
    mode: Output = Mode.TABLE,
) -> None:
    """List data sets, newest first."""
    with _actions().connect() as client:
        output.show_list(client.datasets(limit=limit), views.DATASET, mode)


@app.command()
def show(dataset_id: DatasetId, mode: Output = Mode.TABLE) -> None:
    """Show a data set."""
    with _actions().connect() as client:
        output.show_one(client.dataset(dataset_id), views.DATASET, mode)


@app.command()
def delete(dataset_id: DatasetId) -> None:
    """Delete a data set that no job needs."""
    with _actions().connect() as client:
        client.delete_dataset(dataset_id)
    output.say(f"{dataset_id} is deleted")
