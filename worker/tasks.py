# pyright: basic, reportMissingTypeStubs=false
"""The Celery worker: tasks of one call each, and the slots, exports and hosts that they wake."""

import importlib.metadata
import logging
import platform
from concurrent.futures import ThreadPoolExecutor

from celery import bootsteps, signals

from app import logs, queue
from app.db.engine import Database
from app.inference_queue import InferenceQueue
from app.services import workers
from app.settings import Settings
from app.stream import LiveStream
from worker import devices, tools
from worker.context import WorkerContext
from worker.exports import Exports
from worker.hosts import Hosts
from worker.launcher import FreshLauncher, Launcher, WarmLauncher
from worker.slots import Slots

_log = logging.getLogger(__name__)

_MOST_TOOLS = 2

settings = Settings()
celery = queue.create(settings)


class _Running:
    """What the tasks use; set once by the boot step, before the first message arrives."""

    context: WorkerContext
    slots: Slots
    tools: ThreadPoolExecutor
    exports: Exports
    hosts: Hosts
    questions: InferenceQueue


@signals.setup_logging.connect
def _configure_logs(**_):
    logs.configure(settings.log_level)


@celery.task(name=queue.RING_TASK)
def ring():
    _Running.slots.ring()


@celery.task(name=queue.TOOL_TASK)
def run_tool(task_id):
    # Celery's threads are for the doorbell; a tool that takes long must not keep it from ringing.
    _Running.tools.submit(tools.run, _Running.context, str(task_id))


@celery.task(name=queue.EXPORT_TASK)
def ring_for_exports():
    _Running.exports.ring()


@celery.task(name=queue.WAKE_HOST_TASK)
def wake_host(_digest):
    # What waits is read from Redis; the message says only that something does.
    _Running.hosts.wake()


class OpenSlots(bootsteps.StartStopStep):
    """Opens the slots when the worker starts, and drains them when it stops."""

    requires = frozenset({"celery.worker.components:Pool"})

    def start(self, worker):
        _Running.context = _context()
        _Running.tools = ThreadPoolExecutor(_MOST_TOOLS, thread_name_prefix="tool")
        _Running.exports = Exports(_Running.context)
        _Running.exports.open()
        _Running.questions = InferenceQueue(
            settings.broker_url,
            _Running.context.worker_id,
            lease_seconds=settings.lease_seconds,
        )
        _Running.hosts = Hosts(_Running.context, _Running.questions)
        _Running.hosts.open()
        _Running.slots = Slots(_Running.context)
        _Running.slots.open()

    def stop(self, worker):
        context = _Running.context
        _Running.tools.shutdown(wait=False, cancel_futures=True)
        _Running.hosts.close()
        _Running.questions.close()
        _Running.exports.close(seconds=10)
        _Running.slots.close(seconds=settings.stop_grace_seconds + 10)
        workers.leave(context.db, context.worker_id)
        context.launcher.close()
        context.stream.close()
        context.db.close()

    def terminate(self, worker):
        self.stop(worker)


def _context() -> WorkerContext:
    db = Database(settings.sqlalchemy_url)
    found = devices.find(settings.device)
    if not found:
        raise SystemExit("LORAD_DEVICE=cuda, but this machine shows no NVIDIA GPU (nvidia-smi)")
    if found[0].kind == "cuda" and settings.slots > len(found):
        raise SystemExit(
            f"LORAD_SLOTS={settings.slots}, but a GPU takes one job: {len(found)} here"
        )
    worker_id = workers.register(db, settings, found, importlib.metadata.version("lorad"))
    _log.info("worker %s on %s offers %s", worker_id, platform.node(), found[0].name)
    return WorkerContext(
        worker_id=worker_id,
        db=db,
        settings=settings,
        stream=LiveStream(settings.broker_url),
        launcher=_launcher(),
        devices=found,
    )


def _launcher() -> Launcher:
    if settings.launcher == "fresh":
        return FreshLauncher()
    launcher = WarmLauncher()
    launcher.is_ready(within_seconds=0)  # starts the server ahead of the first job
    return launcher


celery.steps["worker"].add(OpenSlots)  # type: ignore[index]
