"""A job in the making from another tool's configuration, and the fate of each of its keys."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import ValidationError

from app.domain import consistency, faults
from app.domain.errors import InvalidInput
from app.domain.groups import nearest, shown
from app.domain.spec import JobSpec

Kind = Literal["carried", "changed", "filled", "dropped", "lost"]

# Stands for the data set while a job with a path is checked.
_SOME_DATASET = "ds-" + "0" * 24
# Values with which a key says that it wants nothing.
_UNSET: tuple[object, ...] = (None, "", False, 0, [], {})


@dataclass(frozen=True)
class Fate:
    """What became of one key.

    Args:
        key: The key as the other tool has it; of a list or a group with its place.
        value: Its value; of a default that was filled in, the default.
        kind: `carried`: same value, maybe under another name; `changed`: the job says the same with
            another value; `filled`: not given, and the other tool's default is not ours; `dropped`:
            the result does not depend on it; `lost`: it does, and the job cannot say it.
        target: Dotted path in the job.
        note: What was changed and how, or why it was left out and what to do.
    """

    key: str
    value: object
    kind: Kind
    target: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Conversion:
    """A job as `lorad submit` takes it, and what became of every key."""

    tool: str
    spec: Mapping[str, Any]
    fates: Sequence[Fate]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was lost."""
        return all(fate.kind != "lost" for fate in self.fates)


@dataclass
class Draft:
    """The job so far; rules write into it with `put` and say what they did with the others."""

    tool: str
    given: Mapping[str, Any]
    spec: dict[str, Any] = field(default_factory=dict[str, Any])
    fates: list[Fate] = field(default_factory=list[Fate])

    def put(
        self, key: str, path: str, value: object, *, note: str = "", given: object = None
    ) -> None:
        """Write a value to the job; with a note it counts as changed."""
        group, _, name = path.rpartition(".")
        target = cast(dict[str, Any], self.spec.setdefault(group, {})) if group else self.spec
        target[name] = value
        kind: Kind = "changed" if note else "carried"
        found = self.given.get(key, value) if given is None else given
        self.fates.append(Fate(key, found, kind, path, note))

    def fill(self, path: str, value: object, *, key: str, why: str = "") -> None:
        """Write the other tool's default of a key that was not given."""
        if self.get(path) is None:
            self.put(key, path, value)
            note = why or f"not given; it is {shown(value)} in {self.tool}"
            self.fates[-1] = Fate(key, value, "filled", path, note)

    def drop(self, key: str, note: str, *, value: object = None) -> None:
        self.fates.append(Fate(key, self._value(key, value), "dropped", None, note))

    def lose(self, key: str, note: str, *, value: object = None) -> None:
        self.fates.append(Fate(key, self._value(key, value), "lost", None, note))

    def get(self, path: str) -> Any:
        group, _, name = path.rpartition(".")
        return (self.spec.get(group, {}) if group else self.spec).get(name)

    def remove(self, path: str, kind: Kind, note: str) -> bool:
        """Take back what was written to a path; False where no key wrote it."""
        group, _, name = path.rpartition(".")
        owner = self.spec.get(group, {}) if group else self.spec
        if name not in owner:
            return False
        del owner[name]
        if not owner and group:
            del self.spec[group]
        for index, fate in enumerate(self.fates):
            if fate.target == path or (fate.target or "").startswith(f"{path}."):
                self.fates[index] = Fate(fate.key, fate.value, kind, None, note)
        return True

    def _value(self, key: str, value: object) -> object:
        return self.given.get(key) if value is None else value


Rule = Callable[[Draft, str, Any], None]


def to(path: str, *, whole: bool = False) -> Rule:
    """Make a rule that writes the value as it is; `whole` makes 3.0 the number 3."""

    def carry(draft: Draft, key: str, value: Any) -> None:
        is_float = isinstance(value, float) and math.isfinite(value) and value.is_integer()
        draft.put(key, path, int(value) if whole and is_float else value)

    return carry


def without_effect(note: str) -> Rule:
    """Make a rule for a key that the result does not depend on."""
    return lambda draft, key, _value: draft.drop(key, note)


def not_here(note: str, *, harmless: Sequence[object] = ()) -> Rule:
    """Make a rule for a key that matters and that a job cannot say, unless it says nothing."""

    def lose(draft: Draft, key: str, value: Any) -> None:
        if _is_one_of(value, harmless) or _is_one_of(value, _UNSET):
            draft.drop(key, "it says what happens here anyway")
        else:
            draft.lose(key, note)

    return lose


def apply(draft: Draft, rules: Mapping[str, Rule]) -> None:
    """Give every key its fate; what no rule knows is lost, with the nearest key that one does."""
    for key, value in draft.given.items():
        if value is None:
            draft.drop(key, "it is not set")
        elif key in rules:
            num_told = len(draft.fates)
            rules[key](draft, key, value)
            if len(draft.fates) == num_told:
                _tell_of_nothing(draft, key, value)
        else:
            hint = nearest(key, sorted(rules))
            draft.lose(
                key,
                f"it is no key of {draft.tool} that is known here"
                + (f"; {hint}" if hint.startswith("did you mean") else ""),
            )


def _tell_of_nothing(draft: Draft, key: str, value: Any) -> None:
    """Account for a value of parts that has none, or is not made of parts."""
    if _is_one_of(value, _UNSET):
        draft.drop(key, "it says nothing")
    else:
        draft.lose(key, f"{shown(value)} is not what {draft.tool} takes here")


def finish(draft: Draft) -> Conversion:
    """Check the job as `lorad submit` does; what it refuses is taken back, with the reason.

    Raises:
        InvalidInput: What is left is no job: a key that it needs is missing or wrong.
    """
    if "path" not in draft.spec.get("dataset", {}):
        raise InvalidInput("no job can be made of it: it names no data set", param="dataset")
    while True:
        fault = _first_fault(draft.spec)
        if fault is None:
            return Conversion(draft.tool, draft.spec, tuple(draft.fates))
        path, message, code = fault
        kind: Kind = "dropped" if code == "nothing_to_evaluate" else "lost"
        if path is None or not draft.remove(path, kind, f"a job cannot have it: {message}"):
            raise InvalidInput(f"no job can be made of it: {message}", param=path)


def _first_fault(spec: Mapping[str, Any]) -> tuple[str | None, str, str] | None:
    checked = dict(spec)
    dataset = {key: value for key, value in spec.get("dataset", {}).items() if key != "path"}
    checked["dataset"] = {"id": _SOME_DATASET, **dataset}
    try:
        consistency.require(JobSpec.model_validate(checked))
    except ValidationError as error:
        found = faults.of(error.errors()[0], whole="the job")
        return _path(found.param), found.message, found.code
    except InvalidInput as error:
        return error.param, error.message, error.code
    return None


def _path(param: str | None) -> str | None:
    """Return the key of the job at fault, without a place inside its value."""
    if param is None:
        return None
    group, _, rest = param.partition(".")
    is_group = group in ("lora", "quantization", "dataset", "training", "resources", "monitoring")
    return f"{group}.{rest.partition('.')[0]}" if is_group and rest else group


def _is_one_of(value: object, values: Sequence[object]) -> bool:
    # 0 == False in Python, and that is what is wanted: both switch a key off.
    return any(value == each for each in values)
