"""The data sets of a job, checked when it is submitted: they exist, and their columns suit it."""

from collections.abc import Collection, Mapping

from sqlalchemy.orm import Session

from app.db import datasets as dataset_queries
from app.domain import rows
from app.domain.datasets import MAX_COLUMNS, Dataset
from app.domain.errors import InvalidInput, InvalidModel, NotFound
from app.domain.model_folder import ModelFolder
from app.domain.options import DatasetSpec
from app.domain.row_types import names_of
from app.domain.rows import COLUMNS, REQUIRED, RowFormat
from app.domain.spec import JobSpec

_NEED_A_TEMPLATE = ("chat", "sharegpt")


def require(session: Session, project_id: str, spec: JobSpec, model: ModelFolder) -> None:
    """Check that a job's data sets exist and can be read as the job says.

    Raises:
        NotFound: There is no such data set in the project.
        InvalidInput: Format or field mapping do not fit the columns.
        InvalidModel: The rows need a chat template and there is none.
    """
    options = spec.dataset
    dataset = _require_one(session, project_id, options.id, param="dataset.id")
    row_format = _format(dataset, options)
    _require_template(row_format, spec, model)
    _require_rows_left(dataset, options)
    if options.eval_id is not None:
        held_out = _require_one(session, project_id, options.eval_id, param="dataset.eval_id")
        _require_template(_format(held_out, options), spec, model)


def _require_one(session: Session, project_id: str, dataset_id: str, *, param: str) -> Dataset:
    dataset = dataset_queries.get(session, dataset_id, project_id=project_id)
    if dataset is None:
        raise NotFound(
            f"there is no data set {dataset_id}; upload it with POST /datasets",
            param=param,
            code="unknown_dataset",
        )
    return dataset


def _require_rows_left(dataset: Dataset, options: DatasetSpec) -> None:
    if options.val_size is not None and options.val_size >= max(dataset.num_rows, 1):
        raise InvalidInput(
            f"val_size = {options.val_size:g} holds out all of the {dataset.num_rows} rows of data"
            f" set {dataset.id}, which leaves none to train on; lower dataset.val_size",
            param="dataset.val_size",
            code="nothing_to_train_on",
        )


def _format(dataset: Dataset, options: DatasetSpec) -> RowFormat:
    mapping = options.field_mapping or {}
    _require_mapping(dataset, mapping, options.format)
    columns = rows.mapped(dict.fromkeys(dataset.columns, True), mapping).keys()
    found = rows.format_for(dataset.format, override=options.format, mapping=mapping)
    if found is None:
        found = rows.detect(columns)
    if found is None:
        raise InvalidInput(
            f"data set {dataset.id} has columns of no known format ({names_of(dataset.columns)});"
            " give dataset.format, one of " + ", ".join(REQUIRED) + ", and say in"
            ' dataset.field_mapping what its columns are called, like {"prompt": "question"}',
            param="dataset.format",
        )
    _require_columns(dataset, found, columns)
    return found


def _require_mapping(dataset: Dataset, mapping: Mapping[str, str], row_format: str) -> None:
    valid = {
        name for known, names in COLUMNS.items() if row_format in ("auto", known) for name in names
    }
    unknown = set(mapping) - valid
    if unknown:
        raise InvalidInput(
            f"field_mapping maps our column names to the data set's; {names_of(unknown)} is none"
            f" of ours, which are: {names_of(valid)}",
            param="dataset.field_mapping",
        )
    missing = set(mapping.values()) - set(dataset.columns)
    if missing and _are_all_columns_known(dataset):
        raise InvalidInput(
            f"field_mapping names {names_of(missing)}, which no row of data set {dataset.id} has;"
            f" its columns are: {names_of(dataset.columns)}",
            param="dataset.field_mapping",
        )


def _require_columns(dataset: Dataset, row_format: RowFormat, columns: Collection[str]) -> None:
    if row_format == dataset.format or not _are_all_columns_known(dataset):
        return
    missing = REQUIRED[row_format] - set(columns)
    # A chat may be a prompt and a completion of messages, which columns alone do not tell.
    may_be_chat = row_format == "chat" and REQUIRED["prompt-completion"] <= set(columns)
    if missing and not (may_be_chat and dataset.format is None):
        raise InvalidInput(
            f"{row_format} rows need {names_of(REQUIRED[row_format])}; data set {dataset.id} has"
            f" no {names_of(missing)} among its columns ({names_of(dataset.columns)}); name it in"
            " dataset.field_mapping, or give another dataset.format",
            param="dataset.format",
        )


def _are_all_columns_known(dataset: Dataset) -> bool:
    # Data sets from before columns were recorded have none.
    return 0 < len(dataset.columns) < MAX_COLUMNS


def _require_template(row_format: RowFormat, spec: JobSpec, model: ModelFolder) -> None:
    has_template = model.has_chat_template or spec.dataset.chat_template is not None
    if row_format in _NEED_A_TEMPLATE and not has_template:
        raise InvalidModel(
            f"model {spec.base_model} has no chat template, which {row_format} rows need; give one"
            " as dataset.chat_template, use prompt-completion rows, or a model with a template",
            param="base_model",
        )
