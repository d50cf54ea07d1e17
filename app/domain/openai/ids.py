"""Ids as OpenAI writes them, and ours: the same thing under two names, each made from the other.

A job's `job-<tail>` is `ftjob-<tail>`, a data set's `ds-<tail>` is `file-<tail>`, a checkpoint's
`ckpt-<tail>` is `ftckpt_<tail>`. The file of a job's results has the job's tail: `file-r<tail>`.
"""

import re
from typing import Literal

Kind = Literal["job", "ds", "ckpt", "upload", "part"]

_SHOWN: dict[Kind, str] = {
    "job": "ftjob-",
    "ds": "file-",
    "ckpt": "ftckpt_",
    "upload": "upload_",
    "part": "part_",
}
_TAIL = re.compile(r"[0-9a-f]{24}")
_RESULTS = "file-r"
_OWN = re.compile(r"(?<![\w-])(?:job|ds|ckpt)-[0-9a-f]{24}(?![\w-])")


def show(own_id: str) -> str:
    """Return OpenAI's form of an id of ours."""
    kind, _, tail = own_id.partition("-")
    return _SHOWN[kind] + tail  # type: ignore[index]


def read(shown_id: str, kind: Kind) -> str | None:
    """Return our form of an id that a client sent; None when it is none of this kind."""
    prefix = _SHOWN[kind]
    tail = shown_id[len(prefix) :]
    if not shown_id.startswith(prefix) or not _TAIL.fullmatch(tail):
        return None
    return f"{kind}-{tail}"


def show_results(job_id: str) -> str:
    """Return the id of the file that a job's results are in."""
    return _RESULTS + job_id.partition("-")[2]


def read_results(shown_id: str) -> str | None:
    """Return the id of the job whose results a file holds; None when it is no such file."""
    tail = shown_id.removeprefix(_RESULTS)
    if not shown_id.startswith(_RESULTS) or not _TAIL.fullmatch(tail):
        return None
    return f"job-{tail}"


def reworded(message: str) -> str:
    """Return a message with the ids in it as OpenAI's clients know them."""
    return _OWN.sub(lambda found: show(found[0]), message)
