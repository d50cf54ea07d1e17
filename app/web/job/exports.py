"""Exports of a job as forms: make one, stop it, remove it."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from pydantic import ValidationError

from app.api.deps import Config, Db, JobId, Project, Reach
from app.domain import faults
from app.domain.errors import InvalidInput
from app.services import exports
from app.services.exports import ExportBody
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

Text = Annotated[str, Form(max_length=64)]


@router.post("/jobs/{job_id}/exports")
def create(
    request: Request,
    db: Db,
    reach: Reach,
    project: Project,
    job_id: JobId,
    kind: Annotated[str, Form(alias="format", max_length=64)],
    checkpoint: Text = "",
    base: Text = "auto",
) -> Response:
    """Ask for an export; `format` is one, or one with a data type, such as `merged bfloat16`."""
    name, _, dtype = kind.partition(" ")
    asked = {"format": name, "dtype": dtype or "auto", "base": base}
    asked |= {"checkpoint": checkpoint} if checkpoint else {}
    try:
        body = ExportBody.model_validate(asked)
    except ValidationError as error:
        fault = faults.of(error.errors()[0])
        raise InvalidInput(fault.message, param=fault.param, code=fault.code) from error
    exports.create(db, reach, project, job_id, body)
    return frame.back(request, job_id, "checkpoints#exports")


@router.post("/jobs/{job_id}/exports/{export_id}/cancel")
def cancel(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId, export_id: str
) -> Response:
    exports.cancel(db, config, project, job_id, export_id)
    return frame.back(request, job_id, "checkpoints#exports")


@router.post("/jobs/{job_id}/exports/{export_id}/delete")
def delete(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId, export_id: str
) -> Response:
    exports.delete(db, config, project, job_id, export_id)
    return frame.back(request, job_id, "checkpoints#exports")
