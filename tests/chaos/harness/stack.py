# pyright: basic, reportMissingTypeStubs=false
"""The processes of a chaos run: Valkey, API and any number of workers, to be killed at will."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx2
import psutil
import redis

from app.cli import tether, valkey
from tests.chaos.harness import api_entry, processes, visits, worker_entry
from tests.chaos.harness.databases import ChaosDatabase

ROOT = Path(__file__).resolve().parents[3]
Tier = Literal["fast", "real"]
Profile = Literal["mass", "recovery"]

# `mass` is quick, so that many kills fit in a minute; `recovery` is what recovery is measured with.
PROFILES: dict[Profile, dict[str, str]] = {
    "mass": {
        "LORAD_LEASE_SECONDS": "1",
        "LORAD_HEARTBEAT_SECONDS": "0.25",
        "LORAD_RECONCILE_SECONDS": "0.2",
        "LORAD_RING_AGAIN_SECONDS": "1",
    },
    "recovery": {
        "LORAD_LEASE_SECONDS": "6",
        "LORAD_HEARTBEAT_SECONDS": "1",
        "LORAD_RECONCILE_SECONDS": "0.2",
        "LORAD_RING_AGAIN_SECONDS": "1",
    },
}
_START_SECONDS = 90.0
VALKEY, API = "valkey", "api"


class Stuck(Exception):
    """Something did not happen in time; the message says what."""


@dataclass(frozen=True)
class Shape:
    """How a run's service is laid out."""

    tier: Tier = "fast"
    profile: Profile = "mass"
    num_workers: int = 2
    slots: int = 2
    # Workers pretend to be on machines of their own, so that only their lease tells their death.
    is_remote: bool = False
    environment: dict[str, str] = field(default_factory=dict[str, str])


class ChaosStack:
    """One service on one home.

    Everything is started from the thread that made this object, because the children are tethered
    to that thread: they die with it, whatever happens.
    """

    def __init__(self, home: Path, database: ChaosDatabase, shape: Shape) -> None:
        self.home = home
        self.database = database
        self.shape = shape
        self.port = _free_port()
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.workers = [f"worker-{number}" for number in range(1, shape.num_workers + 1)]
        self.environment = {
            **os.environ,
            **PROFILES[shape.profile],
            "LORAD_HOME": str(home),
            "LORAD_DATABASE_URL": database.url,
            "LORAD_PORT": str(self.port),
            "LORAD_SLOTS": str(shape.slots),
            "LORAD_DEVICE": "cpu",
            # The budget is for jobs that kill their trainer; here we do.
            "LORAD_MAX_CRASHES": "1000",
            "LORAD_STOP_GRACE_SECONDS": "20",
            worker_entry.TRAINER: shape.tier,
            **shape.environment,
        }

    def start_all(self) -> None:
        for name in (VALKEY, API, *self.workers):
            self.start(name)
        self.wait_until(self.is_ready, what="all processes to be ready", seconds=_START_SECONDS)

    def start(self, name: str, **environment: str) -> None:
        """Start a process without waiting for it."""
        extra = {visits.FAILPOINTS_FILE: str(self.failpoints_file(name))}
        if name in self.workers and self.shape.is_remote:
            extra[worker_entry.MACHINE] = f"{name}/elsewhere"
        tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*tethered, *self._command(name)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**self.environment, **extra, **environment},
                start_new_session=True,
            )

    def revive(self) -> None:
        """Start what is dead; what was killed a moment ago is dead only when it was waited for."""
        for name in (VALKEY, API, *self.workers):
            if not self.is_running(name):
                self.processes.pop(name, None)
                self.start(name)

    def is_running(self, name: str) -> bool:
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def is_ready(self) -> bool:
        return self.api_answers() and len(self.registered()) >= len(self.workers)

    def api_answers(self) -> bool:
        with suppress(httpx2.TransportError):
            return self.http.get("/healthz").status_code == 200
        return False

    def registered(self) -> set[str]:
        """Return the ids of the workers that the API takes for alive."""
        with suppress(httpx2.TransportError, KeyError, ValueError):
            return {each["id"] for each in self.http.get("/workers").json()["data"]}
        return set()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """End one process, nothing below it, and return its process id."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(timeout=60)
        return process.pid

    def kill_everything(self) -> None:
        """SIGKILL every process of the service at once, as a power cut would."""
        victims = list(self.processes.values())
        below = [
            child for each in victims for child in processes.children(each.pid, recursive=True)
        ]
        for process in victims:
            process.kill()
        for child in below:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        for process in victims:
            process.wait(timeout=60)
        self.processes.clear()

    def close(self) -> None:
        self.http.close()
        self.kill_everything()

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(f"unix://{self._socket}", socket_timeout=5)

    def wipe_valkey(self) -> None:
        """Remove what Valkey keeps; it must not be running."""
        shutil.rmtree(self.home / "valkey", ignore_errors=True)

    def failpoints_file(self, name: str) -> Path:
        return self.home / f"{name}.failpoints"

    def set_failpoints(self, name: str, configured: str) -> None:
        """Change the failpoints of a worker or the API; it looks every 20 ms."""
        file = self.failpoints_file(name)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(configured)
        temporary.rename(file)

    def wait_until(
        self, condition: Callable[[], bool], *, what: str, seconds: float = 60, poll: float = 0.03
    ) -> None:
        """Wait for something.

        Raises:
            Stuck: It did not happen in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Stuck(f"waited {seconds:.0f} s in vain for {what}")
            time.sleep(poll)

    def log_of(self, name: str) -> str:
        file = self.home / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def logs_of_workers(self) -> str:
        return "".join(self.log_of(name) for name in self.workers)

    @property
    def _socket(self) -> Path:
        return self.home / "valkey" / "valkey.sock"

    def _command(self, name: str) -> Sequence[str]:
        if name == VALKEY:
            valkey.prepare(self._socket.parent, self._socket)
            return valkey.command(
                valkey.find_binary(), folder=self._socket.parent, socket_path=self._socket
            )
        if name == API:
            served = ["--port", str(self.port), "--no-access-log"]
            return [sys.executable, "-m", api_entry.__name__, *served]
        return [sys.executable, "-m", worker_entry.__name__]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
