"""Finding the devices of this machine without loading torch."""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import psutil

from app.domain.workers import Capability, Device, DeviceKind

_QUERY_SECONDS = 20


def find(wanted: Literal["auto", "cpu", "cuda"]) -> tuple[Device, ...]:
    """Return the devices that a worker offers: the GPUs where there are some, else the CPU."""
    gpus = () if wanted == "cpu" else _nvidia()
    if gpus or wanted == "cuda":
        return gpus
    return (
        Device(kind="cpu", index=0, name=_cpu_name(), memory_bytes=psutil.virtual_memory().total),
    )


def capability(devices: tuple[Device, ...], models: tuple[str, ...]) -> Capability:
    kinds: dict[DeviceKind, None] = dict.fromkeys(device.kind for device in devices)
    return Capability(device_kinds=tuple(kinds), models=models)


def threads_per_slot(slots: int) -> int:
    """Return how many CPU threads a trainer uses when every slot is taken."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (available or 1) // max(1, slots))


def _nvidia() -> tuple[Device, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True
        ).stdout
    except (subprocess.SubprocessError, OSError):
        return ()
    fields = [line.split(", ") for line in output.splitlines() if line.count(", ") == 2]
    return tuple(
        Device(kind="cuda", index=int(index), name=name, memory_bytes=int(mebibytes) << 20)
        for index, name, mebibytes in fields
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
