"""The door: host, key and body size of every request are checked here, by default."""

import logging
import re
from ipaddress import ip_address
from typing import Any

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import errors
from app.db.engine import Database
from app.db.keys import DEFAULT_PROJECT
from app.domain import ids
from app.domain.errors import (
    CrossOrigin,
    InvalidInput,
    LoradError,
    TooLarge,
    Unauthenticated,
    UntrustedHost,
)
from app.services import keys, sessions
from app.settings import LOOPBACK_HOSTS, Settings

_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/ui/sign-in"})
SESSION_COOKIE = "lorad_session"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Uploads are counted while they are stored, against a limit of their own.
UPLOAD_PATHS = frozenset({"/datasets", "/v1/files", "/ui/new", "/ui/new/plan"})
_PART_PATH = re.compile(r"/v1/uploads/[^/]+/parts")
_MULTIPART_OVERHEAD_BYTES = 65_536


class Guard:
    """ASGI middleware: default deny on every route, documents and streams included."""

    def __init__(
        self, app: ASGIApp, *, db: Database, settings: Settings, page_of: errors.PageOf
    ) -> None:
        self._app = app
        self._page_of = page_of
        self._db = db
        self._settings = settings
        names = settings.allowed_hosts.split(",")
        given = (name.strip().lower() for name in (settings.host, *names))
        self._hosts = {*LOOPBACK_HOSTS, *given} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = ids.new("req")
        answer = _Stamped(send, request_id)
        try:
            self._check_host(scope)
            _check_origin(scope)
            await self._check_key(scope)
            _check_encoding(scope)
            limited = _limited(receive, self._limit(scope), Headers(scope=scope))
        except LoradError as error:
            await self._refusal(error, scope)(scope, receive, answer)
            return
        try:
            await self._app(scope, limited, answer)
        except Exception:
            _log.exception("%s %s %s failed", request_id, scope["method"], scope["path"])
            if answer.has_started:
                raise
            await errors.fault(request_id)(scope, receive, answer)

    def _refusal(self, error: LoradError, scope: Scope) -> ASGIApp:
        if errors.is_page(scope["path"]):
            return self._page_of(Request(scope), error, errors.status_of(error))
        return errors.refusal(error, scope["path"])

    def _check_host(self, scope: Scope) -> None:
        host = _host_name(Headers(scope=scope).get("host", ""))
        if host not in self._hosts:
            raise UntrustedHost(
                f"host {host[:80]!r} is not served here; add it to LORAD_ALLOWED_HOSTS"
            )

    async def _check_key(self, scope: Scope) -> None:
        if scope["path"] in OPEN_PATHS:
            return
        presented = _bearer(Headers(scope=scope).get("authorization", ""))
        state: dict[str, Any] = scope.setdefault("state", {})
        state["project_id"] = await to_thread.run_sync(self._project_of, presented, scope)

    def _project_of(self, presented: str | None, scope: Scope) -> str:
        if presented is not None and not self._is_placeholder(scope):
            return keys.authenticate(self._db, self._settings, presented)
        signed_in = _session_token(scope)
        session = None if signed_in is None else sessions.find(self._db, signed_in)
        if session is not None:
            return session.project_id
        if keys.are_required(self._db):
            raise Unauthenticated(
                "an API key is needed: send Authorization: Bearer lorad_...; `lorad keys create` on"
                " the machine of the service makes one"
            )
        if not _arrived_on_loopback(scope):
            raise Unauthenticated(
                "without an API key only loopback is served; create one with `lorad keys create`"
            )
        return DEFAULT_PROJECT

    def _is_placeholder(self, scope: Scope) -> bool:
        """Tell whether a key is just what an OpenAI client has to send, where none is needed."""
        return scope["path"].startswith("/v1/") and not keys.are_required(self._db)

    def _limit(self, scope: Scope) -> int:
        if scope["path"] in UPLOAD_PATHS or _PART_PATH.fullmatch(scope["path"]):
            return self._settings.max_upload_bytes + _MULTIPART_OVERHEAD_BYTES
        return self._settings.max_body_bytes


def _check_origin(scope: Scope) -> None:
    """Refuse changes that a page of another host asks a browser for.

    Raises:
        CrossOrigin: The browser says that it is on another host, port or scheme included.
    """
    if scope["method"] in _SAFE_METHODS:
        return
    headers = Headers(scope=scope)
    origin, host = headers.get("origin"), headers.get("host", "").lower()
    is_foreign = headers.get("sec-fetch-site", "") == "cross-site"
    if origin is not None:
        is_foreign = is_foreign or origin.lower().partition("://")[2] != host
    if is_foreign:
        raise CrossOrigin(
            f"a page of {(origin or 'another site')[:80]!r} asked for this change, and only pages"
            f" of {host[:80]!r} may; open the page of lorad itself, or leave out the Origin header"
        )


def _session_token(scope: Scope) -> str | None:
    return Request(scope).cookies.get(SESSION_COOKIE)


def _check_encoding(scope: Scope) -> None:
    encoding = Headers(scope=scope).get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise InvalidInput(
            f"a body with content-encoding {encoding[:40]!r} is not read; send it uncompressed",
            code="unsupported_encoding",
        )


def _limited(receive: Receive, limit: int, headers: Headers) -> Receive:
    """Return a `receive` that counts the body.

    Raises:
        TooLarge: The announced length is over the limit; the returned function raises it for the
            real one.
    """
    message = f"the body is larger than {limit} bytes"
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge(message)
    received = 0

    async def counted() -> Message:
        nonlocal received
        part = await receive()
        received += len(part.get("body", b""))
        if received > limit:
            raise TooLarge(message)
        return part

    return counted


class _Stamped:
    """A `send` that adds the headers that every answer has."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers.setdefault("x-content-type-options", "nosniff")
            headers.setdefault("cache-control", "no-store")
        await self._send(message)


def _bearer(header: str) -> str | None:
    if not header:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("send the API key as Authorization: Bearer lorad_...")
    return token.strip()


def _host_name(header: str) -> str:
    name = header.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


def _arrived_on_loopback(scope: Scope) -> bool:
    """Tell whether the connection came in on a loopback address, whatever the settings say."""
    server = scope.get("server")
    if server is None or server[1] is None:
        return True  # a unix socket
    try:
        return ip_address(server[0]).is_loopback
    except ValueError:
        return server[0] in (*LOOPBACK_HOSTS, "testserver")
