"""Forms of OpenAI's: files with a purpose and a time to live, and parts of files."""

from pathlib import PurePath
from typing import Annotated

from fastapi import Depends, Form, Request, UploadFile

from app.api.strict import require_known
from app.domain.errors import InvalidInput
from app.domain.groups import printable
from app.domain.openai.requests import MAX_FILE_SECONDS, MIN_FILE_SECONDS

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"


async def require_file_form(request: Request) -> None:
    """Refuse forms with fields that nobody looks at, or with one given twice."""
    await _require(request, ["file", "purpose", _ANCHOR, _SECONDS])


async def require_part_form(request: Request) -> None:
    """Refuse forms with anything but one part."""
    await _require(request, ["data"])


def expires_seconds(
    anchor: Annotated[
        str | None, Form(alias=_ANCHOR, description="Always `created_at`.", max_length=64)
    ] = None,
    seconds: Annotated[
        int | None,
        Form(
            alias=_SECONDS,
            description="Life of the file in seconds, an hour to 30 days.",
        ),
    ] = None,
) -> int | None:
    """Return how long a file lives; None is for ever.

    Raises:
        InvalidInput: Only one of the two is given, the anchor is another one, or the time is too
            short or too long.
    """
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at" or seconds is None:
        raise InvalidInput(
            "expires_after needs anchor = created_at and seconds; give both, or leave it out",
            param="expires_after",
        )
    if not MIN_FILE_SECONDS <= seconds <= MAX_FILE_SECONDS:
        raise InvalidInput(
            f"expires_after.seconds must be {MIN_FILE_SECONDS} to {MAX_FILE_SECONDS},"
            f" got {seconds}",
            param="expires_after.seconds",
        )
    return seconds


def filename_of(file: UploadFile) -> str:
    """Return the name of an uploaded file, without folders and what cannot be stored."""
    return PurePath(printable(file.filename or "")).name[:255] or "data.jsonl"


async def _require(request: Request, names: list[str]) -> None:
    form = await request.form()  # read already: this is what the endpoint gets
    require_known([name for name, _ in form.multi_items()], names, what="form field")


Lifetime = Annotated[int | None, Depends(expires_seconds)]
