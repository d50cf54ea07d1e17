"""Commands that move a whole job between installations; they work on this machine's home."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli import local, output
from app.cli.jobs import JobId
from app.cli.local import Home

app = typer.Typer()


def _database():
    # Loaded by the command that runs: SQLAlchemy is too slow to load for `lorad --help`.
    from app.cli import database

    return database


@app.command("export-job", rich_help_panel="This machine")
def export_job(
    job_id: JobId,
    out: Annotated[Path, typer.Option(help="New folder to write it into.", show_default=False)],
    home: Home = None,
) -> None:
    """Write a whole job into a folder: spec, metrics, events, checkpoints and data."""
    manifest = _database().export_job(local.settings(home=home), job_id, out)
    size = output.size(sum(each.bytes for each in manifest.files))
    output.say(
        f"wrote {len(manifest.files)} files, {size}; take it in with: lorad import-job {out}"
    )
    output.show_text(str(out))


@app.command("import-job", rich_help_panel="This machine")
def import_job(
    folder: Annotated[Path, typer.Argument(help="Folder that `lorad export-job` wrote.")],
    home: Home = None,
) -> None:
    """Take in a job of another installation; every file is verified first."""
    job_id = _database().import_job(local.settings(home=home), folder)
    output.show_text(job_id)
    output.say(f"it can be resumed here: lorad resume {job_id}")
