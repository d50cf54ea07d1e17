"""Previews of data sets: a worker shows how rows become tokens, also while it trains."""

from dataclasses import dataclass, field
from typing import Any

from app.db.engine import Database
from app.domain.datasets import data_file
from app.domain.options import DatasetSpec
from app.domain.previews import Preview
from app.domain.rows import format_for
from app.domain.tools import PreviewRequest, PreviewResult
from app.services import catalog, datasets, tools
from app.services.jobs import Outside

MAX_ROWS = 50
# Every token is part of the answer.
MAX_LENGTH = 32_768


@dataclass(frozen=True)
class Wanted:
    """Which rows to show, and keys of a job's `dataset` that say how they become tokens."""

    base_model: str
    offset: int = 0
    num_rows: int = 5
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def preview(
    db: Database, outside: Outside, project_id: str, dataset_id: str, wanted: Wanted
) -> Preview:
    """Let a worker show rows of a data set as a job with these options would train on them.

    Raises:
        NotFound: No such data set or base model.
        InvalidInput: The file as a whole cannot be used, or not with this model.
        NoWorker: No worker is running.
        Unavailable: The worker failed or took too long, or enough others are being answered.
    """
    settings = outside.settings
    dataset = datasets.get(db, project_id, dataset_id)
    model = catalog.require_model(settings, wanted.base_model)
    options = DatasetSpec.model_validate({"id": dataset.id, **wanted.options})
    request = PreviewRequest(
        model_folder=model.path,
        dataset=data_file(settings.datasets_folder, dataset),
        options=options,
        offset=wanted.offset,
        num_rows=wanted.num_rows,
    )
    with tools.place_for_a_call():
        result = tools.ask(db, outside, request, PreviewResult)
    return Preview(
        dataset_id=dataset.id,
        base_model=wanted.base_model,
        format=format_for(dataset.format, override=options.format, mapping=options.field_mapping),
        offset=wanted.offset,
        rows=result.rows,
        has_more=result.has_more,
    )
