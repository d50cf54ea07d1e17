"""Models by their names: a base model, what a job made of it, or one of its checkpoints."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.db.engine import Database
from app.domain import ids, model_names
from app.domain.errors import CheckpointUnusable, InvalidModel, NotFound
from app.domain.groups import shown
from app.domain.inference import Adapter, HostKey
from app.domain.runs import FINAL_FOLDER, attempt_folder
from app.domain.spec import JobSpec, ModelName
from app.services import catalog, checkpoints, jobs
from app.settings import Settings

NO_SUCH_MODEL = "model_not_found"
BASE = "base"
FINAL = checkpoints.FINAL
_MODEL_NAME: TypeAdapter[str] = TypeAdapter(ModelName)
_CONFIG_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class NamedModel:
    """A model that can be asked.

    Args:
        host: What a model host loads for it.
        adapter: The verified adapter on top; None for a base model.
        base_model: Name of the base model.
        chat_template: Template that the job was given; None means the tokenizer's own.
        has_chat_template: Whether there is any template to write conversations with.
        label: What it is, in words: `base`, `final`, or `step N`.
        job_id: The job that made it, or that loads its base model so; None for a base model.
    """

    host: HostKey
    adapter: Adapter | None
    base_model: str
    chat_template: str | None
    has_chat_template: bool
    label: str
    job_id: str | None = None

    @property
    def fingerprint(self) -> str:
        """Name of what answers: base model, how it is loaded, and the adapter."""
        folder = self.host.model_folder
        base = f"fp_{_fingerprint(self.host.digest, folder, _listing(folder))}"
        return base if self.adapter is None else f"{base}-{self.adapter.name}"


def resolve(db: Database, settings: Settings, project_id: str, name: str) -> NamedModel:
    """Find a model by the id of a base model, by a fine-tuned name, or by a job's id.

    Names of the second kind are `ft:BASE:ORGANIZATION:SUFFIX:ID` with an optional `:ckpt-step-N`,
    `:latest` or `:best`; of the third, a job's id with an optional `:STEP`, `:latest`, `:best`,
    `:final`, or `:base` for the base model as the job loads it.

    Raises:
        NotFound: There is no such model; its code is `model_not_found`, its param `model`.
        CheckpointUnusable: Its files do not verify.
        InvalidModel: The folder of the base model is not safe or not complete.
    """
    try:
        asked = _base_of_job(name) or model_names.parse(name)
        if asked is None:
            return _base(settings, name)
        job_id, which = asked.job_id, str(asked.which)
        return of_job(db, settings, project_id, job_id, which)
    except NotFound as error:
        message = f"there is no model {shown(name)}: {error.message}"
        raise NotFound(message, param="model", code=NO_SUCH_MODEL) from error
    except (CheckpointUnusable, InvalidModel) as error:
        raise type(error)(error.message, param="model", code=error.code) from error


def of_job(
    db: Database, settings: Settings, project_id: str, job_id: str, which: str
) -> NamedModel:
    """Find what a job made.

    Args:
        which: `base`, `final`, `latest`, `best`, a step, or the id of a checkpoint.

    Raises:
        NotFound: The job has no such thing, or there is no such job or base model.
        CheckpointUnusable: Its files do not verify.
        InvalidModel: The folder of the base model is not safe or not complete.
    """
    with db.read() as session:
        spec = JobSpec.model_validate(jobs.require(session, project_id, job_id).spec)
    model = catalog.require_model(settings, spec.base_model)
    adapter, label = _adapter(db, settings, project_id, job_id, which)
    return NamedModel(
        host=HostKey(
            model_folder=model.path,
            dtype=spec.training.dtype,
            quantization=spec.quantization,
        ),
        adapter=adapter,
        base_model=spec.base_model,
        chat_template=spec.dataset.chat_template,
        has_chat_template=model.has_chat_template or spec.dataset.chat_template is not None,
        label=label,
        job_id=job_id,
    )


@dataclass(frozen=True)
class _BaseOfJob:
    job_id: str
    which: str = BASE


def _base_of_job(name: str) -> _BaseOfJob | None:
    job_id, _, which = name.partition(":")
    return _BaseOfJob(job_id) if which == BASE and ids.is_id(job_id, "job") else None


def _base(settings: Settings, name: str) -> NamedModel:
    try:
        _MODEL_NAME.validate_python(name)
    except ValidationError as error:
        # Only names reach the disk.
        raise NotFound("it is no name of a model here; see GET /v1/models") from error
    model = catalog.require_model(settings, name)
    return NamedModel(
        host=HostKey(model_folder=model.path),
        adapter=None,
        base_model=name,
        chat_template=None,
        has_chat_template=model.has_chat_template,
        label=BASE,
    )


def _adapter(
    db: Database, settings: Settings, project_id: str, job_id: str, which: str
) -> tuple[Adapter | None, str]:
    if which == BASE:
        return None, BASE
    if which == FINAL:
        return _final(db, settings, project_id, job_id), FINAL
    found = checkpoints.get(db, project_id, job_id, which)
    folder = checkpoints.folder_of(settings, found)
    if found.status == "corrupt" or not _verified.has(folder, found.manifest_sha256):
        before = _listing(folder)
        checkpoints.require_good(db, settings, found)
        _verified.add(folder, found.manifest_sha256, before)
    return Adapter(name=found.id, folder=folder), f"step {found.step}"


def _final(db: Database, settings: Settings, project_id: str, job_id: str) -> Adapter:
    with db.read() as session:
        row = jobs.require(session, project_id, job_id)
        attempt, state, sha256 = row.final_attempt, row.state, row.final_manifest_sha256 or ""
    if attempt is None:
        raise NotFound(
            f"job {job_id} has no final adapter, it is {state}; a checkpoint of it has a name that"
            " ends in :latest, :best or :ckpt-step-N",
            param="checkpoint",
            code="no_final_adapter",
        )
    folder = attempt_folder(settings.home, job_id, attempt) / FINAL_FOLDER
    if not _verified.has(folder, sha256):
        before = _listing(folder)
        folder = checkpoints.adapter_folder(db, settings, project_id, job_id, FINAL)
        _verified.add(folder, sha256, before)
    return Adapter(name=f"{job_id}-{FINAL}-{attempt}", folder=folder)


_Listing = tuple[tuple[str, int, int], ...]


def _listing(folder: Path) -> _Listing | None:
    """Return name, size and time of every file, which change with its contents; None: no folder."""
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return None
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


class _Verified:
    """Remembers which folders verified: hashing gigabytes at every question would cost seconds."""

    _MOST = 256

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str], _Listing] = {}

    def has(self, folder: Path, manifest_sha256: str) -> bool:
        known = self._known.get((folder, manifest_sha256))
        return known is not None and known == _listing(folder)

    def add(self, folder: Path, manifest_sha256: str, before: _Listing | None) -> None:
        """Remember a folder as it was before it was verified; a change since then is seen."""
        if before is None:
            return
        if len(self._known) >= self._MOST:
            self._known.clear()
        self._known[folder, manifest_sha256] = before


_verified = _Verified()


@lru_cache(maxsize=64)
def _fingerprint(host_digest: str, folder: Path, _as_it_is: _Listing | None) -> str:
    """Hash how a base model is loaded, its configuration, and the sizes of its weights."""
    digest = hashlib.sha256(host_digest.encode())
    for name in _CONFIG_FILES:
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]
