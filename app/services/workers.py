"""Workers from their own side: who they are, registering, heartbeats."""

import os
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from app.db import workers as worker_queries
from app.db.engine import Database
from app.domain import ids
from app.domain.workers import Device, WorkerIdentity
from app.services import catalog
from app.settings import Settings

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def register(db: Database, settings: Settings, devices: Sequence[Device], version: str) -> str:
    """Announce a new worker and return its id."""
    worker_id = ids.new("worker")
    models = catalog.model_names(settings)
    with db.write() as session:
        worker_queries.insert(
            session,
            worker_id,
            host=socket.gethostname(),
            identity=this_process(),
            slots=settings.slots,
            devices=devices,
            models=models,
            version=version,
        )
    return worker_id


def beat(db: Database, settings: Settings, worker_id: str) -> None:
    """Say that the worker is alive and which models it has."""
    models = catalog.model_names(settings)
    with db.write() as session:
        worker_queries.beat(session, worker_id, models=models)


def leave(db: Database, worker_id: str) -> None:
    with db.write() as session:
        worker_queries.end(session, worker_id)


def this_process() -> WorkerIdentity:
    pid = os.getpid()
    return WorkerIdentity(machine=this_machine(), pid=pid, started=_start_time(pid))


def this_machine() -> str:
    """Name machine, boot and process-id namespace: where all agree, process ids compare."""
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else str(psutil.boot_time())
    namespace = str(_PID_NAMESPACE.readlink()) if _PID_NAMESPACE.exists() else platform.system()
    return f"{socket.gethostname()}/{boot}/{namespace}"


def is_dead(identity: WorkerIdentity) -> bool:
    """Tell whether a worker of this machine has ended; False for workers of other machines."""
    if identity.machine != this_machine():
        return False
    try:
        if psutil.Process(identity.pid).status() == psutil.STATUS_ZOMBIE:
            return True
        # The process id may have been given to another process since.
        return _start_time(identity.pid) != identity.started
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True


def _start_time(pid: int) -> float:
    """Return when a process started, on a clock that never steps where there is one."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        # Field 22, in ticks since boot; the name in field 2 may hold blanks and parentheses.
        return float(stat.read_text().rpartition(")")[2].split()[19])
    return psutil.Process(pid).create_time()
