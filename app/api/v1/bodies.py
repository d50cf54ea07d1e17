"""What bodies of OpenAI's have in common: what is taken, and what is refused by name."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.domain.groups import Label, as_mapping, nearest, shown
from app.domain.inference import Sampling

_MOST_STOPS = 4
# The smallest mass still takes the most likely token, which is what OpenAI's 0 does.
_LEAST_MASS = 1e-9
_MIN_SEED, _MAX_SEED = -(2**63), 2**63 - 1

StopText = Annotated[Label, Field(min_length=1, max_length=1000)]


class Only:
    """Marks a field of OpenAI's that is not available: only values that change nothing are taken.

    Args:
        values: Those values; null always is one.
    """

    def __init__(self, *values: object) -> None:
        self.values = values

    def takes(self, value: object) -> bool:
        # For Python, True is 1; for whoever sends it, it is not.
        return any(
            value == each and isinstance(value, bool) is isinstance(each, bool)
            for each in self.values
        )


class Body(BaseModel):
    """Base of the bodies: null means not given, and nothing is ignored in silence."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_known(cls, raw: Any) -> Any:
        given = as_mapping(raw)
        if given is None:
            return raw
        values = {name: value for name, value in given.items() if value is not None}
        for name, value in values.items():
            cls._require_available(name, value)
        return values

    @classmethod
    def _require_available(cls, name: str, value: object) -> None:
        if name not in cls.model_fields:
            raise PydanticCustomError(
                "unknown_key",
                "unknown key {key}; {hint}",
                {"key": shown(name), "hint": nearest(name, list(cls.model_fields))},
            )
        for marker in cls.model_fields[name].metadata:
            if isinstance(marker, Only) and not marker.takes(value):
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "{key} = {value} is not available in this version; leave it out{instead}",
                    {
                        "key": name,
                        "value": shown(repr(value)),
                        "instead": _instead(marker),
                    },
                )


def _instead(marker: Only) -> str:
    return f", or give {' or '.join(map(repr, marker.values))}" if marker.values else ""


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool = False
    """Send a last chunk that counts the tokens."""
    include_obfuscation: Annotated[Any, Only(False)] = None
    """Not available: nothing is padded."""


class SamplingBody(Body):
    """What both kinds of completions take."""

    model: Label = Field(min_length=1, max_length=400)
    """A base model, or the name of a fine-tuned one or of one of its checkpoints."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Longest answer in tokens."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 takes the most likely token each time."""
    top_p: float = Field(default=1.0, ge=0, le=1)
    """Least probability mass that tokens are taken from."""
    n: int = Field(default=1, ge=1, le=8)
    """Answers to each prompt."""
    stop: StopText | list[StopText] = Field(default=[], max_length=1000)
    """Up to four texts that end an answer; they are not part of it."""
    seed: int | None = Field(default=None, ge=_MIN_SEED, le=_MAX_SEED)
    """The same seed gives the same answer to the same request when it is answered alone."""
    stream: bool = False
    """Send the answer while it is made."""
    stream_options: StreamOptions | None = None
    """Options of a stream; only with `stream`."""
    user: Label | None = Field(default=None, max_length=512)
    """Whom you ask for, in your own words; it changes nothing."""
    frequency_penalty: Annotated[Any, Only(0)] = None
    """Not available: only 0."""
    presence_penalty: Annotated[Any, Only(0)] = None
    """Not available: only 0."""
    logit_bias: Annotated[Any, Only({})] = None
    """Not available: only empty."""

    @model_validator(mode="after")
    def _stops_and_options(self) -> Self:
        if isinstance(self.stop, list) and len(self.stop) > _MOST_STOPS:
            raise PydanticCustomError(
                "too_many_stops",
                "stop has {count} texts; give up to {most}",
                {"key": "stop", "count": len(self.stop), "most": _MOST_STOPS},
            )
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "without_stream",
                "stream_options is for streams only; give stream true, or leave it out",
                {"key": "stream_options"},
            )
        return self

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, *, max_tokens: int | None, top_logprobs: int | None) -> Sampling:
        """Return how tokens are chosen."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=max(self.top_p, _LEAST_MASS),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            seed=self.seed,
            n=self.n,
            top_logprobs=top_logprobs,
        )
