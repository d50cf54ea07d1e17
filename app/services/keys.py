"""API keys: random, shown once, stored as a keyed hash."""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.db import keys as key_queries
from app.db.engine import Database
from app.db.keys import ApiKey
from app.domain.errors import NotFound, Unauthenticated
from app.settings import Settings

_KEY = re.compile(r"^lorad_([0-9a-f]{16})_([A-Za-z0-9_-]{43})$")


@dataclass(frozen=True)
class NewKey:
    """A key at the only moment its secret is known."""

    id: str
    secret: str


def create(db: Database, settings: Settings, *, name: str) -> NewKey:
    """Make a key; the secret is returned here and stored nowhere."""
    key_id = secrets.token_hex(8)
    secret = f"lorad_{key_id}_{secrets.token_urlsafe(32)}"
    with db.write() as session:
        key_queries.insert(session, key_id, name=name, secret_hash=_hash(settings, secret))
    return NewKey(key_id, secret)


def list_all(db: Database) -> Sequence[ApiKey]:
    with db.read() as session:
        return key_queries.list_all(session)


def revoke(db: Database, key_id: str) -> None:
    """End a key at once.

    Raises:
        NotFound: No such key, or it is revoked already.
    """
    with db.write() as session:
        if not key_queries.revoke(session, key_id):
            raise NotFound(f"there is no active key {key_id}", param="key_id")


def any_active(db: Database) -> bool:
    with db.read() as session:
        return key_queries.count_active(session) > 0


def are_required(db: Database) -> bool:
    """Tell whether requests need a key: they do from the first one ever created on."""
    with db.read() as session:
        return key_queries.any_created(session)


def authenticate(db: Database, settings: Settings, presented: str) -> str:
    """Return the project that a presented key belongs to.

    Raises:
        Unauthenticated: The key is malformed, unknown or revoked; the message does not say which.
    """
    match = _KEY.match(presented)
    found = None
    if match is not None:
        with db.read() as session:
            found = key_queries.get(session, match.group(1))
    # The hash is computed in every case, so that the time taken tells nothing.
    expected = "" if found is None else found.secret_hash
    is_equal = hmac.compare_digest(_hash(settings, presented), expected)
    if found is None or not is_equal or found.revoked_at is not None:
        raise Unauthenticated("the API key is not valid; create one with `lorad keys create`")
    return found.project_id


def _hash(settings: Settings, secret: str) -> str:
    return hmac.new(_pepper(settings), secret.encode(), hashlib.sha256).hexdigest()


def _pepper(settings: Settings) -> bytes:
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    path = settings.home / "secret.key"
    if not path.exists():
        _write_once(path, secrets.token_bytes(32))
    return path.read_bytes()


def _write_once(path: Path, content: bytes) -> None:
    """Create a private file with its whole content; the first of two writers wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
