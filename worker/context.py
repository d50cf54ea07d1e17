"""What all parts of a worker process share."""

from dataclasses import dataclass

from app.db.engine import Database
from app.domain.workers import Device
from app.settings import Settings
from app.stream import LiveStream
from worker.launcher import Launcher


@dataclass(frozen=True)
class WorkerContext:
    """One worker process."""

    worker_id: str
    db: Database
    settings: Settings
    stream: LiveStream
    launcher: Launcher
    devices: tuple[Device, ...]
