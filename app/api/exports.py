"""Exports of a job: ask for one, list, show, cancel, delete, download."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, status
from fastapi.responses import StreamingResponse

from app.api.deps import Config, Db, IdempotencyKey, JobId, Limit, Project, Reach
from app.api.errors import answers
from app.api.schemas import Deleted, Page, page_of
from app.api.strict import StrictRoute
from app.domain import ids
from app.domain.errors import InvalidInput
from app.domain.exports import Export
from app.domain.groups import shown
from app.services import checkpoints, exports
from app.services.exports import ExportBody

router = APIRouter(prefix="/jobs/{job_id}/exports", tags=["exports"], route_class=StrictRoute)

ExportId = Annotated[str, Path(description="Id of the export.", max_length=64)]


def _after(
    after: Annotated[
        str | None,
        Query(description="Id of the last item of the page before; the answer starts behind it."),
    ] = None,
) -> str | None:
    if after is not None and not ids.is_id(after, "exp"):
        raise InvalidInput(
            f"after: {shown(after)} is no cursor; give the id of the last item of the page before",
            param="after",
            code="invalid_cursor",
        )
    return after


After = Annotated[str | None, Depends(_after)]


@router.post("", status_code=status.HTTP_201_CREATED, responses=answers(404, 409))
def create_export(
    job_id: JobId,
    body: ExportBody,
    db: Db,
    reach: Reach,
    project: Project,
    idempotency_key: IdempotencyKey = None,
) -> Export:
    """Ask for an adapter in another form; a worker writes it and proves that it is the same."""
    return exports.create(db, reach, project, job_id, body, idempotency_key=idempotency_key)


@router.get("", responses=answers(404))
def list_exports(
    job_id: JobId, db: Db, config: Config, project: Project, after: After, limit: Limit = 20
) -> Page[Export]:
    """List exports of a job, newest first."""
    found = exports.page(db, config, project, job_id, after=after, limit=limit + 1)
    return page_of(found, limit)


@router.get("/{export_id}", responses=answers(404))
def get_export(
    job_id: JobId, export_id: ExportId, db: Db, config: Config, project: Project
) -> Export:
    """Show an export, its progress and its proof."""
    return exports.get(db, config, project, job_id, export_id)


@router.post("/{export_id}/cancel", responses=answers(404, 409))
def cancel_export(
    job_id: JobId, export_id: ExportId, db: Db, config: Config, project: Project
) -> Export:
    """Stop an export that has not ended."""
    return exports.cancel(db, config, project, job_id, export_id)


@router.delete("/{export_id}", responses=answers(404))
def delete_export(
    job_id: JobId, export_id: ExportId, db: Db, config: Config, project: Project
) -> Deleted:
    """Remove an export and its files; one that is being made is stopped."""
    exports.delete(db, config, project, job_id, export_id)
    return Deleted(id=export_id, object="export")


@router.get(
    "/{export_id}/download",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"application/zip": {}, "application/octet-stream": {}},
            "description": "All files as a zip, or the one that was asked for",
        },
        **answers(404, 409),
    },
)
def download_export(
    job_id: JobId,
    export_id: ExportId,
    db: Db,
    config: Config,
    project: Project,
    file: Annotated[
        str | None, Query(description="Name of one file; all of them as a zip without.")
    ] = None,
) -> StreamingResponse:
    """Download an export that has succeeded."""
    folder, names = exports.files(db, config, project, job_id, export_id)
    if file is not None:
        headers = {"content-disposition": f'attachment; filename="{file}"'}
        content = exports.pieces(folder, names, file)
        return StreamingResponse(content, media_type="application/octet-stream", headers=headers)
    headers = {"content-disposition": f'attachment; filename="{export_id}.zip"'}
    content = checkpoints.zipped(folder, names)
    return StreamingResponse(content, media_type="application/zip", headers=headers)
