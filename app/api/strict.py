"""What every route refuses before its endpoint runs: unknown parameters, JSON that is none."""

import json
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast, get_args, get_origin

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.domain.errors import InvalidInput
from app.domain.groups import nearest, shown
from app.domain.strict_json import DuplicateKey, unique_keys


class StrictRoute(APIRoute):
    """A route that takes only the query parameters it declares, and JSON read strictly.

    A parameter that is declared as a list may come several times, any other one once.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = sorted(_query_names(self.dependant))
        integers = _integer_names(self.dependant)
        lists = _list_names(self.dependant)
        takes_a_body = bool(self.dependant.body_params)

        async def checked(request: Request) -> Response:
            given = [name for name, _ in request.query_params.multi_items()]
            once = [name for name in given if name not in lists]
            require_known(once, known, what="parameter")
            for name in integers & set(given):
                _require_plain(name, request.query_params[name])
            strict = _StrictRequest(request.scope, request.receive)
            try:
                if not takes_a_body:
                    _refuse_body(await strict.body())
                return await handle(strict)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it

        return checked


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = _read_json(await self.body())
        return self._json


def require_known(given: Iterable[str], known: list[str], *, what: str) -> None:
    """Check that each name is one of `known` and comes once.

    Raises:
        InvalidInput: One is not, or comes twice; its code is `unknown_<what>` or `repeated_<what>`.
    """
    kind = what.replace(" ", "_")
    seen: set[str] = set()
    for name in given:
        if name not in known:
            hint = nearest(name, known) if known else f"there is no {what} here; leave it out"
            message = f"unknown {what} {shown(name)}; {hint}"
            raise InvalidInput(message, param=name, code=f"unknown_{kind}")
        if name in seen:
            message = f"the {what} {name} is given twice; give it once"
            raise InvalidInput(message, param=name, code=f"repeated_{kind}")
        seen.add(name)


def _refuse_body(body: bytes) -> None:
    """Refuse what the route would not look at; some clients send `{}` where there is nothing.

    Raises:
        InvalidInput: There is a body.
    """
    if body.strip() not in (b"", b"{}"):
        raise InvalidInput(
            "this request takes no body; leave it out", param="body", code="unexpected_body"
        )


def _query_names(dependant: Dependant) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*(_query_names(each) for each in dependant.dependencies))


def _integer_names(dependant: Dependant) -> set[str]:
    own = {
        field.alias
        for field in dependant.query_params
        if cast(object, field.field_info.annotation) in (int, int | None)
    }
    return own.union(*(_integer_names(each) for each in dependant.dependencies))


def _list_names(dependant: Dependant) -> set[str]:
    own = {
        field.alias
        for field in dependant.query_params
        if list in {get_origin(each) for each in _alternatives(field.field_info.annotation)}
    }
    return own.union(*(_list_names(each) for each in dependant.dependencies))


def _alternatives(annotation: object) -> tuple[object, ...]:
    return (annotation, *get_args(annotation))


def _require_plain(name: str, text: str) -> None:
    """Refuse what pydantic reads as a whole number although nobody writes one so, such as 1_0.

    Raises:
        InvalidInput: It is not digits alone.
    """
    if re.fullmatch(r"-?[0-9]+", text):
        return
    try:
        float(text)
    except ValueError:
        return  # no number at all, which has a message of its own
    raise InvalidInput(
        f"{name} is {shown(repr(text))}; write a whole number in digits alone",
        param=name,
        code="int_parsing",
    )


def _read_json(body: bytes) -> Any:
    try:
        return json.loads(body, object_pairs_hook=unique_keys)
    except DuplicateKey as error:
        message = f"the key {shown(error.key)} is given twice in one object; give it once"
        raise InvalidInput(message, param=error.key, code="duplicate_key") from error
    except RecursionError as error:
        reason, cause = "it is nested too deep", error
    except json.JSONDecodeError as error:
        reason, cause = f"{error.msg} at line {error.lineno} column {error.colno}", error
    except UnicodeDecodeError as error:
        reason, cause = f"byte {error.start} is not UTF-8", error
    except ValueError as error:
        # All that is left is Python's limit of the digits of an integer.
        reason, cause = "a number has too many digits", error
    raise InvalidInput(
        f"the body is not valid JSON: {reason}; send one JSON object in UTF-8, as "
        "/openapi.json describes it",
        code="invalid_json",
    ) from cause
