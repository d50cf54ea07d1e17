"""Previews: rows of a data set as the model will see them, token by token."""

from pydantic import BaseModel, ConfigDict

from app.domain.receipts import LineProblem
from app.domain.row_types import RowFormat


class PreviewToken(BaseModel):
    """One token."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: int
    """Token id."""
    text: str
    """What it stands for; a character made of several tokens is the text of the last of them."""
    is_target: bool
    """Whether the loss is computed on it."""


class PreviewRow(BaseModel):
    """One line of the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    line: int
    """Line of the file, from 1, on which the row begins; for JSON arrays and Parquet the number of
    the row."""
    text: str | None
    """The row as the chat template writes it; null where that could not be done."""
    tokens: tuple[PreviewToken, ...]
    """The tokens that are trained on, in their order; none when the row is left out."""
    num_tokens: int
    """Tokens that are trained on."""
    num_targets: int
    """Of those, the ones that the loss is computed on."""
    num_tokens_cut: int
    """Tokens lost by truncation."""
    is_truncated: bool
    """Whether its end is cut off."""
    ends_turn: bool | None
    """Whether every assistant turn ends in a special token, so that the model learns to stop; null
    where there are no turns."""
    problem: LineProblem | None
    """Why it is cut or left out."""


class Preview(BaseModel):
    """The first rows of a data set, or those from an offset on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset_id: str
    """Id of the data set."""
    base_model: str
    """Model whose tokenizer and chat template were used."""
    format: RowFormat | None
    """Format that all rows were read as; null where the columns of each row decide."""
    offset: int
    """Rows before the first one shown."""
    rows: tuple[PreviewRow, ...]
    """The rows, those that cannot be used included."""
    has_more: bool
    """Whether there are rows behind the last one."""
