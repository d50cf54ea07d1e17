"""Named places where a test can make the product fail; off unless `LORAD_FAILPOINTS` is set.

The variable holds `name=action` pairs joined by `;`. An action is one of

- `kill`: SIGKILL this process,
- `stop`: SIGSTOP this process,
- `sleep:SECONDS`,
- `hold:SECONDS`: sleep, and let no other thread of this process run either,
- `raise:ERRNO_NAME`, for example `raise:ENOSPC`; `raise:MEMORY` is a MemoryError,
- `child:SECONDS`: start a child process that sleeps, as a library might,
- `report:PATH`: write the loaded modules and the environment of this process to a file,

and may end in `@N`: act on the N-th visit only (counted per process).
"""

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NoReturn

VARIABLE = "LORAD_FAILPOINTS"

_visits: Counter[str] = Counter()


def hit(name: str) -> None:
    """Do what the environment asks for at the point `name`; normally nothing."""
    configured = os.environ.get(VARIABLE)
    if not configured:
        return
    action = parse(configured).get(name)
    if action is None:
        return
    _visits[name] += 1
    verb, _, only_visit = action.partition("@")
    if only_visit and _visits[name] != int(only_visit):
        return
    _act(name, verb)


def parse(configured: str) -> dict[str, str]:
    """Split the value of `LORAD_FAILPOINTS` into action by name."""
    pairs = (item.partition("=") for item in configured.split(";") if item)
    return {name.strip(): action.strip() for name, _, action in pairs}


def _act(name: str, verb: str) -> None:
    kind, _, argument = verb.partition(":")
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(float(argument))
        case "hold":
            # Unlike CDLL, PyDLL keeps the interpreter's lock during the call.
            ctypes.PyDLL(None).usleep(int(float(argument) * 1_000_000))
        case "raise":
            _raise(name, argument)
        case "child":
            subprocess.Popen(["sleep", argument])
        case "report":
            _report(Path(argument))
        case _:
            raise ValueError(f"{VARIABLE}: {name}={verb}: unknown action")


def _report(path: Path) -> None:
    seen = {"modules": sorted(sys.modules), "environment": dict(os.environ), "pid": os.getpid()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(seen))
    temporary.rename(path)


def _raise(name: str, errno_name: str) -> NoReturn:
    if errno_name == "MEMORY":
        raise MemoryError(f"out of memory (failpoint {name})")
    number: int = getattr(errno, errno_name)
    raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
