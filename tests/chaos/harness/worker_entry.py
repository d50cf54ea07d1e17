# pyright: basic, reportMissingTypeStubs=false
"""Process entry: the product's worker, changed in what the chaos tests need and nothing else.

- Its fork server has the fast trainer loaded (`CHAOS_TRAINER=fast`).
- It may pretend to be on another machine (`CHAOS_MACHINE`), so that only its lease tells its death.
- Its failpoints are read again whenever a file changes (`CHAOS_FAILPOINTS_FILE`).
"""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

TRAINER, MACHINE = "CHAOS_TRAINER", "CHAOS_MACHINE"
_REAL_SERVER = "worker.forkserver"
_FAST_SERVER = "tests.chaos.harness.fast_forkserver"


def main() -> None:
    from app.cli import worker
    from app.settings import Settings
    from tests.chaos.harness import visits

    settings = Settings()
    if os.environ.get(TRAINER) == "fast":
        _start_the_fast_server()
    if machine := os.environ.get(MACHINE):
        _pretend_to_be_on(machine)
    visits.follow(settings.home)
    # The same arguments as the product's command, without a second start of Python.
    _, _, _, *arguments = worker.command(settings)
    sys.argv = ["celery", *arguments]
    from celery.__main__ import main as celery

    celery()


def _start_the_fast_server() -> None:
    from worker import launcher

    def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
        changed = [_FAST_SERVER if part == _REAL_SERVER else part for part in command]
        return subprocess.Popen(changed, **options)

    changed_module = SimpleNamespace(**{**vars(subprocess), "Popen": start})
    launcher.subprocess = changed_module  # pyright: ignore[reportAttributeAccessIssue]


def _pretend_to_be_on(machine: str) -> None:
    from app.services import workers

    workers.this_machine = lambda: machine


if __name__ == "__main__":
    main()
