"""Shapes of answers that are not things of their own: lists and small acknowledgements."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from app.domain.metrics import StepMetrics

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """A part of a list."""

    # Pydantic does not hand the docstring on to `Page[Job]` and its like.
    model_config = ConfigDict(
        use_attribute_docstrings=True, json_schema_extra={"description": "A part of a list."}
    )

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[Item]
    """The items."""
    has_more: bool
    """True when there are more; ask again with `after` (or `after_step`) of the last item."""


class Deleted(BaseModel):
    """What was deleted."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """Id of what was deleted."""
    object: str
    """Kind of what was deleted."""
    deleted: Literal[True] = True
    """Always true."""


def page_of_steps(items: Sequence[StepMetrics], limit: int) -> Page[StepMetrics]:
    """Make a page of up to `limit` steps from a query for one more; a step is never divided."""
    steps = sorted({item.step for item in items})
    kept = [item for item in items if len(steps) <= limit or item.step < steps[limit]]
    return Page(data=kept, has_more=len(steps) > limit)


def page_of(items: Sequence[Item], limit: int) -> Page[Item]:
    """Make a page of up to `limit` items from a query for one more."""
    return Page(data=list(items[:limit]), has_more=len(items) > limit)
