"""Deployment facts, read once from the environment (`LORAD_*`)."""

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# The kernel's limit for a unix socket address is 108 bytes with the closing zero.
_MAX_SOCKET_PATH_BYTES = 107
_SECONDS_IN_A_YEAR = 31_536_000
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+socket://")
Seconds = Annotated[float, Field(gt=0, le=_SECONDS_IN_A_YEAR, allow_inf_nan=False)]
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class Settings(BaseSettings):
    """Where things are and how patient the processes are; nothing about a run."""

    model_config = SettingsConfigDict(
        env_prefix="LORAD_", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    home: Path = Path("~/.lorad")
    """Folder of models, data sets, jobs, and the SQLite database; shared by all machines."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL; default: SQLite at `<home>/lorad.db`."""
    redis_url: SecretStr | None = None
    """URL of Redis or Valkey; default: the unix socket of the bundled Valkey."""
    host: str = "127.0.0.1"
    """Address the API listens on. Any but loopback needs at least one API key."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """TCP port of the API."""
    allowed_hosts: str = ""
    """Host names that requests may carry besides loopback and `host`, separated by commas."""
    secret: SecretStr | None = None
    """Key that API keys are hashed with; default: generated once into `<home>/secret.key`."""
    slots: int = Field(default=1, ge=0, le=64)
    """Training jobs that a worker runs at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that a worker offers; `auto` offers CUDA where there is one."""
    launcher: Literal["warm", "fresh"] = "warm"
    """How trainers start: forked from a warm server, or as fresh processes."""
    heartbeat_seconds: Seconds = 3.0
    """Interval of lease renewals and worker registrations in seconds."""
    lease_seconds: Seconds = 15.0
    """Life of a lease without renewal in seconds."""
    reconcile_seconds: Seconds = 1.0
    """Interval of the reconciler in seconds."""
    ring_again_seconds: Seconds = 5.0
    """Age in seconds at which an unclaimed queued job is rung for again."""
    stop_grace_seconds: Seconds = 120.0
    """Time a trainer gets to reach a step boundary and save before it is terminated, in seconds."""
    cancel_grace_seconds: Seconds = 10.0
    """The same for a cancel, which saves nothing, in seconds."""
    database_outage_seconds: Seconds = 900.0
    """Time a running job tolerates an unreachable database in seconds."""
    tool_seconds: Seconds = 120.0
    """Deadline of a tool task, such as generating an answer, in seconds."""
    inference_queue: int = Field(default=32, ge=1, le=10_000)
    """Questions to models that may wait for a worker; more are refused with 429."""
    inference_seconds: Seconds = 120.0
    """Time until a worker has to take a question, in seconds."""
    inference_batch: int = Field(default=8, ge=1, le=256)
    """Questions that a worker answers at once; the others wait."""
    inference_adapters: int = Field(default=8, ge=1, le=1000)
    """Adapters that a worker keeps attached to the base model that it answers with."""
    inference_idle_seconds: Seconds = 300.0
    """Time without a question after which a worker lets the base model go, in seconds."""
    verify_seconds: Seconds = 600.0
    """Deadline of a verify-resume, which does training steps again, in seconds."""
    hang_seconds: Seconds = 1800.0
    """Time without a sign of progress after which a trainer is ended and replaced, in seconds."""
    max_crashes: int = Field(default=3, ge=1)
    """Crashes without a new checkpoint after which a job fails."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Largest request body in bytes, uploads excepted."""
    max_upload_bytes: int = Field(default=2_147_483_648, ge=1024)
    """Largest data set file in bytes."""
    token_cache_days: float = Field(default=30.0, gt=0)
    """Time after which cached tokens of a data set that no job used are removed, in days."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(_REDIS_SCHEMES):
            raise ValueError(f"it must start with one of {', '.join(_REDIS_SCHEMES)}")
        return url

    @model_validator(mode="after")
    def _lease_outlives_a_lost_heartbeat(self) -> Self:
        if self.heartbeat_seconds * 2 >= self.lease_seconds:
            raise ValueError(
                f"LORAD_LEASE_SECONDS is {self.lease_seconds:g}; it must be more than twice "
                f"LORAD_HEARTBEAT_SECONDS ({self.heartbeat_seconds:g}), or running jobs are taken "
                "from workers that live"
            )
        return self

    @property
    def sqlalchemy_url(self) -> str:
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'lorad.db'}"

    @property
    def valkey_socket(self) -> Path:
        """Where the bundled Valkey listens; outside a home whose path is too long for a socket."""
        inside = self.home / "valkey" / "valkey.sock"
        if len(bytes(inside)) <= _MAX_SOCKET_PATH_BYTES:
            return inside
        name = hashlib.sha256(bytes(self.home)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"lorad-{name}" / "valkey.sock"

    @property
    def broker_url(self) -> str:
        """URL in the form that redis-py takes: redis://, rediss:// or unix://."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value().replace("redis+socket://", "unix://", 1)
        return f"unix://{self.valkey_socket}"

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS

    @property
    def models_folder(self) -> Path:
        return self.home / "models"

    @property
    def datasets_folder(self) -> Path:
        return self.home / "datasets"

    @property
    def cache_folder(self) -> Path:
        return self.home / "cache"
