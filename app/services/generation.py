"""Answers of a job's checkpoints, its final adapter or its base model, given by a worker."""

import time
from collections.abc import Sequence
from typing import Literal

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field

from app.db import checkpoints as checkpoint_queries
from app.db.engine import Database
from app.domain.errors import InvalidInput, NotFound
from app.domain.groups import Label
from app.domain.inference import ChatPrompt, Sampling
from app.services import checkpoints, inference, jobs, named_models
from app.services.inference import Line
from app.services.named_models import NamedModel
from app.settings import Settings

BASE = named_models.BASE
_MAX_PROMPTS = 16


class Turn(BaseModel):
    """One turn of a conversation to continue."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks."""
    content: Label = Field(min_length=1)
    """What is said."""


class GenerateBody(BaseModel):
    """Conversations to continue with a job's adapter or with its base model."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    messages: list[list[Turn]] = Field(min_length=1, max_length=_MAX_PROMPTS)
    """Conversations; each ends with a user turn and gets one answer."""
    checkpoint: int | str = checkpoints.LATEST
    """A step, `latest`, `best`, the id of a checkpoint, `final`, or `base`: the model without
    adapter."""
    max_new_tokens: int = Field(default=64, ge=1, le=1024)
    """Longest answer in tokens."""


class Generation(BaseModel):
    """Answers of a model."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: str = "generation"
    """Always `generation`."""
    checkpoint: str
    """What answered: `base`, `final`, or `step N`."""
    answers: list[str]
    """One answer for each conversation, in their order."""
    seconds: float
    """Time from the question to the last answer in seconds."""


async def generate(line: Line, project_id: str, job_id: str, body: GenerateBody) -> Generation:
    """Let a worker answer conversations, taking the most likely token each time.

    Raises:
        NotFound: No such job or checkpoint.
        CheckpointUnusable: The checkpoint does not verify.
        InvalidInput: A conversation leaves nothing to answer, or is longer than the context.
        RateLimited: As many requests as may wait do.
        Unavailable: No worker is running, or it failed.
    """
    began = time.monotonic()
    _require_user_turns(body.messages)
    model = await to_thread.run_sync(
        named, line.db, line.settings, project_id, job_id, str(body.checkpoint)
    )
    sampling = Sampling(max_tokens=body.max_new_tokens, temperature=0)
    requests = [
        inference.request_of(model, _prompt(turns, model), sampling) for turns in body.messages
    ]
    _, found = await inference.answer(line, requests)
    return Generation(
        checkpoint=model.label,
        answers=[answer.text.strip() for (answer,) in found],
        seconds=time.monotonic() - began,
    )


def named(db: Database, settings: Settings, project_id: str, job_id: str, which: str) -> NamedModel:
    """Find what is asked: a step, `latest`, `best`, the id of a checkpoint, `final`, or `base`.

    Raises:
        NotFound: No such job or checkpoint.
        CheckpointUnusable: The checkpoint does not verify.
    """
    if which == checkpoints.LATEST:
        with db.read() as session:
            jobs.require(session, project_id, job_id)
            newest = checkpoint_queries.latest(session, job_id)
        if newest is None:
            raise NotFound(
                f"job {job_id} has no checkpoint yet; ask `base`, or wait for its first",
                param="checkpoint",
                code="no_checkpoint",
            )
    return named_models.of_job(db, settings, project_id, job_id, which)


def _require_user_turns(prompts: Sequence[Sequence[Turn]]) -> None:
    """Refuse conversations that leave nothing to answer.

    Raises:
        InvalidInput: A conversation is empty or does not end with a user turn.
    """
    for index, prompt in enumerate(prompts):
        if not prompt or prompt[-1].role != "user":
            raise InvalidInput(
                "a conversation must end with a user turn", param=f"messages.{index}"
            )


def _prompt(turns: Sequence[Turn], model: NamedModel) -> ChatPrompt:
    return ChatPrompt(
        messages=tuple({"role": turn.role, "content": turn.content} for turn in turns),
        chat_template=model.chat_template,
    )
