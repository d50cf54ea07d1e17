"""Signing in with a browser: a random token in a cookie, of which only a hash is stored.

A token has 256 random bits, as a key has, so guesses need no counting; a plain hash is enough
because there is nothing to look up in a table of likely ones.
"""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from app.db import sessions as session_queries
from app.db.engine import Database
from app.db.keys import DEFAULT_PROJECT
from app.db.sessions import PUBLIC_ID_LENGTH, BrowserSession
from app.domain.errors import NotFound, Unauthenticated
from app.services import keys
from app.settings import Settings

SECONDS = 14 * 86_400
LINK_SECONDS = 15 * 60
_TOUCH_SECONDS = 60.0


def sign_in(db: Database, settings: Settings, key: str) -> str:
    """Start a session with a key; return the token of its cookie.

    Raises:
        Unauthenticated: The key is not valid.
    """
    project_id = keys.authenticate(db, settings, key)
    return _start(db, project_id, key_id=key.split("_")[1])


def make_link(db: Database) -> str:
    """Return a token that signs in once, within LINK_SECONDS, whoever can read this terminal."""
    token = secrets.token_urlsafe(32)
    with db.write() as session:
        session_queries.insert(
            session,
            _hash(token),
            DEFAULT_PROJECT,
            key_id=None,
            seconds=LINK_SECONDS,
            is_link=True,
        )
    return token


def redeem(db: Database, link: str) -> str:
    """Use up a link and start a session; return the token of its cookie.

    Raises:
        Unauthenticated: It was used before, is too old, or never was one.
    """
    with db.write() as session:
        project_id = session_queries.take_link(session, _hash(link))
    if project_id is None:
        raise Unauthenticated(
            "this link was used already or is older than 15 minutes; sign in with a key, or start"
            " `lorad up` again for a new link",
            code="invalid_link",
        )
    return _start(db, project_id, key_id=None)


def find(db: Database, token: str) -> BrowserSession | None:
    """Return the session of a cookie; None when it ended by age, sign-out or with its key."""
    with db.read() as session:
        found = session_queries.get(session, _hash(token))
    if found is not None:
        idle = datetime.now(UTC) - found.used_at
        if idle.total_seconds() > 2 * _TOUCH_SECONDS:
            with db.write() as session:
                session_queries.touch(session, _hash(token), within_seconds=_TOUCH_SECONDS)
    return found


def list_all(db: Database, project_id: str) -> Sequence[BrowserSession]:
    with db.read() as session:
        return session_queries.list_all(session, project_id)


def sign_out(db: Database, token: str) -> None:
    with db.write() as session:
        session_queries.remove(session, _hash(token))


def public_id(token: str) -> str:
    """Return what names the session of a cookie in lists; it tells nothing of the token."""
    return _hash(token)[:PUBLIC_ID_LENGTH]


def end(db: Database, project_id: str, session_id: str) -> None:
    """End one session by its public id.

    Raises:
        NotFound: The project has no such session, or it has ended.
    """
    with db.write() as session:
        listed = session_queries.list_all(session, project_id)
        found = [each.token_hash for each in listed if each.id == session_id]
        for token_hash in found:
            session_queries.remove(session, token_hash)
    if not found:
        message = "there is no such session, or it has ended; see the list on the page of settings"
        raise NotFound(message, param="session_id")


def sign_out_everywhere(db: Database, project_id: str) -> None:
    """End every session of a project, and the links that were not used."""
    with db.write() as session:
        session_queries.remove_all(session, project_id)


def _start(db: Database, project_id: str, *, key_id: str | None) -> str:
    # Always a new token, whatever the browser had before.
    token = secrets.token_urlsafe(32)
    with db.write() as session:
        session_queries.insert(session, _hash(token), project_id, key_id=key_id, seconds=SECONDS)
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "backslashreplace")).hexdigest()
