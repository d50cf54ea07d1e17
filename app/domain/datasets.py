"""Data sets as the API shows them."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.domain.rows import RowFormat

DATA_FILE = "data.jsonl"
REPORT_FILE = "report.json"


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
    format: RowFormat
    """Row format: chat, prompt-completion or text."""
    ignored_keys: list[str]
    """Keys of rows that the format does not use; they are stored and change nothing."""
    created_at: datetime
    """Time of the upload, UTC."""


class DatasetReport(BaseModel):
    """What the check at the upload found; stored beside the data as report.json."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    bytes: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""
    num_rows: int
    """Rows in the file, blank lines not counted."""
    format: RowFormat
    """Row format of every row."""
    ignored_keys: list[str]
    """Keys of rows that the format does not use."""


def data_file(datasets_folder: Path, dataset_id: str) -> Path:
    return datasets_folder / dataset_id / DATA_FILE
