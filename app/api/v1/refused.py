"""What OpenAI's API has and this one does not: each is refused by name."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute

from app.api.errors import answers
from app.domain.errors import InvalidInput

# Bodies and parameters are not looked at: whatever they say, the answer is the same.
router = APIRouter(prefix="/v1/fine_tuning", tags=["openai"], route_class=APIRoute)


def _refuse(what: str, instead: str) -> InvalidInput:
    return InvalidInput(f"{what} are not available here; {instead}", code="not_available")


@router.api_route(
    "/checkpoints/{path:path}",
    methods=["GET", "POST", "DELETE"],
    responses=answers(404),
    include_in_schema=False,
)
def refuse_permissions(request: Request) -> dict[str, Any]:
    """Refuse permissions of checkpoints."""
    raise _refuse(
        "permissions of checkpoints",
        "every key of a project may ask all of its models",
    )


@router.api_route(
    "/alpha/graders/{path:path}",
    methods=["GET", "POST"],
    responses=answers(404),
    include_in_schema=False,
)
def refuse_graders(request: Request) -> dict[str, Any]:
    """Refuse graders."""
    raise _refuse("graders", "they are of reinforcement fine-tuning; use the supervised method")
