"""What every page's route does: errors become pages, unknown parameters are refused."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError

from app.api import errors
from app.api.strict import StrictRoute
from app.domain.errors import InvalidInput, LoradError
from app.web import problems


class PageRoute(StrictRoute):
    """A route whose errors are pages for a person: what is wrong, and what to do."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except LoradError as error:
                return problems.of(request, error)
            except RequestValidationError as error:
                problem = errors.problem_of(error.errors()[0])
                known = InvalidInput(problem.message, param=problem.param, code=problem.code)
                return problems.of(request, known)

        return shown
