"""An export in the hands of a worker that stops, and one that stands still."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exports.test_service import STOPS, asked, ended, folders, job_id, shown, stopped
from tests.fixtures.stack import Stack, link_model

__all__ = ["job_id"]

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, models: dict[str, Path]
) -> Iterator[Stack]:
    """A service whose exports stand still when their files are written."""
    home = tmp_path_factory.mktemp("h")
    (home / "lorad.db").write_bytes(sqlite_template.read_bytes())
    stack = Stack(home, f"sqlite:///{home / 'lorad.db'}")
    link_model(home, models["llama"], "small")
    try:
        for name in ("valkey", "api"):
            stack.start(name)
        stack.start("worker", **STOPS, LORAD_HANG_SECONDS="5")
        yield stack
    finally:
        stack.close()


def test_an_export_without_progress_is_ended_and_tried_again_and_a_drain_costs_no_try(
    service: Stack, job_id: str
):
    export = asked(service, job_id, format="merged")
    hung = stopped(service)
    service.wait_until(lambda: not hung.is_running(), what="the one that hangs to be ended")
    service.wait_until(lambda: shown(service, export)["tries"] == 2, what="the next try")
    assert "no progress for 5 s" in service.log("worker")

    process = stopped(service)
    began = time.monotonic()
    assert service.stop("worker", signal.SIGTERM) == 0
    took = time.monotonic() - began

    assert took < 30
    assert not process.is_running()
    waiting = shown(service, export)
    assert (waiting["state"], waiting["tries"]) == ("queued", 1)
    assert folders(service, job_id) == []
    service.start("worker")
    done = ended(service, export)
    assert (done["state"], done["tries"]) == ("succeeded", 2)
