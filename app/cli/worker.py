"""The command that becomes a Celery worker, and how one is started."""

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import local
from app.cli.local import Home
from app.domain.errors import StartupError

if TYPE_CHECKING:
    from app.settings import Settings

_THREADS = 8


def worker(
    home: Home = None,
    slots: Annotated[
        int | None, typer.Option(min=0, max=64, help="Training jobs at once. Default: 1")
    ] = None,
) -> None:
    """Run a worker. Needs LORAD_DATABASE_URL, LORAD_REDIS_URL and a LORAD_HOME shared by all."""
    settings = local.settings(home=home, slots=slots)
    require_installed()
    local.prepare_home(settings.home)
    sys.stderr.flush()
    # The worker takes this process over, so that signals for `lorad worker` are the worker's.
    os.execv(sys.executable, command(settings))


def command(settings: "Settings") -> list[str]:
    """Build the command line of a worker."""
    return [
        *(sys.executable, "-m", "celery", "--app", "worker.tasks", "worker"),
        *("--pool", "threads", "--concurrency", str(_THREADS)),
        *("--queues", "doorbell,tools"),
        *("--loglevel", settings.log_level.upper()),
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ]


def require_installed() -> None:
    """Check that training is possible, without loading what it needs.

    Raises:
        StartupError: The `worker` extra is not installed.
    """
    for package in ("torch", "transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            raise StartupError(
                f"{package} is not installed, so nothing could be trained here; "
                "install it with: pip install 'lorad[worker]'"
            )
