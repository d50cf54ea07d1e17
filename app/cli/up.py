"""The command that runs everything on one machine: database, Valkey, worker and API."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import local, output, serve, valkey, worker
from app.cli.children import Child
from app.cli.exits import ExitCode
from app.cli.local import Home
from app.cli.serve import Host, Port
from app.domain.errors import StartupError

if TYPE_CHECKING:
    from app.settings import Settings

_TICK_SECONDS = 0.1
_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0
# Processes of a killed `up` are killed by the kernel, which takes a moment.
_LOCK_SECONDS = 10.0


class _Stop:
    """How often the user asked to stop: once drains, twice stops now."""

    def __init__(self) -> None:
        self.requests = 0

    def __call__(self, *_: object) -> None:
        self.requests += 1


def up(
    home: Home = None,
    host: Host = None,
    port: Port = None,
    slots: Annotated[
        int | None, typer.Option(min=0, max=64, help="Training jobs at once. Default: 1")
    ] = None,
) -> None:
    """Run everything on this machine. Ctrl-C drains, a second one stops now."""
    settings = local.settings(home=home, host=host, port=port, slots=slots)
    worker.require_installed()
    local.prepare_home(settings.home)
    with _lock(settings.home) as lock:
        # The child processes read the number that was found.
        settings = local.settings(port=serve.require_free(settings.host, settings.port))
        _prepare_database(settings)
        raise typer.Exit(_run(settings, _children(settings, lock)))


@contextmanager
def _lock(home: Path) -> Generator[int]:
    """Hold the home for this `up` and its children; yield the open file that holds it.

    Raises:
        StartupError: Another `up` has it.
    """
    file = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(file, home)
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield file
    finally:
        os.close(file)


def _take(file: int, home: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            owner = os.pread(file, 20, 0).decode("ascii", "replace")
            # Without its `up`, children hold the lock only while they are dying.
            if _is_alive(owner) or time.monotonic() > deadline:
                raise StartupError(
                    f"another `lorad up` (process {owner or '?'}) is running on {home}; "
                    "stop it, or choose another home with --home",
                    param="--home",
                ) from error
            time.sleep(_TICK_SECONDS)


def _is_alive(pid: str) -> bool:
    with contextlib.suppress(ProcessLookupError, ValueError, PermissionError):
        os.kill(int(pid), 0)
        return True
    return False


def _prepare_database(settings: "Settings") -> None:
    # Loaded by the command that runs: SQLAlchemy is too slow to load for `lorad --help`.
    from app.cli import database

    database.upgrade(settings)
    database.require_key_unless_loopback(settings)


def _children(settings: "Settings", lock: int) -> list[Child]:
    """List what runs, in the order of starting."""
    logs = settings.home / "logs"
    children = [
        Child(
            "worker",
            worker.command(settings),
            log=logs / "worker.log",
            held_file=lock,
        ),
        Child(
            "api",
            [sys.executable, "-m", "app.cli.main", "serve"],
            log=logs / "api.log",
            held_file=lock,
        ),
    ]
    if settings.redis_url is None:
        folder, socket_path = settings.home / "valkey", settings.valkey_socket
        valkey.prepare(folder, socket_path)
        command = valkey.command(valkey.find_binary(), folder=folder, socket_path=socket_path)
        log = logs / "valkey.log"
        children.insert(0, Child("valkey", command, log=log, held_file=lock))
    return children


def _run(settings: "Settings", children: list[Child]) -> ExitCode:
    stop = _Stop()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # Under nohup the end of the terminal is not meant to stop anything.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)
    try:
        _start(settings, children, stop)
        while not stop.requests:
            for child in children:
                child.watch()
            time.sleep(_TICK_SECONDS)
        _drain(settings, children, stop)
    finally:
        for child in reversed(children):
            child.kill()
    return ExitCode.OK


def _start(settings: "Settings", children: list[Child], stop: _Stop) -> None:
    """Start everything and wait until it answers."""
    for child in children:
        child.start()
        if child.name == "valkey":
            _wait(lambda: valkey.answers(settings.valkey_socket), [child], stop)
    url = _url(settings)
    _wait(lambda: _is_ready(url), children, stop)
    if stop.requests:
        return
    output.show_text(url)
    sys.stdout.flush()
    at = "" if settings.port == 8000 else f"LORAD_API_URL={url} "
    lorad = _command()
    output.say(f"lorad is up: {settings.slots} slot(s), home {settings.home}")
    _show_dashboard(settings, url)
    output.say(f"  the whole API    {url}/openapi.json")
    output.say(f"  add a model      {lorad} models add smollm2 --home {settings.home}")
    output.say(f"  submit a job     {at}{lorad} submit examples/quickstart.yaml --watch")
    output.say(f"  list jobs        {at}{lorad} ls")
    output.say("Ctrl-C drains: running jobs save and go on at the next start.")


def _show_dashboard(settings: "Settings", url: str) -> None:
    """Tell the address of the pages; where a key is needed, one that signs in once."""
    from app.cli import database
    from app.services import sessions

    link = database.sign_in_link(settings)
    output.say(
        f"  the dashboard    {url}{'/ui/jobs' if link is None else f'/ui/sign-in?once={link}'}"
    )
    if link is not None:
        minutes, days = sessions.LINK_SECONDS // 60, sessions.SECONDS // 86_400
        output.say(
            f"                   signs one browser in, within {minutes} min, for {days} days"
        )


def _command() -> str:
    """Return what to type for `lorad`: its path, where the shell would not find it."""
    own = Path(sys.argv[0])
    return str(own) if shutil.which("lorad") is None and own.name == "lorad" else "lorad"


def _wait(is_done: Callable[[], bool], children: list[Child], stop: _Stop) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not is_done() and not stop.requests:
        for child in children:
            child.watch()
            child.require_viable()
        if time.monotonic() > deadline:
            names = ", ".join(str(child.log) for child in children)
            raise StartupError(f"not ready after {_READY_SECONDS:.0f} s; see {names}")
        time.sleep(_TICK_SECONDS)


def _drain(settings: "Settings", children: list[Child], stop: _Stop) -> None:
    """Stop in the order that loses nothing: the worker saves, then the API, then Valkey."""
    output.say("draining: running jobs save and wait for the next start; Ctrl-C again stops now")
    grace = {"worker": settings.stop_grace_seconds + 2 * _STOP_SECONDS}
    order = sorted(children, key=lambda child: ["worker", "api", "valkey"].index(child.name))
    for child in order:
        child.ask_to_stop()
        deadline = time.monotonic() + grace.get(child.name, _STOP_SECONDS)
        while child.is_alive and stop.requests < 2 and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
        if child.is_alive:
            output.complain(f"{child.name} is stopped now")
    output.say("stopped")


def _is_ready(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/readyz", timeout=2) as answer:
            # Also 200, but "degraded", while the worker has not registered yet.
            return json.load(answer)["status"] == "ok"
    except urllib.error.HTTPError as error:
        # It listens and wants a key, which `up` does not have.
        return error.code in (401, 403)
    except OSError:
        return False


def _url(settings: "Settings") -> str:
    wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    host = wildcards.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
