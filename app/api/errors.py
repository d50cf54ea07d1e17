"""How errors become answers: one envelope, and one table of statuses."""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.domain import errors, faults
from app.domain.groups import shown
from app.domain.openai import ids

_log = logging.getLogger(__name__)

# Makes the page that tells an error, with its status; the pages stand above this layer.
PageOf = Callable[[Request, errors.LoradError, int], Response]

STATUSES: tuple[tuple[type[errors.LoradError], int], ...] = (
    (errors.InvalidInput, 422),
    (errors.TooLarge, 413),
    (errors.Unauthenticated, 401),
    (errors.UntrustedHost, 400),
    (errors.CrossOrigin, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.RateLimited, 429),
    (errors.Unavailable, 503),
)
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
# More would help nobody, and an answer can be made to outgrow its request by far.
_MOST_PROBLEMS = 20
_RETRY_SECONDS = 2


class Problem(BaseModel):
    """One of several problems of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    """What is wrong and what to do."""
    param: str | None
    """Dotted path of the field at fault."""
    code: str
    """Stable name of the problem."""


class ErrorBody(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    """What is wrong and what to do."""
    type: str
    """Class of the error, by status."""
    param: str | None
    """Dotted path of the field at fault; null when it is none."""
    code: str | None
    """Stable name of the problem."""
    details: list[Problem] | None = None
    """Every problem, when there are several."""


class ErrorEnvelope(BaseModel):
    """The one shape of every error answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: ErrorBody
    """What went wrong."""


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI declaration of error statuses; those that any route may give are added."""
    every = sorted({*statuses, 400, 401, 403, 413, 422, 500, 503})
    return {
        status: {"model": ErrorEnvelope, "description": HTTPStatus(status).phrase}
        for status in every
    }


def answers_beside_text(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Do what `answers` does for a route whose own answer is not JSON but whose errors are."""
    schema = {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}
    return {
        status: {
            "description": answer["description"],
            "content": {"application/json": {"schema": schema}},
        }
        for status, answer in answers(*statuses).items()
    }


def install(app: FastAPI, page_of: PageOf) -> None:
    """Make every error of the app an envelope, but one of a page what `page_of` makes of it."""

    def on_http_exception(request: Request, error: Exception) -> Response:
        answer = _on_http_exception(request, error)
        return _as_page(request, answer, page_of) if is_page(request.url.path) else answer

    app.add_exception_handler(errors.LoradError, _on_lorad_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, on_http_exception)


def is_page(path: str) -> bool:
    """Tell whether a person looks at what is at a path."""
    return path in ("/", "/ui") or path.startswith("/ui/")


def _as_page(request: Request, answer: JSONResponse, page_of: PageOf) -> Response:
    found = ErrorEnvelope.model_validate_json(bytes(answer.body)).error
    remedy = "; see the pages above" if answer.status_code == 404 else ""
    message = found.message.replace("; see /openapi.json", remedy)
    error = errors.LoradError(message, param=found.param, code=found.code)
    shown_page = page_of(request, error, answer.status_code)
    if "allow" in answer.headers:
        shown_page.headers["allow"] = answer.headers["allow"]
    return shown_page


def refusal(error: errors.LoradError, path: str) -> JSONResponse:
    """Return the answer to a request at `path` that met an error."""
    status = _status_at(path, status_of(error))
    message = ids.reworded(error.message) if _is_openai(path) else error.message
    return response(status, message, param=error.param, code=error.code)


def _is_openai(path: str) -> bool:
    return path.startswith("/v1/")


def _status_at(path: str, status: int) -> int:
    """Return the status that clients expect there: OpenAI answers 400 where we say 422."""
    return 400 if status == 422 and _is_openai(path) else status


def status_of(error: errors.LoradError) -> int:
    for kind, status in STATUSES:
        if isinstance(error, kind):
            return status
    return 500


def response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    details: list[Problem] | None = None,
) -> JSONResponse:
    body = ErrorBody(
        message=_sendable(message),
        type=_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        param=None if param is None else shown(param),
        code=code,
        details=details,
    )
    exclude = {"error": {"details"}} if details is None else None
    content = ErrorEnvelope(error=body).model_dump(exclude=exclude)
    return JSONResponse(content, status_code=status, headers=_headers(status))


def _sendable(text: str) -> str:
    """Return a text that quotes a request in a form that can be sent: half characters escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def fault(request_id: str) -> JSONResponse:
    """Return the answer to a request that met a mistake of ours."""
    message = f"lorad failed at this request; its log says why under {request_id}"
    return response(500, message, code="internal_error")


def _headers(status: int) -> dict[str, str]:
    if status == 409:
        # The openai SDK tries a 409 again unless it is told that this one is final.
        return {"x-should-retry": "false"}
    if status in (429, 503):
        return {"retry-after": str(_RETRY_SECONDS)}
    if status == 401:
        return {"www-authenticate": "Bearer"}
    return {}


def _on_lorad_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.LoradError)
    if status_of(error) == 500:
        _log.error("an error that no status is named for", exc_info=error)
    return refusal(error, request.url.path)


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    problems = [problem_of(each) for each in found[:_MOST_PROBLEMS]]
    first = problems[0]
    details = problems if len(problems) > 1 else None
    if len(found) > len(problems):
        more = f"{first.message} (the first of {len(found)} problems)"
        first = first.model_copy(update={"message": more})
    status = _status_at(request.url.path, 422)
    return response(status, first.message, param=first.param, code=first.code, details=details)


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, errors.LoradError):
        # FastAPI wraps whatever stops the reading of a body, such as our limit of its size.
        return _on_lorad_error(request, error.__cause__)
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == 405:
        headers["allow"] = ", ".join(_methods_at(request))
    has_slash = len(path) > 1 and path.endswith("/")
    remedy = "leave out the slash at its end" if has_slash else "see /openapi.json"
    messages = {
        400: f"the body cannot be read; send what /openapi.json says ({error.detail})",
        404: f"there is nothing at {path}; {remedy}",
        405: f"{request.method} is not possible at {path}; possible: {headers.get('allow')}",
    }
    message = messages.get(error.status_code, str(error.detail))
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    answer = response(error.status_code, message, code=code)
    answer.headers.update(headers)
    return answer


def _methods_at(request: Request) -> list[str]:
    """Return the methods of all routes at a path; Starlette names those of the first one only."""
    app: FastAPI = request.app
    scope: dict[str, Any] = {
        "type": "http",
        "path": request.scope["path"],
        "root_path": "",
        "headers": [],
    }
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]


def problem_of(error: dict[str, Any]) -> Problem:
    """Turn one of pydantic's errors into ours."""
    found = faults.of(error)
    message = found.message
    if found.param is None and error["type"] in ("model_attributes_type", "model_type"):
        message = "the body must be a JSON object, sent with content-type: application/json"
    return Problem(message=_sendable(message), param=found.param, code=found.code)
