"""Entry of the training process: one attempt of one job, told what to do by a file and a pipe."""

import argparse
import faulthandler
import fcntl
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.domain import disk
from app.domain.errors import LoradError, OutOfMemory, Unavailable
from app.domain.runs import (
    EVENTS_FILE,
    EXIT_BUSY,
    EXIT_DISK_FULL,
    PULSE_FILE,
    RUN_FILE,
    RunFile,
    StopCommand,
    StopReason,
)
from worker import examiner
from worker.examiner import Examiner

if TYPE_CHECKING:
    from worker.training.reporting import EventLog

_LOCK_WAIT_SECONDS = 30.0
_LOCK_POLL_SECONDS = 0.05
_PRELOADED = (
    "worker.training.run",
    "worker.training.inference.engine",
    "worker.training.preview",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "transformers.utils.chat_template_utils",
    "transformers.integrations.sdpa_attention",
    "peft.tuners.lora",
    "safetensors.torch",
    "jinja2.sandbox",
)


class StillHeld(Exception):
    """Another trainer has the lock; this one may try again later."""


def main(run_folder: Path, control_fd: int) -> int:
    """Run the attempt that `run_folder`/run.json describes.

    Args:
        run_folder: Holds run.json.
        control_fd: Read end of the supervisor's pipe; stop commands come in, and its end of file
            means that the supervisor died.

    Returns:
        Exit code: 0 finished or stopped, 1 failed in a way that trying again repeats (there is a
        `failed` event), 2 anything else, 74 the disk is full, 75 another trainer holds the device.
    """
    started = time.monotonic()
    # The watchdog ends a trainer that hangs with SIGABRT: then the log shows where it was.
    faulthandler.enable()
    preload()
    from worker.training import pulse
    from worker.training.reporting import EventLog

    try:
        # Before the first thread and the first tensor: both make a fork unsafe.
        with examiner.forked() as outside:
            control = Control(control_fd)
            control.watch()
            run = RunFile.model_validate_json((run_folder / RUN_FILE).read_bytes())
            pulse.start(run.attempt_folder / PULSE_FILE)
            with EventLog(run.attempt_folder / EVENTS_FILE) as log:
                return _attempt(run, log, control, started, outside)
    except Exception as error:  # noqa: BLE001 - the edge of the process: the supervisor retries
        traceback.print_exc()
        return EXIT_DISK_FULL if disk.is_full(error) else 2


def preload() -> None:
    """Import everything a trainer needs; afterwards a forked child starts in milliseconds.

    Runs no tensor operation and touches no GPU. bitsandbytes stays out: importing it asks the GPU
    for its capability, which no process may do before it forks, and takes seconds.
    """
    if _is_preloaded():
        return
    # peft imports bitsandbytes wherever it can be found. A None entry makes it look absent.
    sys.modules["bitsandbytes"] = None  # pyright: ignore[reportArgumentType]
    try:
        for name in _PRELOADED:
            importlib.import_module(name)
        _resolve_lazy_names()
        # peft remembers the answer; a quantized run has to clear these caches before it starts.
        peft_imports = importlib.import_module("peft.import_utils")
        peft_imports.is_bnb_available()
        peft_imports.is_bnb_4bit_available()
    finally:
        del sys.modules["bitsandbytes"]


class Control:
    """The supervisor's pipe: keeps the newest stop command, ends the process with its owner."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._stop: StopReason | None = None

    def watch(self) -> None:
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def stop_requested(self) -> StopReason | None:
        return self._stop

    def _read(self) -> None:
        with os.fdopen(self._descriptor, "rb", closefd=False) as pipe:
            for line in pipe:
                command = StopCommand.model_validate_json(line)
                # A cancel is final: a pause that was sent before or after it changes nothing.
                if self._stop != "cancel":
                    self._stop = command.stop
        os._exit(2)


def _attempt(
    run: RunFile, log: "EventLog", control: Control, started: float, outside: Examiner
) -> int:
    from worker.training.run import train

    try:
        with _exclusive(run.lock_file):
            train(
                run,
                log,
                started=started,
                stop_requested=control.stop_requested,
                examiner=outside,
            )
    except StillHeld as error:
        print(error, file=sys.stderr)  # noqa: T201 (standard error is the trainer's log)
        return EXIT_BUSY
    except Exception as error:
        # The edge of the process: known failures become an event, others go on.
        if disk.is_full(error):
            traceback.print_exc()
            log.disk_full(needed_bytes=disk.needed_after(error, run.attempt_folder))
            return EXIT_DISK_FULL
        is_limited = run.spec.resources.max_memory_gb is not None
        failure = _deterministic(error, is_limited=is_limited)
        if failure is None:
            raise
        traceback.print_exc()
        log.failed(code=failure.code, message=failure.message)
        return 1
    return 0


@contextmanager
def _exclusive(lock_file: Path) -> Generator[None]:
    """Hold the lock that keeps two trainers off one device, or off one job.

    Raises:
        StillHeld: Another process kept it for 30 s.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    with lock_file.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise StillHeld(
                        f"{lock_file.name} was held by another trainer for"
                        f" {_LOCK_WAIT_SECONDS:.0f} s; is one still running?"
                    ) from error
                time.sleep(_LOCK_POLL_SECONDS)
        yield


def _deterministic(error: Exception, *, is_limited: bool) -> LoradError | None:
    """Return the failure that trying again would repeat, or None for everything else."""
    from worker.training.healing import is_out_of_memory

    if isinstance(error, LoradError):
        return None if isinstance(error, Unavailable) else error
    if is_out_of_memory(error, is_limited=is_limited):
        return OutOfMemory(
            f"{error}; lower training.per_device_train_batch_size (and raise"
            " gradient_accumulation_steps), lower dataset.max_length, or set"
            " training.gradient_checkpointing to true"
        )
    return None


def _is_preloaded() -> bool:
    return all(name in sys.modules for name in _PRELOADED)


def _resolve_lazy_names() -> None:
    """Resolve the names that transformers imports on first use."""
    import transformers

    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedModel"):
        getattr(transformers, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worker.trainer", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--control-fd", type=int, required=True)
    given = parser.parse_args()
    sys.exit(main(given.run_folder, given.control_fd))
