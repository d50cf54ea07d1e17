"""Rows of a data set as its file has them, beside which a page shows what became of them."""

import json
import time
from dataclasses import dataclass

from app.db.engine import Database
from app.domain import records
from app.domain.datasets import data_file
from app.domain.errors import InvalidInput, NotFound
from app.domain.records import BrokenFile
from app.domain.row_types import BadRow
from app.services import datasets
from app.settings import Settings

MAX_CHARACTERS = 20_000
# A file is read from its beginning; who looks at row ten million of one waits no longer.
MAX_SECONDS = 5.0


@dataclass(frozen=True)
class RawRow:
    """One row."""

    place: str
    """`line 3`, or `row 3` where the file has no lines."""
    text: str
    """The row as JSON, up to `MAX_CHARACTERS`; what is wrong with it where it is none."""
    num_characters: int
    """Characters of the whole row."""

    @property
    def is_cut(self) -> bool:
        return len(self.text) < self.num_characters


def at(
    db: Database, settings: Settings, project_id: str, dataset_id: str, offset: int
) -> RawRow | None:
    """Return the row behind `offset` others; None past the end of the file.

    Raises:
        NotFound: No such data set, or its file is gone.
        InvalidInput: The file breaks before the row, or the row is too far into it.
    """
    dataset = datasets.get(db, project_id, dataset_id)
    file = data_file(settings.datasets_folder, dataset)
    deadline = time.monotonic() + MAX_SECONDS
    found = records.read(file.path, container=file.container, compression=file.compression)
    try:
        for index, (number, record) in enumerate(found):
            if index == offset:
                return _raw(records.place(file.container, number), record)
            if time.monotonic() > deadline:
                raise InvalidInput(
                    f"row {offset + 1} is too far into the file to be looked up here: {index + 1}"
                    f" rows were read in {MAX_SECONDS:g} s; open the file itself",
                    param="offset",
                    code="row_too_far",
                )
    except BrokenFile as broken:
        raise InvalidInput(broken.message, param="offset", code="broken_file") from broken
    except FileNotFoundError as error:
        raise NotFound(
            f"the file of data set {dataset_id} is gone; upload it again", param="dataset_id"
        ) from error
    return None


def _raw(place: str, record: records.Record | BadRow) -> RawRow:
    if isinstance(record, BadRow):
        return RawRow(place, record.message, len(record.message))
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    # Half of a surrogate pair is valid JSON, and no page can be sent with one.
    text = text.encode("utf-8", "backslashreplace").decode()
    return RawRow(place, text[:MAX_CHARACTERS], len(text))
