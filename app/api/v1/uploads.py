"""Uploads: a file that comes in parts."""

from typing import Annotated

from fastapi import APIRouter, Depends, File, UploadFile

from app.api.deps import Config, Db, Project
from app.api.errors import answers
from app.api.strict import StrictRoute
from app.api.v1.deps import Sent, UploadId
from app.api.v1.forms import require_part_form
from app.domain.openai.objects import Upload, UploadPart
from app.domain.openai.requests import CompleteUpload, CreateUpload
from app.services.openai import uploads

router = APIRouter(prefix="/v1/uploads", tags=["openai"], route_class=StrictRoute)


@router.post("", responses=answers(409))
def create_upload(
    body: CreateUpload, db: Db, config: Config, project: Project, sent: Sent
) -> Upload:
    """Begin a file that comes in parts; it has to be completed within an hour."""
    return uploads.create(db, config, project, body, attempt=sent)


@router.post(
    "/{upload_id}/parts", responses=answers(404), dependencies=[Depends(require_part_form)]
)
def create_upload_part(
    upload_id: UploadId,
    db: Db,
    config: Config,
    project: Project,
    sent: Sent,
    data: Annotated[UploadFile, File(description="The bytes of this part.")],
) -> UploadPart:
    """Store a part; the order is given when the upload is completed."""
    return uploads.add_part(db, config, project, upload_id, data.file, attempt=sent)


@router.post("/{upload_id}/complete", responses=answers(404, 409))
def complete_upload(
    upload_id: UploadId, body: CompleteUpload, db: Db, config: Config, project: Project
) -> Upload:
    """Put the parts together; every row of the file is checked."""
    return uploads.complete(db, config, project, upload_id, body)


@router.post("/{upload_id}/cancel", responses=answers(404))
def cancel_upload(upload_id: UploadId, db: Db, config: Config, project: Project) -> Upload:
    """End an upload and forget its parts."""
    return uploads.cancel(db, config, project, upload_id)
