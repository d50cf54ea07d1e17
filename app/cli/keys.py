"""Commands about API keys; they work on the database, so they need no key themselves."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer

from app.cli import local, output
from app.cli.local import Home
from app.cli.output import Column, Mode, Output, View

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)


@dataclass(frozen=True)
class KeyLine:
    """A key as it is shown: without its hash."""

    id: str
    name: str
    status: str
    created_at: datetime

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Give the fields as JSON has them; `mode` is always `json` here."""
        return {**vars(self), "created_at": self.created_at.isoformat()}


_VIEW: View[KeyLine] = View(
    identity=lambda key: key.id,
    columns=[
        Column("ID", lambda key: key.id),
        Column("NAME", lambda key: key.name),
        Column("STATUS", lambda key: key.status),
        Column("CREATED", lambda key: key.created_at),
    ],
)


def _database():
    # Loaded by the command that runs: SQLAlchemy is too slow to load for `lorad --help`.
    from app.cli import database

    return database


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Label that says who uses it.")] = "",
    home: Home = None,
) -> None:
    """Create a key and print it; it cannot be shown again."""
    if name and not name.strip():
        raise typer.BadParameter("--name is blank; give a label, or leave it out")
    database, settings = _database(), local.settings(home=home)
    is_first = not database.list_keys(settings)
    secret = database.create_key(settings, name=name)
    output.show_text(secret)
    output.say("keep it, it cannot be shown again; use it with: export LORAD_API_KEY=<the key>")
    if is_first:
        output.say("it is the first key: requests without a key are refused from now on")


@app.command("list")
def list_keys(home: Home = None, mode: Output = Mode.TABLE) -> None:
    """List keys, revoked ones too."""
    keys = _database().list_keys(local.settings(home=home))
    lines = [
        KeyLine(key.id, key.name, "revoked" if key.revoked_at else "active", key.created_at)
        for key in keys
    ]
    output.show_list(lines, _VIEW, mode)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key.")],
    home: Home = None,
) -> None:
    """Revoke a key; requests with it are refused at once."""
    database, settings = _database(), local.settings(home=home)
    database.revoke_key(settings, key_id)
    output.say(f"{key_id} is revoked")
    if all(key.revoked_at for key in database.list_keys(settings)):
        output.say(
            "no active key is left, and requests still need one: every request is refused until"
            " you make another with `lorad keys create`"
        )
