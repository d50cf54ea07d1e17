"""The command that opens a page of the dashboard in a browser."""

import os
from typing import Annotated

import typer

from app.cli import complete, output

app = typer.Typer()


@app.command("open")
def open_page(
    job_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]",
            help="Id of the job. Default: all jobs.",
            show_default=False,
            autocompletion=complete.jobs,
        ),
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the address, and open nothing.")
    ] = False,
) -> None:
    """Open the page of a job, or of all jobs, in a browser."""
    from app.cli.transport import DEFAULT_URL, path_of, require_url  # `lorad --help` stays quick

    base = os.environ.get("LORAD_API_URL") or DEFAULT_URL
    require_url(base)
    parts = ("ui", "jobs") if job_id is None else ("ui", "jobs", job_id)
    url = base.rstrip("/") + path_of(*parts)
    if only_print or not _open(url):
        output.show_text(url)


def _open(url: str) -> bool:
    """Ask the system for a browser; say so where there is none."""
    import webbrowser

    try:
        is_open = webbrowser.open(url)
    except webbrowser.Error:
        is_open = False
    output.say(f"opened {url}" if is_open else "there is no browser here; the address is:")
    return is_open
