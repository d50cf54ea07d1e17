"""The page that shows a row of a data set as tokens, and which of them are trained."""

import json
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from app.api.datasets import DatasetId
from app.api.deps import MAX_INT32, Config, Db, Project, Reach
from app.domain import faults, ids
from app.domain.errors import InvalidInput
from app.domain.groups import as_mapping
from app.domain.groups import shown as in_short
from app.domain.options import DatasetSpec
from app.domain.previews import Preview
from app.domain.spec import JobSpec, ModelName
from app.domain.strict_json import DuplicateKey, unique_keys
from app.services import previews, raw_rows
from app.services.previews import MAX_LENGTH, Wanted
from app.services.raw_rows import RawRow
from app.web import new_job_form, render
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

NOT_OF_ROWS = ("id", "eval_id", "val_size")
# What cannot be seen is shown as what stands for it.
_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "→", "\r": "␍"})


@router.get("/datasets/{dataset_id}/preview")
def preview_page(
    request: Request,
    dataset_id: DatasetId,
    db: Db,
    config: Config,
    reach: Reach,
    project: Project,
    base_model: Annotated[ModelName, Query()],
    offset: Annotated[int, Query(ge=0, le=MAX_INT32)] = 0,
    options: Annotated[
        str, Query(max_length=40_000, description="Keys of a job's `dataset`, as a JSON object.")
    ] = "",
) -> Response:
    """Show one row; a script gets the row alone."""
    keys = _options(options)
    wanted = Wanted(base_model, offset=offset, num_rows=1, options=within_limit(keys))
    found = previews.preview(db, reach, project, dataset_id, wanted)
    raw = raw_rows.at(db, config, project, dataset_id, offset)
    place = f"{_address(dataset_id, base_model, options)}&"
    return shown(request, found, place, raw, max_length=keys.get("max_length"))


def place(spec: JobSpec) -> str:
    """Return the address at which the rows of a job that is not stored yet are shown."""
    keys = new_job_form.keys_of(spec)["dataset"]
    options = {key: value for key, value in keys.items() if key not in NOT_OF_ROWS}
    return _address(spec.dataset.id, spec.base_model, json.dumps(options) if options else "")


def _address(dataset_id: str, base_model: str, options: str) -> str:
    query = {"base_model": base_model} | ({"options": options} if options else {})
    return f"/ui/datasets/{dataset_id}/preview?{urlencode(query)}"


def within_limit(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a `dataset` with no more tokens than a page can show."""
    length = options.get("max_length")
    return {**options, **({} if length is None else {"max_length": min(length, MAX_LENGTH)})}


def shown(
    request: Request, found: Preview, place: str, raw: RawRow | None, *, max_length: int | None
) -> Response:
    """Return the page of a row.

    Args:
        place: Its own address, up to where `offset` is written.
        max_length: That of the job, which may be more than is shown.
    """
    is_part = "hx-request" in request.headers
    return render.page(
        request,
        "new/tokens.html" if is_part else "new/tokens_page.html",
        active=None,
        preview=found,
        place=place,
        raw=raw,
        most_tokens=MAX_LENGTH if max_length and max_length > MAX_LENGTH else None,
        visible=_visible,
    )


def _options(text: str) -> dict[str, Any]:
    """Return the keys of a `dataset` that say how rows become tokens.

    Raises:
        InvalidInput: It is no JSON object, or one of its values cannot be.
    """
    try:
        found = as_mapping(json.loads(text or "{}", object_pairs_hook=unique_keys))
    except DuplicateKey as error:
        raise InvalidInput(
            f"options has the key {in_short(error.key)} twice; give it once", param="options"
        ) from error
    except (ValueError, RecursionError):
        found = None
    if found is None:
        raise InvalidInput("options is no JSON object", param="options")
    beside = [key for key in NOT_OF_ROWS if key in found]
    if beside:
        raise InvalidInput(
            f"options has {beside[0]}, which does not say how rows become tokens; leave it out",
            param="options",
            code="unknown_key",
        )
    try:
        DatasetSpec.model_validate({**found, "id": ids.new("ds")})
    except ValidationError as error:
        fault = faults.of(error.errors()[0], group="dataset")
        raise InvalidInput(fault.message, param="options", code=fault.code) from error
    return dict(found)


def _visible(text: str) -> str:
    return text.translate(_VISIBLE)
