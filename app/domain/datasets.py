"""Data sets as the API shows them."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.domain.rows import RowFormat

Container = Literal["jsonl", "json", "csv", "parquet"]
Compression = Literal["gz", "zst"]
OnBadRows = Literal["refuse", "keep"]
REPORT_FILE = "report.json"
MAX_COLUMNS = 50


class Dataset(BaseModel):
    """An uploaded data set; its content never changes."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: Literal["dataset"] = "dataset"
    """Always `dataset`."""
    id: str
    """Id to give as `dataset.id` of a job."""
    project_id: str
    """Project that owns it."""
    name: str
    """Label given at the upload; the file's name when none was given."""
    filename: str
    """Name of the uploaded file."""
    bytes: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""
    num_rows: int
    """Rows in the file, blank lines not counted."""
    format: RowFormat | None
    """Row format found by the columns; null when they are those of no known format, so that a job
    has to name one (`dataset.format`, `dataset.field_mapping`)."""
    container: Container = "jsonl"
    """Kind of file: jsonl, json (an array), csv or parquet."""
    compression: Compression | None = None
    """gz or zst; null when the file is not compressed."""
    columns: list[str] = []
    """Keys found in the rows, at most 50."""
    num_bad_rows: int = 0
    """Rows that cannot be trained on; only uploads with on_bad_rows=keep have any."""
    ignored_keys: list[str]
    """Keys of rows that the format does not use; they are stored and change nothing."""
    created_at: datetime
    """Time of the upload, UTC."""
    expires_at: datetime | None = None
    """Time from which on it cannot be used any more, UTC; null is never."""


class RowProblem(BaseModel):
    """A row that cannot be trained on, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    number: int
    """Line of a JSONL or CSV file, row of any other, from 1."""
    reason: str
    """Stable name of the kind of fault: bad_json, missing_key, ..."""
    message: str
    """What is wrong and what to do."""


class DatasetReport(BaseModel):
    """What the check at the upload found; stored beside the data as report.json."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    bytes: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""
    num_rows: int
    """Rows in the file, blank lines not counted."""
    format: RowFormat | None
    """Row format of every row; null when the columns are those of no known format."""
    container: Container = "jsonl"
    """Kind of file."""
    compression: Compression | None = None
    """How the file is compressed."""
    columns: list[str] = []
    """Keys found in the rows, at most 50."""
    num_bad_rows: int = 0
    """Rows that cannot be trained on."""
    ignored_keys: list[str]
    """Keys of rows that the format does not use."""
    problems: list[RowProblem] = []
    """The first 100 rows that cannot be trained on, in the order of the file."""


class DataFile(BaseModel):
    """A stored data set, as much of it as whoever reads the rows needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    sha256: str
    format: RowFormat | None
    container: Container = "jsonl"
    compression: Compression | None = None


def data_file(datasets_folder: Path, dataset: Dataset) -> DataFile:
    return DataFile(
        path=datasets_folder / dataset.id / data_file_name(dataset.container, dataset.compression),
        sha256=dataset.sha256,
        format=dataset.format,
        container=dataset.container,
        compression=dataset.compression,
    )


def data_file_name(container: Container, compression: Compression | None) -> str:
    return f"data.{container}" + (f".{compression}" if compression else "")
