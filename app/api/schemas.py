"""Shapes of answers that are not things of their own: lists and small acknowledgements."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """A part of a list."""

    model_config = ConfigDict(use_attribute_docstrings=True)

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


def page_of(items: Sequence[Item], limit: int) -> Page[Item]:
    """Make a page of up to `limit` items from a query for one more."""
    return Page(data=list(items[:limit]), has_more=len(items) > limit)
