"""Commands about exports of a job, over HTTP: make one and fetch it, list, delete."""

import hashlib
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import complete, output, views
from app.cli.exits import ExitCode
from app.cli.jobs import JobId
from app.cli.output import Mode, Output
from app.domain.errors import InvalidInput, LoradError

if TYPE_CHECKING:
    from app.cli.client import Client
    from app.domain.exports import Export

app = typer.Typer()

_POLL_SECONDS = 0.5


class Format(StrEnum):
    ADAPTER = "adapter"
    MERGED = "merged"
    GGUF = "gguf"


class Base(StrEnum):
    AUTO = "auto"
    ORIGINAL = "original"
    DEQUANTIZED = "dequantized"


def _actions():
    # Loaded by the command that runs: the HTTP client is too slow to load for `lorad --help`.
    from app.cli import actions

    return actions


@app.command()
def export(
    job_id: JobId,
    export_format: Annotated[
        Format,
        typer.Option("--format", help="PEFT adapter, plain transformers model, or GGUF file."),
    ] = Format.MERGED,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A step, latest, best or final. Default: final, else the newest.",
            autocompletion=complete.checkpoints,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="merged: float32, bfloat16, float16; gguf: f32, f16, bf16, q8_0.")
    ] = "auto",
    base: Annotated[
        Base, typer.Option(help="What a QLoRA adapter is merged into. auto: what it saw.")
    ] = Base.AUTO,
    out: Annotated[
        Path | None, typer.Option(help="Folder to fetch the files into.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option(help="Stay until it is proven.")] = True,
    mode: Output = Mode.TABLE,
) -> None:
    """Export an adapter, with a proof that the files are the model that was trained."""
    if out is not None and not wait:
        raise typer.BadParameter("--out needs the finished export; leave out --no-wait")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} exists and is no empty folder; give another --out")
    actions = _actions()
    choices: dict[str, object] = {
        "format": export_format.value,
        "dtype": dtype,
        "base": base.value,
    }
    if checkpoint is not None:
        choices["checkpoint"] = actions.number_or_name(checkpoint)
    with actions.connect() as client:
        made = client.export(job_id, choices)
        if wait:
            made = _followed(client, made)
        if out is not None and made.state == "succeeded":
            _fetch(client, made, out)
    output.show_one(made, views.EXPORT, mode)
    if wait and made.state != "succeeded":
        raise typer.Exit(
            ExitCode.JOB_CANCELLED if made.state == "cancelled" else ExitCode.JOB_FAILED
        )


@app.command()
def exports(
    job_id: JobId,
    delete: Annotated[
        str | None,
        typer.Option(metavar="EXPORT", help="Delete this one; a running one is stopped."),
    ] = None,
    cancel: Annotated[
        str | None, typer.Option(metavar="EXPORT", help="Stop this one, and keep its row.")
    ] = None,
    mode: Output = Mode.TABLE,
) -> None:
    """List the exports of a job with their proofs, or delete one."""
    with _actions().connect() as client:
        if delete is not None:
            client.delete_export(job_id, delete)
            output.say(f"{delete} is deleted")
            return
        if cancel is not None:
            output.show_one(client.cancel_export(job_id, cancel), views.EXPORT, mode)
            return
        output.show_list(client.exports(job_id), views.EXPORT, mode)


def _followed(client: "Client", export: "Export") -> "Export":
    """Tell how far it is until it ends; Ctrl-C leaves it running."""
    told = ""
    while export.state in ("queued", "running"):
        at = export.waiting_for if export.state == "queued" else export.phase
        line = f"{export.state} {export.progress:.0%}: {at or '-'}"
        if line != told:
            output.say(output.clean(line))
            told = line
        time.sleep(_POLL_SECONDS)
        export = client.show_export(export.job_id, export.id)
    return export


def _fetch(client: "Client", export: "Export", out: Path) -> None:
    """Fetch every file; each appears when its hash was checked.

    Raises:
        LoradError: A file arrived damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in export.files:
        name = Path(file.name).name
        partial = out / f".{name}.part"
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as target:
                for piece in client.download_export(export.job_id, export.id, file.name):
                    digest.update(piece)
                    target.write(piece)
            if digest.hexdigest() != file.sha256:
                raise LoradError(f"{name} arrived damaged; try again")
            partial.replace(out / name)
        finally:
            partial.unlink(missing_ok=True)
    output.say(f"fetched {len(export.files)} files into {out}")
