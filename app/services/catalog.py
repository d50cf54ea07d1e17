"""What there is to train with: base models, presets and workers."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from app.db import workers as worker_queries
from app.db.engine import Database
from app.domain import model_folder
from app.domain.errors import InvalidModel, NotFound
from app.domain.model_folder import ModelFolder
from app.domain.spec import JobSpec
from app.domain.workers import Capability, DeviceKind, Worker, missing
from app.settings import Settings


class Model(BaseModel):
    """A base model in the models folder."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    object: str = "model"
    """Always `model`."""
    id: str
    """Name to give as `base_model`."""
    usable: bool
    """False when a job with it would be refused; `problem` says why."""
    problem: str | None
    """What makes it unusable."""
    architecture: str | None
    """Class name in its config.json."""
    model_type: str | None
    """`model_type` of its config.json."""
    has_chat_template: bool
    """True when its tokenizer has a chat template, which chat data needs."""
    bytes: int
    """Size of its files in bytes."""


def list_models(settings: Settings) -> list[Model]:
    """Describe every model under `models/`, in `name` or in `org/name`, unusable ones too."""
    return [_describe(name, folder) for name, folder in _folders(settings)]


def model_names(settings: Settings) -> list[str]:
    """Return the names of the models that a worker with this home can load."""
    return [model.id for model in list_models(settings) if model.usable]


def require_model(settings: Settings, name: str) -> ModelFolder:
    """Return a base model that a job may use.

    Raises:
        NotFound: No such folder.
        InvalidModel: The folder is not safe or not complete.
    """
    folder = settings.models_folder / name
    if not folder.is_dir():
        known = ", ".join(there for there, _ in _folders(settings)) or "none yet"
        hub = "models are not loaded from a hub; " if "/" in name else ""
        raise NotFound(
            f"base model {name} is not in the models folder (there: {known}); {hub}"
            "add it with `lorad models add`",
            param="base_model",
            code="unknown_model",
        )
    try:
        return model_folder.inspect(folder)
    except InvalidModel as error:
        raise InvalidModel(error.message, param="base_model") from error


def list_workers(db: Database, settings: Settings) -> Sequence[Worker]:
    """Return the workers that are alive."""
    with db.read() as session:
        return worker_queries.alive(session, within_seconds=settings.lease_seconds)


def waiting_for(workers: Sequence[Worker], spec: JobSpec) -> str | None:
    """Say why a queued job has not started; None when a worker is free to take it."""
    if not workers:
        return "no worker is running; start one with `lorad worker` (or everything with `lorad up`)"
    lacks = [(worker, missing(capability_of(worker), spec)) for worker in workers]
    able = [worker for worker, lack in lacks if lack is None]
    if not able:
        return f"no worker has {lacks[0][1]}"
    if all(worker.busy_slots >= worker.slots for worker in able):
        return "every worker that can run it is busy"
    return None


def capability_of(worker: Worker) -> Capability:
    kinds: dict[DeviceKind, None] = dict.fromkeys(device.kind for device in worker.devices)
    return Capability(device_kinds=tuple(kinds), models=tuple(worker.models))


def _folders(settings: Settings) -> list[tuple[str, Path]]:
    """Return name and folder of every model; a folder that only holds folders is an organization.

    An organization without a model in it is shown as a model that is broken, which it may be.
    """
    found: list[tuple[str, Path]] = []
    for path in _inside(settings.models_folder):
        inner = [] if _holds_files(path) else _inside(path)
        found += [(f"{path.name}/{each.name}", each) for each in inner] or [(path.name, path)]
    return found


def _holds_files(folder: Path) -> bool:
    try:
        return any(each.is_file() for each in folder.iterdir())
    except OSError:
        return True  # what cannot be read is shown as a model that is broken


def _inside(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(path for path in found if not path.name.startswith("."))


def _describe(name: str, folder: Path) -> Model:
    try:
        found = model_folder.inspect(folder)
    except InvalidModel as error:
        return Model(
            id=name,
            usable=False,
            problem=error.message,
            architecture=None,
            model_type=None,
            has_chat_template=False,
            bytes=0,
        )
    return Model(
        id=name,
        usable=True,
        problem=None,
        architecture=found.architecture,
        model_type=found.model_type,
        has_chat_template=found.has_chat_template,
        bytes=found.bytes,
    )
