"""The page that shows a row of a data set as tokens, and which of them are trained."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.datasets import DatasetId
from app.api.deps import MAX_INT32, Db, Project, Reach
from app.domain.spec import ModelName
from app.services import previews
from app.services.previews import Wanted
from app.web import render
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

# What cannot be seen is shown as what stands for it.
_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "→", "\r": "␍"})


@router.get("/datasets/{dataset_id}/preview")
def preview_page(
    request: Request,
    dataset_id: DatasetId,
    db: Db,
    reach: Reach,
    project: Project,
    base_model: Annotated[ModelName, Query()],
    offset: Annotated[int, Query(ge=0, le=MAX_INT32)] = 0,
) -> Response:
    """Show one row; a script gets the row alone."""
    wanted = Wanted(base_model, offset=offset, num_rows=1)
    found = previews.preview(db, reach, project, dataset_id, wanted)
    is_part = "hx-request" in request.headers
    return render.page(
        request,
        "new/tokens.html" if is_part else "new/tokens_page.html",
        active=None,
        preview=found,
        visible=_visible,
    )


def _visible(text: str) -> str:
    return text.translate(_VISIBLE)
