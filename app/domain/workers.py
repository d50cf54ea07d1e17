"""Workers: the machines and processes that run jobs, and what each can run."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.domain.spec import JobSpec

DeviceKind = Literal["cpu", "cuda"]


class Device(BaseModel):
    """One device that a worker offers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: DeviceKind
    """`cpu` or `cuda`."""
    index: int
    """Number of the device on its machine."""
    name: str
    """Model name of the device."""
    memory_bytes: int
    """Total memory in bytes."""


class WorkerIdentity(BaseModel):
    """Which process on which machine a worker is, so that its death can be seen from there."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    machine: str
    """Host name, boot id and process-id namespace: process ids compare only where this is equal."""
    pid: int
    """Process id on that machine."""
    started: float
    """Start of the process on a clock of that machine, because process ids are used again."""


class Worker(BaseModel):
    """A worker that registered itself."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["worker"] = "worker"
    """Always `worker`."""
    id: str
    """Id of the worker; new at every start."""
    host: str
    """Name of its machine."""
    alive: bool
    """True while its heartbeat is recent."""
    slots: int
    """Jobs it runs at once."""
    busy_slots: int
    """Jobs it runs now."""
    devices: list[Device]
    """Devices it offers."""
    models: list[str]
    """Base models in its models folder."""
    version: str
    """Version of lorad it runs."""
    started_at: datetime
    """Time of its start, UTC."""
    heartbeat_at: datetime
    """Time of its last heartbeat, UTC."""


class Capability(BaseModel):
    """What decides whether a worker can run a job."""

    model_config = ConfigDict(frozen=True)

    device_kinds: tuple[DeviceKind, ...]
    models: tuple[str, ...]


def missing(capability: Capability, spec: JobSpec) -> str | None:
    """Say what a worker lacks to run `spec`; None when it can run it."""
    if spec.base_model not in capability.models:
        return f"base model {spec.base_model}"
    wanted = spec.resources.device
    if wanted != "auto" and wanted not in capability.device_kinds:
        return f"a {wanted} device"
    return None
