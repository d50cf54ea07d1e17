# pyright: basic, reportMissingTypeStubs=false
"""Celery's configuration, and the messages we send: doorbell, call for a tool, wake of a host."""

import logging

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from app.domain import failpoints
from app.settings import Settings

DOORBELL_QUEUE = "doorbell"
TOOLS_QUEUE = "tools"
RING_TASK = "lorad.ring"
TOOL_TASK = "lorad.run_tool"
WAKE_HOST_TASK = "lorad.wake_host"
EXPORT_TASK = "lorad.export"

_log = logging.getLogger(__name__)


def create(settings: Settings) -> Celery:
    """Make the Celery app of the API (as a sender) and of the worker.

    The broker never holds a running job: messages are acknowledged before they are worked on,
    carry an id at most, and can be lost or doubled without harm.
    """
    celery = Celery("lorad", broker=celery_url(settings.broker_url))
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=False,
        task_create_missing_queues=True,
        task_default_queue=DOORBELL_QUEUE,
        task_publish_retry=False,
        task_send_sent_event=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=2,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            "health_check_interval": 10,
            "max_retries": 1,
            "interval_start": 0,
        },
    )
    return celery


def celery_url(url: str) -> str:
    """Turn a redis-py URL into Celery's spelling, which names unix sockets differently."""
    return url.replace("unix://", "redis+socket://", 1)


class Doorbell:
    """Tells workers that something may be waiting; what it is, they read from the database."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery

    def ring(self) -> bool:
        """Wake the workers; False when the broker is away (the reconciler rings again later)."""
        return self._send(RING_TASK, (), DOORBELL_QUEUE)

    def call_tool(self, task_id: str) -> bool:
        """Ask a worker to run the tool task whose request lies in the home under `task_id`."""
        return self._send(TOOL_TASK, (task_id,), TOOLS_QUEUE)

    def wake_host(self, digest: str) -> bool:
        """Tell workers that a request waits for the model host of this digest."""
        return self._send(WAKE_HOST_TASK, (digest,), TOOLS_QUEUE)

    def call_for_exports(self) -> bool:
        """Tell workers that an export may be waiting; which one, they read from the database."""
        return self._send(EXPORT_TASK, (), TOOLS_QUEUE)

    def _send(self, task: str, args: tuple[str, ...], queue: str) -> bool:
        try:
            failpoints.hit("queue.publish")
            self._celery.send_task(task, args=args, queue=queue, ignore_result=True, retry=False)
        except (OperationalError, redis.RedisError, OSError) as error:
            _log.warning("the broker did not take %s: %s", task, error)
            return False
        return True
