"""What endpoints with OpenAI's shapes ask for: repeated requests, limits, ids."""

from typing import Annotated

from fastapi import Depends, Header, Path, Query

from app.api.deps import IdempotencyKey
from app.services.openai.repeats import Attempt

_AFTER = "Id of the last item of the page before; the answer starts behind it."


def _attempt(
    idempotency_key: IdempotencyKey = None,
    x_stainless_retry_count: Annotated[
        str | None,
        Header(description="Set by OpenAI's clients: above 0 when they send a request again."),
    ] = None,
) -> Attempt:
    return Attempt(key=idempotency_key, is_repeat=(x_stainless_retry_count or "0") != "0")


Sent = Annotated[Attempt, Depends(_attempt)]
After = Annotated[str | None, Query(description=_AFTER, max_length=200)]
FineTuningJobId = Annotated[str, Path(description="Id of the job (ftjob-...).", max_length=64)]
FileId = Annotated[str, Path(description="Id of the file (file-...).", max_length=64)]
UploadId = Annotated[str, Path(description="Id of the upload (upload_...).", max_length=64)]
