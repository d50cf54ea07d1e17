"""Previews of data sets: what a model will see of the rows, token by token."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field, TypeAdapter, ValidationError

from app.api.datasets import DatasetId
from app.api.deps import MAX_INT32, Db, Project, Reach
from app.api.errors import answers
from app.api.strict import StrictRoute
from app.domain import faults
from app.domain.errors import InvalidInput
from app.domain.groups import Label
from app.domain.options import ColumnName
from app.domain.previews import Preview
from app.domain.rows import RowFormat
from app.domain.spec import ModelName
from app.services import previews
from app.services.previews import MAX_LENGTH, MAX_ROWS, Wanted

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=StrictRoute)

_MODEL = "Model whose tokenizer and chat template are used (see `GET /models`)."
_MAPPING = 'Our column name -> the data set\'s, as JSON: {"prompt": "question"}.'
_FIELD_MAPPING: TypeAdapter[dict[str, str]] = TypeAdapter(
    Annotated[dict[ColumnName, ColumnName], Field(max_length=32)]
)


def _wanted(
    base_model: Annotated[ModelName, Query(description=_MODEL)],
    rows: Annotated[int, Query(description="Rows to show.", ge=1, le=MAX_ROWS)] = 5,
    offset: Annotated[int, Query(description="Rows to pass over.", ge=0, le=MAX_INT32)] = 0,
    format: Annotated[
        Literal["auto"] | RowFormat, Query(description="As `dataset.format` of a job.")
    ] = "auto",
    chat_template: Annotated[
        Label | None, Query(description="As `dataset.chat_template`.", min_length=1)
    ] = None,
    train_on_inputs: Annotated[bool, Query(description="As `dataset.train_on_inputs`.")] = False,
    max_length: Annotated[
        int, Query(description="As `dataset.max_length`.", ge=8, le=MAX_LENGTH)
    ] = 2048,
    on_too_long: Annotated[
        Literal["truncate", "drop", "fail"], Query(description="As `dataset.on_too_long`.")
    ] = "truncate",
    field_mapping: Annotated[str | None, Query(description=_MAPPING)] = None,
) -> Wanted:
    options = {
        "format": format,
        "chat_template": chat_template,
        "train_on_inputs": train_on_inputs,
        "max_length": max_length,
        "on_too_long": on_too_long,
        "field_mapping": None if field_mapping is None else _mapping(field_mapping),
    }
    return Wanted(base_model, offset, rows, options)


def _mapping(text: str) -> dict[str, str]:
    try:
        return _FIELD_MAPPING.validate_json(text)
    except ValidationError as error:
        raise InvalidInput(
            f"{faults.of(error.errors()[0], group='field_mapping').message};"
            " give an object of names as JSON, such as"
            ' {"prompt": "question"}',
            param="field_mapping",
            code="invalid_field_mapping",
        ) from error


@router.get("/{dataset_id}/preview", responses=answers(404))
def preview_dataset(
    dataset_id: DatasetId,
    wanted: Annotated[Wanted, Depends(_wanted)],
    db: Db,
    reach: Reach,
    project: Project,
) -> Preview:
    """Show rows as text and tokens, and which tokens a job would train on."""
    return previews.preview(db, reach, project, dataset_id, wanted)
