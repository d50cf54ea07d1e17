"""What a worker and its model host tell each other: JSON lines over one socket."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.inference import Event, Failed, HostKey, InferenceRequest

HOST_FILE = "host.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HostFile(_Frozen):
    """All that a host knows when it starts."""

    key: HostKey
    """What to load."""
    device: Literal["cpu", "cuda"]
    """Where to compute."""
    num_threads: int = Field(ge=1)
    """CPU threads to compute with."""
    most_adapters: int = Field(ge=1)
    """Adapters to keep attached."""
    niceness: int = Field(ge=0, le=19)
    """Added to the niceness of the process, so that training keeps its share of the CPU."""


class Ask(_Frozen):
    """Answer this."""

    kind: Literal["ask"] = "ask"
    request: InferenceRequest


class Cancel(_Frozen):
    """Nobody waits for this any more."""

    kind: Literal["cancel"] = "cancel"
    request_id: str


class Ready(_Frozen):
    """The model is loaded."""

    kind: Literal["ready"] = "ready"
    seconds: float


class Unusable(_Frozen):
    """The model could not be loaded; the host ends."""

    kind: Literal["unusable"] = "unusable"
    failed: Failed


class Reports(_Frozen):
    """Events of requests since the last message, by request id."""

    kind: Literal["reports"] = "reports"
    events: dict[str, tuple[Event, ...]]


ToHost = Annotated[Ask | Cancel, Field(discriminator="kind")]
FromHost = Annotated[Ready | Unusable | Reports, Field(discriminator="kind")]
TO_HOST: TypeAdapter[Ask | Cancel] = TypeAdapter(ToHost)
FROM_HOST: TypeAdapter[Ready | Unusable | Reports] = TypeAdapter(FromHost)


def line(message: BaseModel) -> bytes:
    return message.model_dump_json().encode() + b"\n"
