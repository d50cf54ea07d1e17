"""What `lorad doctor` looks at, one check each; every one ends within its own deadline."""

import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import redis
from sqlalchemy import text
from sqlalchemy.exc import ArgumentError

from app.cli import valkey
from app.db import migrate
from app.db.engine import Database
from app.domain.errors import LoradError, StartupError
from app.services import catalog
from app.settings import Settings

Status = Literal["ok", "warn", "fail"]
_TORCH_SECONDS = 60.0
_ANSWER_SECONDS = 5.0
_LEAST_PYTHON = (3, 11)
_FULL_BYTES, _SCARCE_BYTES = 1_000_000_000, 10_000_000_000
# Leases are held on the database's clock, so only what people read is wrong when clocks differ.
_CLOCK_SECONDS = 2.0
# torch takes seconds to load and is not for this process; a child says what it finds.
_LOOK_AT_TORCH = """
import importlib, json
found = {}
for name in ("torch", "transformers", "peft", "bitsandbytes"):
    try:
        module = importlib.import_module(name)
        found[name] = str(getattr(module, "__version__", "?"))
    except Exception as error:
        found[name + "_error"] = f"{type(error).__name__}: {error}"[:300]
if "torch" in found:
    import torch
    found["cuda"] = torch.version.cuda
    found["devices"] = [
        [torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]
        for i in range(torch.cuda.device_count())
    ]
print("found" + json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        name: What was looked at.
        status: `warn` works and is hardly meant, or not needed everywhere; `fail` keeps jobs from
            running.
        detail: What there is, with the values.
        remedy: What to do; empty where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Context:
    settings: Settings


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[Context], list[Finding]]


def _python(_: Context) -> list[Finding]:
    version = platform.python_version()
    if sys.version_info < _LEAST_PYTHON:
        return [Finding("python", "fail", version, "lorad needs Python 3.11 or newer")]
    return [Finding("python", "ok", f"{version} ({platform.machine()}, {platform.system()})")]


def _training(_: Context) -> list[Finding]:
    """Look at the training stack in a process of its own."""
    try:
        done = subprocess.run(
            # -P: a file of the user's called torch.py in this folder is not torch.
            [sys.executable, "-P", "-c", _LOOK_AT_TORCH],
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"loading it takes longer than {_TORCH_SECONDS:.0f} s"
        return [Finding("torch", "fail", said, "look at the machine's load and disk, then again")]
    said = [line for line in done.stdout.splitlines() if line.startswith("found")]
    if not said:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return [Finding("torch", "fail", last, "install it again: pip install 'lorad[worker]'")]
    found = json.loads(said[-1].removeprefix("found"))
    return [_torch(found), _cuda(found), _bitsandbytes(found)]


def _torch(found: dict[str, Any]) -> Finding:
    missing = [name for name in ("torch", "transformers", "peft") if name not in found]
    if missing:
        said = f"{missing[0]}: {found[missing[0] + '_error']}"
        remedy = "needed where jobs run: pip install 'lorad[worker]'"
        return Finding("torch", "warn" if len(missing) == 3 else "fail", said, remedy)
    others = ", ".join(f"{name} {found[name]}" for name in ("transformers", "peft"))
    return Finding("torch", "ok", f"{found['torch']}, {others}")


def _cuda(found: dict[str, Any]) -> Finding:
    devices: list[tuple[str, int]] = found.get("devices") or []
    if devices:
        named = ", ".join(f"{name} ({memory / 1e9:.0f} GB)" for name, memory in devices)
        return Finding("cuda", "ok", f"CUDA {found['cuda']}: {named}")
    if not _has_nvidia():
        return Finding("cuda", "warn", "no GPU: jobs train on the CPU", "enough for small models")
    if found.get("cuda") is None:
        said, remedy = "a GPU, but torch without CUDA", "install the CUDA build of torch"
    else:
        said = f"a GPU that torch (CUDA {found['cuda']}) does not see"
        remedy = "look at the driver with nvidia-smi, and at CUDA_VISIBLE_DEVICES"
    return Finding("cuda", "fail", said, remedy)


def _has_nvidia() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _bitsandbytes(found: dict[str, Any]) -> Finding:
    if "bitsandbytes" in found:
        return Finding("bitsandbytes", "ok", found["bitsandbytes"])
    remedy = "needed for qlora and 8-bit optimizers: pip install 'lorad[worker]'"
    return Finding("bitsandbytes", "warn", found["bitsandbytes_error"], remedy)


def _home(context: Context) -> list[Finding]:
    home = context.settings.home
    if not home.exists():
        return [Finding("home", "warn", f"{home} is not there yet", "`lorad up` makes it")]
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        remedy = "make it yours (chown, chmod u+rwx), or choose another: LORAD_HOME"
        return [Finding("home", "fail", f"{home} cannot be written to", remedy)]
    secret = home / "secret.key"
    if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & 0o077:
        remedy = f"chmod 600 {secret}"
        return [Finding("home", "fail", f"others can read {secret}", remedy)]
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o002:
        return [Finding("home", "fail", f"everybody can write to {home}", f"chmod o-w {home}")]
    return [Finding("home", "ok", f"{home} ({mode:o})")]


def _disk(context: Context) -> list[Finding]:
    there = next(
        each for each in (context.settings.home, *context.settings.home.parents) if each.exists()
    )
    free = shutil.disk_usage(there).free
    said = f"{free / 1e9:.1f} GB free at {there}"
    remedy = "make room, or move the home: LORAD_HOME; `lorad plan` says what a job writes"
    if free < _FULL_BYTES:
        return [Finding("disk", "fail", said, remedy)]
    if free < _SCARCE_BYTES:
        return [Finding("disk", "warn", said, remedy)]
    return [Finding("disk", "ok", said)]


def _models(context: Context) -> list[Finding]:
    models = catalog.list_models(context.settings)
    usable = [model.id for model in models if model.usable]
    broken = [f"{model.id}: {model.problem}" for model in models if not model.usable]
    if broken:
        return [Finding("models", "warn", "; ".join(broken), "add it again: `lorad models add`")]
    if not usable:
        said = f"none in {context.settings.models_folder}"
        return [Finding("models", "warn", said, "add one: lorad models add smollm2")]
    return [Finding("models", "ok", ", ".join(usable))]


def _database(context: Context) -> list[Finding]:
    """Look at the database, its clock, and the workers that it knows."""
    settings = context.settings
    if settings.database_url is None and not (settings.home / "lorad.db").exists():
        said = f"{settings.home / 'lorad.db'} is not there yet"
        return [Finding("database", "warn", said, "`lorad up` makes it; or: lorad migrate")]
    try:
        with closing(Database(settings.sqlalchemy_url)) as db:
            return _of_database(context, db)
    except (ArgumentError, ModuleNotFoundError):
        said = "LORAD_DATABASE_URL is no URL of a database"
        return [Finding("database", "fail", said, "such as postgresql+psycopg://USER@HOST/NAME")]
    except LoradError as error:
        remedy = "start it, or look at LORAD_DATABASE_URL"
        return [Finding("database", "fail", error.message.splitlines()[0], remedy)]


def _of_database(context: Context, db: Database) -> list[Finding]:
    kind = db.url.get_backend_name()
    if not migrate.is_current(db):
        said = f"{kind}, with tables of another version"
        return [Finding("database", "fail", said, "lorad migrate")]
    findings = [Finding("database", "ok", kind)]
    if kind == "postgresql":
        with db.read() as session:
            asked = time.time()
            theirs: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
        findings.append(_clock("clock (db)", theirs.timestamp() - (asked + time.time()) / 2))
    workers = catalog.list_workers(db, context.settings)
    if not workers:
        remedy = "start everything with `lorad up`, or a worker with `lorad worker`"
        return [*findings, Finding("worker", "warn", "none is alive: jobs wait", remedy)]
    named = ", ".join(f"{each.host} ({each.busy_slots}/{each.slots} busy)" for each in workers)
    return [*findings, Finding("worker", "ok", named)]


def _broker(context: Context) -> list[Finding]:
    """Look at Redis and its clock."""
    settings = context.settings
    if settings.redis_url is None and not settings.valkey_socket.exists():
        try:
            binary = valkey.find_binary()
        except StartupError as error:
            return [Finding("redis", "fail", "no server", error.message)]
        said = f"not running; {binary.name} is here"
        return [Finding("redis", "warn", said, "`lorad up` starts it")]
    try:
        client: Any = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            settings.broker_url,
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
        )
        with closing(client):
            version = client.info("server").get("redis_version", "?")
            asked = time.time()
            seconds, micros = client.time()
            ahead = seconds + micros / 1e6 - (asked + time.time()) / 2
    except (redis.RedisError, OSError, ValueError) as error:
        bundled = settings.redis_url is None
        remedy = "`lorad up` starts it" if bundled else "start it, or look at LORAD_REDIS_URL"
        # What a killed server left behind is no fault; a server that was named is.
        return [Finding("redis", "warn" if bundled else "fail", f"away: {error}", remedy)]
    return [Finding("redis", "ok", f"protocol of Redis {version}"), _clock("clock (redis)", ahead)]


def _clock(name: str, ahead: float) -> Finding:
    said = f"{abs(ahead):.2f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
    if abs(ahead) > _CLOCK_SECONDS:
        return Finding(name, "fail", said, "set the clocks by NTP: timedatectl set-ntp true")
    return Finding(name, "ok", said)


def _wall_clock(_: Context) -> list[Finding]:
    now = datetime.now(UTC)
    built = datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC)
    said = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < built:
        remedy = "set the clock by NTP: timedatectl set-ntp true"
        return [Finding("clock", "fail", f"{said}, before lorad was installed", remedy)]
    return [Finding("clock", "ok", said)]


def _port(context: Context) -> list[Finding]:
    """Look who has the API's port: nobody, lorad, or somebody else."""
    host, port = context.settings.host, context.settings.port
    place = f"{host}:{port}"
    if port == 0:
        return [Finding("port", "ok", "any that is free")]
    try:
        with socket.create_connection((_reachable(host), port), timeout=_ANSWER_SECONDS):
            pass
    except OSError:
        return [Finding("port", "ok", f"{place} is free")]
    status = _ready(f"http://{_in_url(_reachable(host))}:{port}")
    if status is None:
        said = f"{place} is taken by something that is not lorad"
        return [Finding("port", "fail", said, "choose another: --port, or LORAD_PORT")]
    if status in ("ok", "key"):
        said = "lorad answers" if status == "ok" else "lorad answers, and wants a key"
        return [Finding("port", "ok", f"{place}: {said}")]
    remedy = "see the other lines; logs are in the home's folder logs"
    return [Finding("port", "warn", f"{place}: lorad answers, {status}", remedy)]


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _ready(url: str) -> str | None:
    """Return what a lorad API says of itself; None of anything else."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/readyz", timeout=_ANSWER_SECONDS) as answer:
            return str(json.load(answer)["status"])
    except urllib.error.HTTPError as error:
        is_ours = error.headers.get("x-request-id") is not None
        return ("key" if error.code in (401, 403) else f"status {error.code}") if is_ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


ALL = (
    Check("python", _python),
    Check("torch", _training),
    Check("home", _home),
    Check("disk", _disk),
    Check("models", _models),
    Check("database", _database),
    Check("redis", _broker),
    Check("port", _port),
    Check("clock", _wall_clock),
)
