"""Files: upload, list, show, download, delete."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, File, Form, Query, Response, UploadFile
from fastapi.responses import FileResponse

from app.api.deps import Config, Db, Project
from app.api.errors import answers, answers_beside_text
from app.api.strict import StrictRoute
from app.api.v1.deps import After, FileId, Sent
from app.api.v1.forms import Lifetime, filename_of, require_file_form
from app.domain.groups import Label
from app.domain.openai.objects import CursorPage, Removed
from app.domain.openai.objects import File as FileObject
from app.services.openai import files

router = APIRouter(prefix="/v1/files", tags=["openai"], route_class=StrictRoute)

_FILE = "Rows as JSONL, a JSON array, CSV with a header, or Parquet; plain, .gz or .zst."


@router.post("", responses=answers(409), dependencies=[Depends(require_file_form)])
def create_file(
    db: Db,
    config: Config,
    project: Project,
    sent: Sent,
    lifetime: Lifetime,
    file: Annotated[UploadFile, File(description=_FILE)],
    purpose: Annotated[Label, Form(description="Only `fine-tune`.", max_length=64)],
) -> FileObject:
    """Store a file to train or evaluate on; every row is checked."""
    files.require_purpose(purpose)
    return files.create(
        db,
        config,
        project,
        file.file,
        filename=filename_of(file),
        expires_seconds=lifetime,
        attempt=sent,
    )


@router.get("", responses=answers())
def list_files(
    db: Db,
    config: Config,
    project: Project,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Most files in the answer.")] = 10_000,
    order: Annotated[
        Literal["asc", "desc"], Query(description="By the time they were made.")
    ] = "desc",
    purpose: Annotated[
        str | None, Query(description="Only files of this purpose.", max_length=64)
    ] = None,
) -> CursorPage[FileObject]:
    """List files, newest first."""
    return files.page(db, config, project, after=after, limit=limit, order=order, purpose=purpose)


@router.get("/{file_id}", responses=answers(404))
def get_file(file_id: FileId, db: Db, config: Config, project: Project) -> FileObject:
    """Show a file."""
    return files.get(db, config, project, file_id)


@router.delete("/{file_id}", responses=answers(404, 409))
def delete_file(file_id: FileId, db: Db, config: Config, project: Project) -> Removed:
    """Remove a file that no job needs any more."""
    return files.delete(db, config, project, file_id)


@router.get("/{file_id}/content", response_class=Response, responses=answers_beside_text(404))
def get_file_content(file_id: FileId, db: Db, config: Config, project: Project) -> Response:
    """Download a file as it was uploaded, or the results of a job as CSV."""
    found = files.content(db, config, project, file_id)
    if found.path is None:
        headers = {"content-disposition": f'attachment; filename="{found.filename}"'}
        return Response(found.data, media_type="text/csv; charset=utf-8", headers=headers)
    return FileResponse(found.path, filename=found.filename, media_type="application/octet-stream")
