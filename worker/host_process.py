"""Entry of the model host: a process that keeps a base model loaded and answers requests."""

import argparse
import faulthandler
import os
import queue
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from app.domain.inference import Event
from worker.host_messages import (
    HOST_FILE,
    TO_HOST,
    Ask,
    Cancel,
    HostFile,
    Ready,
    Reports,
    Unusable,
    line,
)
from worker.trainer import preload

if TYPE_CHECKING:
    from worker.training.inference.engine import Engine

# Source: Linux, man 7 sched, "The autogroup feature".
_SESSION = Path("/proc/self/autogroup")
Inbox = queue.SimpleQueue[Ask | Cancel]


def main(host_folder: Path, control_fd: int) -> int:
    """Answer until the worker ends the connection or this process.

    Args:
        host_folder: Holds host.json.
        control_fd: A socket to the worker: requests and cancels come in, events go out; its end of
            file means that nobody needs this host any more.

    Returns:
        Exit code: 1 the model could not be loaded (which was told), 2 anything else.
    """
    faulthandler.enable()
    started = time.monotonic()
    try:
        told = HostFile.model_validate_json((host_folder / HOST_FILE).read_bytes())
        _be_nice(told.niceness)
        inbox = Inbox()
        threading.Thread(
            target=_read, args=(control_fd, inbox), name="control", daemon=True
        ).start()
        preload()
        outbox = _Outbox(control_fd)
        engine = _load(told, outbox)
        if engine is None:
            return 1
        outbox.send(Ready(seconds=time.monotonic() - started))
        _serve(engine, inbox, outbox)
    except Exception:  # noqa: BLE001 - the edge of the process
        traceback.print_exc()
    return 2


def _be_nice(niceness: int) -> None:
    """Leave the CPU to others, by `niceness`.

    Linux may share the CPU between sessions first, and only then between the processes in each:
    then the niceness of the session, which is this process alone, is what counts.
    """
    os.nice(niceness)
    with suppress(OSError):
        _SESSION.write_text(str(niceness))


class _Outbox:
    """Collects what is to be told, and sends it in one piece."""

    def __init__(self, control_fd: int) -> None:
        self._control_fd = control_fd
        self._events: dict[str, list[Event]] = {}

    def put(self, request_id: str, events: list[Event]) -> None:
        self._events.setdefault(request_id, []).extend(events)

    def flush(self) -> None:
        if self._events:
            events = {request_id: tuple(each) for request_id, each in self._events.items()}
            self._events = {}
            self.send(Reports(events=events))

    def send(self, message: BaseModel) -> None:
        left = memoryview(line(message))
        while left:
            left = left[os.write(self._control_fd, left) :]


def _load(told: HostFile, outbox: _Outbox) -> "Engine | None":
    import torch

    from worker.training.inference.engine import Engine
    from worker.training.inference.failures import failure_of

    torch.set_num_threads(told.num_threads)
    try:
        return Engine(
            told.key,
            device=torch.device(told.device),
            most_adapters=told.most_adapters,
            emit=outbox.put,
        )
    except Exception as error:
        # The edge of the process: what is known is told to those who wait, the rest is a crash.
        traceback.print_exc()
        failed = failure_of(error)
        if failed.code == "internal":
            raise
        outbox.send(Unusable(failed=failed))
        return None


def _serve(engine: "Engine", inbox: Inbox, outbox: _Outbox) -> None:
    """Take what came in between two tokens; wait for more only when nothing is to be done."""
    while True:
        if engine.is_idle:
            _take(engine, inbox.get())
        try:
            while True:
                _take(engine, inbox.get_nowait())
        except queue.Empty:
            pass
        engine.step()
        outbox.flush()


def _take(engine: "Engine", message: Ask | Cancel) -> None:
    match message:
        case Ask():
            engine.submit(message.request)
        case Cancel():
            engine.cancel(message.request_id)


def _read(control_fd: int, inbox: Inbox) -> None:
    with os.fdopen(control_fd, "rb", closefd=False) as lines:
        for text in lines:
            inbox.put(TO_HOST.validate_json(text))
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker.host_process", description=__doc__)
    parser.add_argument("host_folder", type=Path)
    parser.add_argument("--control-fd", type=int, required=True)
    given = parser.parse_args()
    sys.exit(main(given.host_folder, given.control_fd))
