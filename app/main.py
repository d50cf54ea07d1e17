"""The API process: puts its parts together, and ends them."""

import asyncio
import importlib.metadata
import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app import logs, queue
from app.api import (
    catalog,
    checkpoints,
    datasets,
    errors,
    exports,
    jobs,
    plans,
    previews,
    reports,
    stream,
)
from app.api.deps import Parts
from app.api.guard import Guard
from app.api.v1 import chat, completions, files, fine_tuning, models, refused, uploads
from app.asking import Asker
from app.db.engine import Database
from app.domain.errors import LoradError, StartupError
from app.queue import Doorbell
from app.services import keys
from app.services.jobs import Outside
from app.services.reconcile import Reconciler
from app.settings import Settings
from app.stream import LiveReader, LiveStream
from app.web import problems, site

_DESCRIPTION = """Fine-tune language models with LoRA: submit a job, follow its metrics live,
resume it from any checkpoint."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the API from its settings; `uvicorn --factory app.main:create_app` calls it.

    Raises:
        StartupError: It is to listen on an address other than loopback, and no API key exists.
    """
    settings = settings or Settings()
    logs.configure(settings.log_level)
    db = Database(settings.sqlalchemy_url)
    require_keys(db, settings)
    outside = Outside(
        settings=settings,
        doorbell=Doorbell(queue.create(settings)),
        stream=LiveStream(settings.broker_url),
    )
    reader = LiveReader(settings.broker_url)
    parts = Parts(settings, db, outside, reader, Asker.from_settings(settings))
    app = FastAPI(
        title="lorad",
        version=importlib.metadata.version("lorad"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        # The pages load scripts from elsewhere; the document itself is served at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect has no envelope, and clients drop the body on the way
    )
    app.state.parts = parts
    errors.install(app, problems.of)
    app.add_middleware(Guard, db=db, settings=settings, page_of=problems.of)
    for module in (plans, jobs, reports, stream, checkpoints, datasets, previews, catalog):
        app.include_router(module.router)
    app.include_router(exports.router)
    app.include_router(fine_tuning.filtered)
    for module in (files, uploads, fine_tuning, models, refused, chat, completions):
        app.include_router(module.router)
    for router in site.ROUTERS:
        app.include_router(router)
    return app


def serve(settings: Settings) -> None:
    """Run the API in this process until it is told to stop."""
    app = create_app(settings)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def require_keys(db: Database, settings: Settings) -> None:
    """Refuse to be reachable from other machines without API keys.

    Raises:
        StartupError: The address is not loopback, and there is no active key.
    """
    if settings.is_loopback:
        return
    try:
        has_keys = keys.any_active(db)
    except LoradError as error:
        raise StartupError(f"cannot look for API keys: {error.message}") from error
    finally:
        db.close()  # whether this process goes on or not, a look at start needs no open connection
    if not has_keys:
        raise StartupError(
            f"refusing to listen on {settings.host} without API keys; "
            "create one first: lorad keys create --name NAME",
            param="--host",
        )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    parts: Parts = app.state.parts
    app.state.closing = asyncio.Event()
    _close_streams_on_signal(app.state.closing)
    outside = parts.outside
    reconciler = Reconciler(parts.db, parts.settings, outside.doorbell, outside.stream)
    reconciler.start()
    try:
        yield
    finally:
        app.state.closing.set()
        reconciler.stop()
        await parts.asker.close()
        await parts.reader.close()
        outside.stream.close()
        parts.db.close()


def _close_streams_on_signal(closing: asyncio.Event) -> None:
    """End open streams as soon as the server is told to stop.

    uvicorn waits for open responses before it runs the end of the lifespan, and a stream is open
    for ever; so the signal itself has to reach the streams, before uvicorn's own handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # a test client; it has no signals
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)

        def both(received: int, frame: FrameType | None, before: object = previous) -> None:
            loop.call_soon_threadsafe(closing.set)
            if callable(before):
                before(received, frame)

        signal.signal(number, both)
