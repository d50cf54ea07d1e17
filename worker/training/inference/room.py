"""Memory for a model host: what there is, what a base model needs, and refusing what has none."""

import json
import struct
from pathlib import Path

import psutil
import torch

from app.domain.errors import OutOfMemory
from app.domain.inference import HostKey
from worker.training import model as models

_CGROUP = Path("/sys/fs/cgroup")
# Of a parameter that is stored in 4 bits, with its constants.
_BYTES_IN_4_BITS = 0.6
# What computing takes beside the weights.
_MARGIN = 1.1


def free_bytes(device: torch.device) -> int:
    """Return the bytes that may be allocated now, on the device or in this container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, _left_in_container())


def require(key: HostKey, device: torch.device, *, free_bytes: int) -> None:
    """Check that a base model fits before it is loaded.

    Raises:
        OutOfMemory: It does not; the message has both numbers.
    """
    needed = needed_bytes(key, device)
    if needed > free_bytes:
        raise no_memory(needed, free_bytes, f"model {key.model_folder.name}")


def needed_bytes(key: HostKey, device: torch.device) -> int:
    """Return about how many bytes a base model takes once it is loaded."""
    width = models.resolve_dtype(key.dtype, device=device.type).itemsize
    total = 0.0
    for file in sorted(key.model_folder.glob("*.safetensors")):
        for name, shape in _shapes(file):
            numel = torch.Size(shape).numel()
            is_packed = len(shape) == 2 and not any(each in name for each in ("embed", "lm_head"))
            packs = key.quantization.load_in_4bit and is_packed
            total += numel * (_BYTES_IN_4_BITS if packs else width)
    return int(total * _MARGIN)


def no_memory(needed: int, free: int, what: str) -> OutOfMemory:
    return OutOfMemory(
        f"{what} needs about {needed} bytes, and the worker has {free} bytes free; try again when"
        " training has ended, or ask a smaller model",
        code="no_memory",
    )


def is_lack_of_memory(error: Exception) -> bool:
    # On the CPU torch has no type of its own for it.
    is_allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return is_allocator or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _shapes(file: Path) -> list[tuple[str, list[int]]]:
    """Read names and shapes from the header of a safetensors file, whatever its types.

    Source:
        https://github.com/huggingface/safetensors, section Format.
    """
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return [(name, each["shape"]) for name, each in header.items() if name != "__metadata__"]


def _left_in_container() -> int:
    """Return what a cgroup leaves; caches of files that it can drop are not counted as used."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        limit, used, lines = "max", 0, []
    if limit == "max":
        return psutil.virtual_memory().total
    facts = dict(line.split() for line in lines)
    return max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
