"""The warm launcher with a real fork server: children, their ends, and the end of the server."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.training_runs import ROOT
from worker.launcher import FreshLauncher, Launcher, WarmLauncher

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmLauncher]:
    launcher = WarmLauncher()
    assert launcher.is_ready(within_seconds=60)
    yield launcher
    launcher.close()


@pytest.fixture(params=["warm", "fresh"])
def launcher(request: pytest.FixtureRequest, warm: WarmLauncher) -> Launcher:
    return warm if request.param == "warm" else FreshLauncher()


def server_of(_: WarmLauncher) -> psutil.Process:
    (server,) = [
        child
        for child in psutil.Process().children()
        if "worker.forkserver" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE
    ]
    return server


def test_the_exit_status_and_the_output_of_a_child_are_kept(launcher: Launcher, tmp_path: Path):
    launched = launcher.launch("trainer", tmp_path, tmp_path / "log")

    assert launched.ended.wait(60)
    assert launched.exit_status == 2
    assert "run.json" in (tmp_path / "log").read_text()
    launched.close()


def test_a_child_can_be_killed_the_moment_it_was_launched(launcher: Launcher, tmp_path: Path):
    launched = launcher.launch("trainer", tmp_path, tmp_path / "log")

    launched.kill()

    assert launched.ended.is_set()
    assert not psutil.pid_exists(launched.pid)
    launched.close()


def test_many_children_at_once_each_get_their_own_end(warm: WarmLauncher, tmp_path: Path):
    launched = [
        warm.launch("tool", tmp_path / "missing", tmp_path / f"log-{number}") for number in range(8)
    ]

    assert all(each.ended.wait(60) for each in launched)
    assert len({each.pid for each in launched}) == 8
    for each in launched:
        each.close()


def test_a_server_that_died_is_replaced_and_its_children_are_over(tmp_path: Path):
    launcher = WarmLauncher()
    assert launcher.is_ready(within_seconds=60)
    servers = {child.pid for child in psutil.Process().children()}
    launched = launcher.launch("trainer", tmp_path, tmp_path / "log")

    for pid in servers & {child.pid for child in psutil.Process().children()}:
        if launched.pid in {child.pid for child in psutil.Process(pid).children()}:
            psutil.Process(pid).send_signal(signal.SIGKILL)
    assert launched.ended.wait(10)
    again = launcher.launch("trainer", tmp_path, tmp_path / "log")

    assert again.ended.wait(60)
    assert again.exit_status == 2
    launched.close()
    again.close()
    launcher.close()


_PARENT = """
import os, time
from worker.forkserver import die_with_parent
mine = os.getpid()
child = os.fork()
if child == 0:
    die_with_parent(mine)
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_the_kernel_ends_a_process_with_its_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
    try:
        parent.kill()
        parent.wait()

        _, alive = psutil.wait_procs([child], timeout=5)
    finally:
        for process in psutil.wait_procs([child], timeout=0)[1]:
            process.kill()

    assert not alive
