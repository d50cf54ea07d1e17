"""HTTP below the client: requests, sent again where that is safe, and failures as our errors."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

from app.domain import errors, ids
from app.settings import LOOPBACK_HOSTS

DEFAULT_URL = "http://127.0.0.1:8000"
# Uploads wait for the check of every line, answers of a model for the model to load.
LONG_TIMEOUT = httpx2.Timeout(600.0, connect=5.0)
_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
_ATTEMPTS = 3
_BAD_INPUT_STATUSES = (400, 405, 411, 413, 415, 416, 422)

M = TypeVar("M", bound=BaseModel)


class Page(BaseModel, Generic[M]):
    """One answer of a list route."""

    data: list[M]
    has_more: bool = False


class _ErrorBody(BaseModel):
    model_config = ConfigDict(extra="ignore")

    message: str
    param: str | None = None
    code: str | None = None
    details: list["_ErrorBody"] | None = None


class _Envelope(BaseModel):
    error: _ErrorBody


class Transport:
    """A connection to one API."""

    def __init__(
        self, url: str, *, api_key: str | None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        hostname = require_url(url)
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise errors.InvalidInput(
                "the API key holds characters that no key of ours has; copy it again",
                param="LORAD_API_KEY",
            )
        self.url = url.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=_TIMEOUT,
            transport=transport,
            # A proxy that the environment names cannot reach this machine's own loopback.
            trust_env=hostname not in LOOPBACK_HOSTS,
        )

    def close(self) -> None:
        self._http.close()

    def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request once.

        Raises:
            LoradError: The kind that the answer, or its absence, stands for.
        """
        try:
            response = self._http.request(method, path, **options)
        except httpx2.RequestError as error:
            raise self.unreachable(error) from error
        return _checked(response)

    def get(self, path: str, model: type[M], **params: object) -> M:
        """Fetch one thing; connection errors are tried again."""
        given = {name: value for name, value in params.items() if value is not None}
        return self.parse(model, self.retry(lambda: self.send("GET", path, params=given)))

    def post(self, path: str, model: type[M], **options: Any) -> M:
        return self.parse(model, self.send("POST", path, **options))

    def create(self, model: type[M], send: Callable[[Mapping[str, str]], httpx2.Response]) -> M:
        """Create one thing, however often the connection breaks.

        Args:
            model: Type of the answer.
            send: Sends the request with the headers it is given; called again after an outage. The
                headers carry an idempotency key, so that all attempts make one thing.
        """
        headers = {"Idempotency-Key": ids.new("cli")}
        return self.parse(model, self.retry(lambda: send(headers)))

    def list_all(
        self,
        path: str,
        model: type[M],
        *,
        limit: int | None,
        cursor: str = "id",
        page_size: int = 100,
        **params: object,
    ) -> list[M]:
        """Fetch a list page by page, up to `limit` entries.

        Args:
            path: The list route.
            model: Type of the entries.
            limit: Most entries to return; None for all.
            cursor: Field of the last entry that the next page continues after.
            page_size: Most entries that the route gives at once.
            params: Filters of the route.
        """
        after = "after" if cursor == "id" else f"after_{cursor}"
        items: list[M] = []
        while limit is None or len(items) < limit:
            size = page_size if limit is None else min(page_size, limit - len(items))
            page = self.get(path, Page[model], limit=size, **params)
            items += page.data
            if not page.has_more or not page.data:
                break
            params[after] = getattr(page.data[-1], cursor)
        return items

    def list_whole(self, path: str, model: type[M]) -> list[M]:
        """Fetch a list that comes in one piece."""
        return self.get(path, Page[model]).data

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        read_seconds: float | None = 30.0,
        **options: Any,
    ) -> Generator[httpx2.Response]:
        """Open an answer that is read while it comes."""
        timeout = httpx2.Timeout(read_seconds, connect=5.0)
        with self._http.stream(
            method, path, headers=headers, timeout=timeout, **options
        ) as response:
            if not response.is_success:
                response.read()
            yield _checked(response)

    def retry(self, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        """Send again while nothing answers; only for requests that may arrive twice."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return send()
            except errors.Unavailable as error:
                if not isinstance(error.__cause__, httpx2.TransportError):
                    raise
                time.sleep(0.2 * attempt)
        return send()

    def unreachable(self, error: Exception) -> errors.Unavailable:
        reason = str(error) or type(error).__name__
        return errors.Unavailable(
            f"cannot reach the API at {self.url} ({reason}); "
            "start it with `lorad up`, or set LORAD_API_URL"
        )

    def parse(self, model: type[M], response: httpx2.Response) -> M:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise errors.LoradError(
                f"{self.url} answered what this command does not understand ({error.error_count()} "
                f"faults in {error.title}); is it a lorad API of the same version?"
            ) from error


def require_url(url: str) -> str:
    """Return the name of the host in the address of an API.

    Raises:
        InvalidInput: It is no such address.
    """
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.port != 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        is_url, parts = False, urlsplit("")
    if not is_url or not parts.hostname:
        raise errors.InvalidInput(
            f"{url!r} is no URL of an API; it looks like {DEFAULT_URL}", param="LORAD_API_URL"
        )
    return parts.hostname


def path_of(*parts: object) -> str:
    """Build a path; what the user typed stays one part of it, whatever it holds."""
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.is_success:
        return response
    raise _error_of(response)


def _error_of(response: httpx2.Response) -> errors.LoradError:
    """Turn an answer that is no success into our error."""
    try:
        body = _Envelope.model_validate_json(response.content).error
    except ValidationError:
        message = f"the API answered {response.status_code} {response.reason_phrase}"
        body = _ErrorBody(message=message)
    others = [f"\n  also: {each.message}" for each in (body.details or [])[1:]]
    kind = _kind_of(response.status_code)
    error = kind(body.message + "".join(others), param=body.param, code=body.code)
    request_id = response.headers.get("x-request-id")
    if request_id:
        error.add_note(f"request: {request_id}")
    return error


def _kind_of(status: int) -> type[errors.LoradError]:
    match status:
        case 401 | 403:
            return errors.Unauthenticated
        case 404:
            return errors.NotFound
        case 409:
            return errors.Conflict
        case 429:
            return errors.RateLimited
        case 502 | 503 | 504:
            return errors.Unavailable
        case _ if status in _BAD_INPUT_STATUSES:
            return errors.InvalidInput
        case _:
            return errors.LoradError
