"""Data sets: upload, list, show, delete."""

from pathlib import PurePath
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Path, Request, UploadFile, status

from app.api.deps import Config, DatasetAfter, Db, IdempotencyKey, Limit, Project
from app.api.errors import answers
from app.api.schemas import Deleted, Page, page_of
from app.api.strict import StrictRoute, require_known
from app.domain.datasets import Dataset, OnBadRows
from app.domain.groups import Name, printable
from app.services import datasets

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=StrictRoute)

_FILE = "Rows as JSONL, a JSON array, CSV with a header, or Parquet; plain, .gz or .zst."
DatasetId = Annotated[str, Path(description="Id of the data set.", max_length=64)]


async def _require_one_file(request: Request) -> None:
    form = await request.form()  # read already: this is what the endpoint gets
    given = [name for name, _ in form.multi_items()]
    require_known(given, ["file", "name", "on_bad_rows"], what="form field")


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    responses=answers(409, 413),
    dependencies=[Depends(_require_one_file)],
)
def upload_dataset(
    db: Db,
    config: Config,
    project: Project,
    file: Annotated[UploadFile, File(description=_FILE)],
    name: Annotated[
        Name | None,
        Form(description="A label; the file's name when not given.", max_length=200),
    ] = None,
    on_bad_rows: Annotated[
        OnBadRows,
        Form(
            description="What rows that cannot be trained on do: `refuse` the file, naming the"
            " first ones, or be kept and counted, so that jobs leave them out."
        ),
    ] = "refuse",
    idempotency_key: IdempotencyKey = None,
) -> Dataset:
    """Store a data set; every row is checked."""
    filename = PurePath(printable(file.filename or "")).name[:255] or "data.jsonl"
    return datasets.upload(
        db,
        config,
        project,
        file.file,
        name=name or filename[:200],
        filename=filename,
        on_bad_rows=on_bad_rows,
        idempotency_key=idempotency_key,
    )


@router.get("", responses=answers())
def list_datasets(
    db: Db, project: Project, after: DatasetAfter, limit: Limit = 20
) -> Page[Dataset]:
    """List data sets, newest first."""
    return page_of(datasets.page(db, project, after=after, limit=limit + 1), limit)


@router.get("/{dataset_id}", responses=answers(404))
def get_dataset(dataset_id: DatasetId, db: Db, project: Project) -> Dataset:
    """Show a data set."""
    return datasets.get(db, project, dataset_id)


@router.delete("/{dataset_id}", responses=answers(404, 409))
def delete_dataset(dataset_id: DatasetId, db: Db, config: Config, project: Project) -> Deleted:
    """Remove a data set that belongs to no job."""
    datasets.delete(db, config, project, dataset_id)
    return Deleted(id=dataset_id, object="dataset")
