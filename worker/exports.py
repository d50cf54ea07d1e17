"""Exports on a worker: one at a time, in a process of its own, beside training."""

import logging
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from app.db.exports import Claimed
from app.domain.errors import Fenced, LoradError, Unavailable
from app.domain.exports import PROGRESS_FILE, work_folder
from app.domain.tools import (
    REQUEST_FILE,
    RESULT_FILE,
    TOOL_RESULT,
    ExportProgress,
    ExportResult,
    ToolFailure,
)
from app.services import exporting
from worker import devices
from worker.context import WorkerContext
from worker.launcher import Launched
from worker.tools import LOG_FILE

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_READY_SECONDS = 1.0


class Stopped(Exception):
    """The worker drains; the export goes back to the queue."""


class Exports:
    """Takes queued exports, one after the other, from the first ring until `close`."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._rung = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="exports", daemon=True)

    def open(self) -> None:
        """Begin; what is queued already is taken at once."""
        self._rung.set()
        self._thread.start()

    def ring(self) -> None:
        """Look for a queued export when the current one has ended."""
        self._rung.set()

    def close(self, *, seconds: float) -> None:
        """Put the current export back in the queue, and take no other."""
        self._closing.set()
        self._rung.set()
        self._thread.join(timeout=seconds)

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._rung.wait()
            self._rung.clear()
            try:
                while not self._closing.is_set() and self._one():
                    pass
            except Unavailable as error:
                _log.warning("exports wait: %s", error)
            except Exception:  # noqa: BLE001 (an edge: the next ring must find somebody)
                _log.exception("an export failed in a way that nobody expected; others go on")

    def _one(self) -> bool:
        """Do one export; false when there is none that this worker can do."""
        context = self._context
        key = self._claim()
        if key is None:
            return False
        _log.info("export %s of %s begins", key.id, key.job_id)
        folder = work_folder(context.settings.home, key.job_id, key.id, key.fence)
        try:
            self._work(key, folder)
        except Fenced as error:
            _log.info("%s", error.message)
        except Stopped:
            exporting.give_back(context.db, key, crashed=None)
        except Unavailable as error:
            exporting.give_back(context.db, key, crashed=error.message)
        except LoradError as error:
            with suppress(Fenced):
                exporting.fail(context.db, key, error.code, error.message)
        except (OSError, ValueError) as error:
            _log.exception("export %s", key.id)
            exporting.give_back(context.db, key, crashed=str(error))
        finally:
            _remove(folder)
        return True

    def _claim(self) -> Claimed | None:
        context = self._context
        # Before the claim: loading the training stack takes longer than a lease may.
        while not context.launcher.is_ready(within_seconds=_READY_SECONDS):
            if self._closing.is_set():
                return None
        return exporting.claim(context.db, context.settings, context.worker_id)

    def _work(self, key: Claimed, folder: Path) -> None:
        context = self._context
        request = exporting.request_of(context.db, context.settings, key)
        request = request.model_copy(update={"num_threads": devices.threads_per_slot(1)})
        # What a worker left that died at an earlier try of this export.
        for left in folder.parent.glob(f".tmp-{key.id}-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / REQUEST_FILE).write_text(request.model_dump_json())
        tool = context.launcher.launch("tool", folder, folder / LOG_FILE)
        try:
            is_cancelled = self._attend(key, folder, tool)
        finally:
            tool.kill()
            tool.close()
        if is_cancelled:
            exporting.cancelled(context.db, key)
            return
        self._settle(key, folder, tool)

    def _attend(self, key: Claimed, folder: Path, tool: Launched) -> bool:
        """Keep the lease until the process ends; true when the export is to be cancelled.

        Raises:
            Fenced: The export is not ours any more.
            Stopped: The worker drains.
            TimeoutError: There was no progress for as long as a trainer may stand still.
        """
        settings = self._context.settings
        moved_at = time.monotonic()
        progress = ExportProgress(phase="starting", progress=0.0)
        waited = settings.heartbeat_seconds
        while not tool.ended.wait(_POLL_SECONDS):
            if self._closing.is_set():
                raise Stopped
            waited += _POLL_SECONDS
            now = _progress(folder, progress)
            if now != progress:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > settings.hang_seconds:
                raise TimeoutError(f"no progress for {settings.hang_seconds:.0f} s")
            if now == progress and waited < settings.heartbeat_seconds:
                continue
            progress, waited = now, 0.0
            # An outage is waited out: the lease ends meanwhile, and the fence decides.
            with suppress(Unavailable):
                if exporting.renew(self._context.db, settings, key, progress):
                    return True
        return False

    def _settle(self, key: Claimed, folder: Path, tool: Launched) -> None:
        context = self._context
        path = folder / RESULT_FILE
        result = TOOL_RESULT.validate_json(path.read_bytes()) if path.is_file() else None
        match result:
            case ExportResult():
                exporting.finish(context.db, context.settings, key, result)
                _log.info("export %s took %.1f s", key.id, result.seconds)
            case ToolFailure(code="internal") | None:
                why = f"its process ended with {tool.exit_status}"
                if isinstance(result, ToolFailure):
                    why = result.message
                _log.error("export %s: %s: %s", key.id, why, _tail(folder / LOG_FILE))
                exporting.give_back(context.db, key, crashed=why)
            case ToolFailure():
                exporting.fail(context.db, key, result.code, result.message)
            case _:
                raise ValueError(f"{path.name} holds no result of an export")


def _remove(folder: Path) -> None:
    """Remove what a try left, and the folders above it if the job was deleted meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()
        folder.parent.parent.rmdir()


def _progress(folder: Path, before: ExportProgress) -> ExportProgress:
    try:
        return ExportProgress.model_validate_json((folder / PROGRESS_FILE).read_bytes())
    except (OSError, ValueError):
        return before


def _tail(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace")[-2000:]
    except OSError:
        return "no output"
