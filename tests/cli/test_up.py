"""`lorad up` refuses what cannot work, leaves nothing behind, and loses no job."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from app.cli.children import Child
from app.cli.client import Client
from app.domain.errors import StartupError
from app.domain.jobs import JobState
from tests.cli.test_processes import is_gone, linux_only, wait_until

_QUICK = {
    "LORAD_HEARTBEAT_SECONDS": "0.5",
    "LORAD_LEASE_SECONDS": "3",
    "LORAD_RECONCILE_SECONDS": "0.2",
    "LORAD_RING_AGAIN_SECONDS": "1",
}
_START_SECONDS = 60


class Up:
    """A running `lorad up` with the tiny model."""

    def __init__(self, home: Path, port: int) -> None:
        command = [sys.executable, "-m", "app.cli.main", "up", "--home", str(home)]
        self.process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **_QUICK},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url, self.process.communicate()[1]
        self.url = url
        self.client = Client(url)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def look_again(self) -> list[psutil.Process]:
        """Return every process below it, those that are gone by now included."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.family = [*{*self.family, *found}]
        return self.family

    def wait_for_step(self, job_id: str, step: int, *, seconds: float = 60) -> None:
        wait_until(lambda: self.client.job(job_id).step >= step, seconds=seconds)

    def wait_until_succeeded(self, job_id: str) -> None:
        wait_until(lambda: self.client.job(job_id).state == "succeeded", seconds=60)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()
        for process in self.family:
            is_gone(process)


@pytest.fixture
def start_up(tmp_path, tiny_llama):
    """Start `lorad up` on one home; what was started is gone after the test."""
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / "tiny").symlink_to(tiny_llama)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:

        def start() -> Up:
            up = Up(home, port)
            stack.callback(up.close)
            return up

        start.home = home
        yield start


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = ({"prompt": f"What is {n} + {n}?", "completion": f" {n + n}"} for n in range(64))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def submit_long_job(up, rows, *, max_steps=100_000):
    """Submit a job; by default one that is still running when the test ends."""
    training = {"max_steps": max_steps, "save_steps": 5, "per_device_train_batch_size": 1}
    dataset = up.client.upload(rows)
    return up.client.submit(
        {"base_model": "tiny", "dataset": {"id": dataset.id}, "training": training}
    ).id


def final_adapter(home, job_id):
    (path,) = home.glob(f"jobs/{job_id}/attempts/*/final/adapter_model.safetensors")
    return path.read_bytes()


@pytest.mark.services
@pytest.mark.timeout(240)
@linux_only
def test_a_killed_up_leaves_no_process_and_the_next_one_goes_on(start_up, rows, monkeypatch):
    monkeypatch.setenv("LORAD_FAILPOINTS", "trainer.step=sleep:0.1")
    up = start_up()
    job_id = submit_long_job(up, rows, max_steps=30)
    up.wait_for_step(job_id, 6)
    family = up.look_again()
    names = " ".join(" ".join(process.cmdline()) for process in family)
    assert all(part in names for part in ("valkey", "celery", "forkserver", "serve"))

    os.kill(up.process.pid, signal.SIGKILL)

    assert [process for process in family if not is_gone(process)] == []
    up.process.wait()
    again = start_up()
    step = again.client.job(job_id).step
    again.wait_for_step(job_id, step + 1, seconds=20)
    assert again.client.job(job_id).attempt == 2
    undisturbed = submit_long_job(again, rows, max_steps=30)
    again.wait_until_succeeded(job_id)
    again.wait_until_succeeded(undisturbed)
    assert final_adapter(start_up.home, job_id) == final_adapter(start_up.home, undisturbed)


@pytest.mark.services
@pytest.mark.timeout(240)
def test_ctrl_c_saves_running_jobs_for_the_next_start(start_up, rows):
    up = start_up()
    job_id = submit_long_job(up, rows)
    up.wait_for_step(job_id, 1)
    family = up.look_again()

    up.process.send_signal(signal.SIGINT)

    assert up.process.wait(60) == 0
    assert [process for process in family if not is_gone(process)] == []
    with contextlib.closing(sqlite3.connect(start_up.home / "lorad.db")) as db:
        state, step = db.execute("SELECT state, step FROM jobs").fetchone()
        (saved,) = db.execute("SELECT max(step) FROM checkpoints").fetchone()
    assert (state, saved) == (JobState.QUEUED, step)

    again = start_up()
    again.wait_for_step(job_id, step + 1)
    again.look_again()
    began = time.monotonic()
    again.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(10) == 0
    assert time.monotonic() - began < 5


@pytest.mark.services
def test_the_first_words_of_up_name_an_address_that_is_there(start_up):
    up = start_up()
    served = httpx2.get(f"{up.url}/openapi.json")

    up.process.send_signal(signal.SIGINT)

    said = up.process.communicate(timeout=60)[1]
    assert f"{up.url}/openapi.json" in said
    assert "/docs" not in said
    assert served.json()["info"]["title"] == "lorad"


def test_a_home_that_is_a_file_is_refused(lorad, tmp_path):
    (tmp_path / "home").write_text("")

    done = lorad("up", "--home", str(tmp_path / "home"))

    assert done.code == 2
    assert "cannot write to the home" in done.stderr
    assert "LORAD_HOME" in done.stderr


def test_a_port_in_use_is_refused_before_anything_starts(lorad, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = lorad("up", "--home", str(tmp_path / "home"), "--port", str(port))

    assert done.code == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["lock"]


def test_a_second_up_on_one_home_is_refused(lorad, tmp_path):
    with locked(tmp_path / "home", owner=os.getpid()):
        done = lorad("up", "--home", str(tmp_path / "home"), "--port", "0")

    assert done.code == 2
    assert f"(process {os.getpid()}) is running on {tmp_path / 'home'}" in done.stderr


def test_the_dying_children_of_a_killed_up_are_waited_for(lorad, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with (
        locked(tmp_path / "home", owner=gone.pid) as release,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        threading.Timer(0.3, release).start()
        done = lorad("up", "--home", str(tmp_path / "home"), "--port", port_of(server))

    assert "is in use" in done.stderr  # so the lock was taken


def test_an_open_address_without_keys_is_refused(lorad, tmp_path):
    done = lorad("up", "--home", str(tmp_path / "home"), "--host", "0.0.0.0", "--port", "0")

    assert done.code == 2
    assert "lorad keys create --home" in done.stderr
    assert not (tmp_path / "home" / "logs").exists()


def test_a_strange_setting_is_named(lorad, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAD_LEASE_SECONDS", "soon")

    done = lorad("up", "--home", str(tmp_path / "home"))

    assert done.code == 2
    assert "LORAD_LEASE_SECONDS is 'soon'" in done.stderr


@pytest.mark.parametrize("command", ["up", "serve", "worker", "migrate"])
def test_a_lease_that_one_lost_heartbeat_ends_is_refused(lorad, tmp_path, monkeypatch, command):
    monkeypatch.setenv("LORAD_HEARTBEAT_SECONDS", "5")
    monkeypatch.setenv("LORAD_LEASE_SECONDS", "10")

    done = lorad(command, "--home", str(tmp_path / "home"))

    assert done.code == 2
    assert done.stderr.startswith("error: LORAD_LEASE_SECONDS is 10;")
    assert "LORAD_HEARTBEAT_SECONDS (5)" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.fixture
def make_child(tmp_path):
    """Make children of this process; none outlives the test."""
    with contextlib.ExitStack() as stack:

        def make(*command: str) -> Child:
            held = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
            stack.callback(os.close, held)
            log = tmp_path / "logs" / "child.log"
            child = Child("child", command, log=log, held_file=held)
            stack.callback(child.kill)
            return child

        yield make


def test_a_child_that_dies_is_started_again(make_child, tmp_path, capsys):
    child = make_child(
        "sh", "-c", f"echo started; test -e {tmp_path}/well && exec sleep 600; exit 3"
    )
    child.start()
    wait_until(lambda: not child.is_alive)
    (tmp_path / "well").touch()

    wait_until(lambda: child.watch() or child.log.read_text() == "started\nstarted\n")

    assert child.is_alive
    assert "child ended with exit status 3" in capsys.readouterr().err


def test_a_child_that_never_lives_is_given_up_with_its_last_words(make_child):
    child = make_child("sh", "-c", "echo no such luck; exit 1")
    child.start()

    with pytest.raises(StartupError, match="no such luck"):
        wait_until(lambda: child.watch() or child.require_viable())


@contextlib.contextmanager
def locked(home, *, owner):
    """Hold a home as an `up` with the process id `owner` does; yield what lets it go."""
    home.mkdir()
    file = os.open(home / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(file, str(owner).encode())
    try:
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def port_of(server):
    return str(server.getsockname()[1])
